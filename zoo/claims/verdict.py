"""What is expected, and whether it came true: statements, paired differences and their Student intervals."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zoo import registry
from zoo.spec import ZooError

LEAST_SEEDS = 5
"""Runs of each contestant that a verdict takes."""

Verdict = Literal["holds", "does not hold", "cannot be told here"]


@dataclass(frozen=True)
class Side:
    """``factor * contestant``, or the number ``factor`` where there is no contestant; ``plus`` another such term."""

    factor: float
    contestant: str = ""
    plus: Side | None = None

    def __str__(self) -> str:
        own = f"{self.factor:g}"
        if self.contestant:
            own = self.contestant if self.factor == 1 else f"{own} * {self.contestant}"
        return own if self.plus is None else f"{own} + {self.plus}"

    def values(self, values: Mapping[str, Sequence[float]], seeds: int) -> list[float]:
        own = [self.factor * v for v in values[self.contestant]] if self.contestant else [self.factor] * seeds
        return own if self.plus is None else [a + b for a, b in zip(own, self.plus.values(values, seeds), strict=True)]


@dataclass(frozen=True)
class Statement:
    """``left < right`` or ``left > right`` in one metric."""

    metric: str
    left: Side
    less: bool
    right: Side

    def __str__(self) -> str:
        return f"{self.left} {'<' if self.less else '>'} {self.right}"


@dataclass(frozen=True)
class Compared:
    """A statement's paired difference ``left - right`` over the seeds: mean, 95% interval (None below two seeds), and
    the verdict (None below five)."""

    metric: str
    statement: str
    mean: float
    low: float | None
    high: float | None
    relative: float | None
    """``mean`` over the mean of the right side."""
    verdict: Verdict | None


def parse(metric: str, text: str, contestants: Iterable[str]) -> list[Statement]:
    """``a < b``, ``a < 1.005 * b``, ``a > 3 * b``, ``a < 0.3``, ``a < 0.5 * b + 0.5 * c``, or a chain ``a < b < c``:
    its neighbouring pairs."""
    known, pieces = list(contestants), re.split(r"\s*([<>])\s*", text.strip())
    sides = [_side(piece, text, known) for piece in pieces[::2]]
    if len(sides) < 2 or not all(a.contestant or b.contestant for a, b in itertools.pairwise(sides)):
        raise ZooError(
            f"'{text}' compares no contestants; write for example: system < dense, or system < 1.005 * dense"
        )
    return [
        Statement(metric, left, sign == "<", right)
        for left, sign, right in zip(sides, pieces[1::2], sides[1:], strict=False)
    ]


def _side(text: str, whole: str, known: list[str]) -> Side:
    head, plus, tail = text.partition(" + ")
    if plus:
        return replace(_side(head.strip(), whole, known), plus=_side(tail.strip(), whole, known))
    found = re.fullmatch(r"(?:([\d.]+)\s*\*\s*)?([A-Za-z_]\w*)|([\d.]+(?:e-?\d+)?)", text)
    if not found:
        raise ZooError(f"'{text}' in the expectation '{whole}' is neither a number nor [FACTOR *] CONTESTANT")
    factor, name, number = found.groups()
    if name and name not in known:
        raise ZooError(f"unknown contestant '{name}' in the expectation '{whole}'; {registry.suggest(name, known)}")
    return Side(float(factor or number or 1), name or "")


def compare(statement: Statement, values: Mapping[str, Sequence[float]]) -> Compared:
    """Compare over paired seeds. ``values`` are those of the statement's metric, by contestant, in the order of seeds.

    The interval of the difference lies entirely on the claimed side: *holds*; entirely on the other: *does not hold*;
    else it *cannot be told here*.
    """
    seeds = max(len(values[s.contestant]) for s in (statement.left, statement.right) if s.contestant)
    left, right = statement.left.values(values, seeds), statement.right.values(values, seeds)
    differences = [a - b for a, b in zip(left, right, strict=True)]
    base, mean = sum(right) / seeds, sum(differences) / seeds
    low, high = paired_interval(differences)
    verdict: Verdict | None = None
    if seeds >= LEAST_SEEDS and low is not None and high is not None:
        below, above = high < 0, low > 0
        for_it, against = (below, above) if statement.less else (above, below)
        verdict = "holds" if for_it else "does not hold" if against else "cannot be told here"
    return Compared(statement.metric, str(statement), mean, low, high, mean / abs(base) if base else None, verdict)


def overall(verdicts: Sequence[Verdict | None]) -> Verdict | None:
    """Of a claim of several statements: it holds when all do (an intersection-union test, which needs no correction
    for their number), and does not when one does not."""
    if None in verdicts:
        return None
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if all(v == "holds" for v in verdicts) else "cannot be told here"


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of fewer than two."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float | None, float | None]:
    """Student's interval of the mean of paired differences, ``mean +- t s / sqrt(n)``; (None, None) below two."""
    deviation = spread(differences)
    if deviation is None:
        return None, None
    n = len(differences)
    mean, half = sum(differences) / n, student_quantile((1 + level) / 2, n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def student_quantile(p: float, df: int) -> float:
    """Quantile of Student's t for p > 1/2 and a whole number of degrees of freedom, by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, df) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, df: int) -> float:
    """P(T <= t), the finite series for whole degrees of freedom (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(df))
    square, term, total = math.cos(theta) ** 2, 1.0, 0.0
    if df % 2:
        term = math.cos(theta)
        for k in range(1, (df - 1) // 2 + 1):
            total, term = total + term, term * square * 2 * k / (2 * k + 1)
        inside = 2 / math.pi * (theta + math.sin(theta) * total)
    else:
        for k in range(1, df // 2 + 1):
            total, term = total + term, term * square * (2 * k - 1) / (2 * k)
        inside = math.sin(theta) * total
    return 0.5 + inside / 2

"""The control that sees no image: what the question alone gives away.

A softmax over a bag of words and pairs of words, fitted to the train split by L-BFGS, its strength chosen on the
validation split. Of a question that is in the train split this is close to its most frequent answer.

Shapes: U different questions, F words and pairs, A answers.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_QUESTIONS, MOST_FEATURES, MOST_ANSWERS = 20_000, 2_000, 500
STRENGTHS = (1e-2, 1e-3, 1e-4)
STEPS = 60
Pair = tuple[str, str]
Bags = tuple[Tensor, Tensor]


class Blind:
    """Fitted once to pairs of question and answer; `answer` says what it would say."""

    def __init__(self, train: Sequence[Pair], val: Sequence[Pair] = ()) -> None:
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in train:
            by_question[_plain(question)][answer] += 1
        ranked = sorted(by_question, key=lambda q: -by_question[q].total())[:MOST_QUESTIONS]
        answers = Counter(answer for _, answer in train)
        self.answers = [answer for answer, _ in answers.most_common(MOST_ANSWERS)]
        found = Counter(feature for question in ranked for feature in dict.fromkeys(_features(question)))
        self.features = {feature: place for place, (feature, _) in enumerate(found.most_common(MOST_FEATURES))}
        self.weight_FA, best = torch.zeros(len(self.features) + 1, len(self.answers)), -1.0
        if len(self.answers) > 1:
            place = {answer: a for a, answer in enumerate(self.answers)}
            count_UA = torch.zeros(len(ranked), len(self.answers))
            for u, question in enumerate(ranked):
                for answer, count in by_question[question].items():
                    if answer in place:
                        count_UA[u, place[answer]] = count
            seen = self._seen(ranked)
            for strength in STRENGTHS:
                weight_FA = _fit(seen, len(self.features) + 1, count_UA, strength)
                hits = self._hits(weight_FA, val or train)
                if hits > best:
                    self.weight_FA, best = weight_FA, hits
        self._known: dict[str, str] = {}

    def answer(self, questions: Iterable[str]) -> list[str]:
        """The likeliest answer to each question."""
        plain = [_plain(question) for question in questions]
        if new := sorted({question for question in plain if question not in self._known}):
            for start in range(0, len(new), 4096):
                some = new[start : start + 4096]
                place_U = _scores(self._seen(some), self.weight_FA).argmax(-1).tolist()
                self._known |= {q: self.answers[a] for q, a in zip(some, place_U, strict=True)}
        return [self._known[question] for question in plain]

    def _seen(self, questions: Sequence[str]) -> Bags:
        """The features of each question, one after the other, and where those of each begin; the last is the prior."""
        known, prior = self.features, len(self.features)
        bags = [[prior, *dict.fromkeys(known[f] for f in _features(question) if f in known)] for question in questions]
        start_U = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        return torch.tensor([feature for bag in bags for feature in bag]), start_U

    def _hits(self, weight_FA: Tensor, pairs: Sequence[Pair]) -> float:
        counts = Counter((_plain(question), answer) for question, answer in pairs)
        questions = sorted({question for question, _ in counts})
        said = _scores(self._seen(questions), weight_FA).argmax(-1).tolist()
        chosen = {q: self.answers[a] for q, a in zip(questions, said, strict=True)}
        return sum(n for (question, answer), n in counts.items() if chosen[question] == answer) / len(pairs)


def _plain(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))


def _features(plain: str) -> list[str]:
    words = plain.split()
    return [*words, *(f"{a} {b}" for a, b in zip(["^", *words], words, strict=False))]


def _scores(bags: Bags, weight_FA: Tensor) -> Tensor:
    """(U, A): the sum of the weights of each question's features."""
    feature_N, start_U = bags
    return F.embedding_bag(feature_N, weight_FA, start_U, mode="sum")


def _fit(bags: Bags, features: int, count_UA: Tensor, strength: float) -> Tensor:
    """Weights of the softmax that says the counts best, ``strength`` times their square added."""
    with torch.inference_mode(False), torch.enable_grad():
        weight_FA = torch.zeros(features, count_UA.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([weight_FA], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")
        share_UA = count_UA / count_UA.sum()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = strength * weight_FA.square().sum() - (share_UA * _scores(bags, weight_FA).log_softmax(-1)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    return weight_FA.detach()

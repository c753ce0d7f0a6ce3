"""Which branch of its code a script takes: that is the phase of the task.

Meta-World's scripts (MIT, https://github.com/Farama-Foundation/Metaworld) choose where the hand should go in a chain of
conditions. Each observation goes through one branch of it, and the branches, in the order of the source, are the phases
of the task. We watch which one is executed instead of writing the conditions down a second time.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

NAMED: Mapping[str, tuple[str, ...]] = {
    "assembly": ("reach", "insert", "descend", "transport", "transport"),
    "drawer-open": ("reach", "descend", "transport"),
    "hammer": ("reach", "descend", "transport", "insert"),
    "peg-insert-side": ("reach", "descend", "transport", "insert"),
    "pick-place": ("reach", "descend", "grasp", "transport"),
}
"""What the branches of a task are called. Those of other tasks take the names in the order of the source, and what
there is more than five of is called as the last."""


class Branches:
    """Watches a function: ``found(*arguments)`` returns its value and the number of the branch that was taken.

    A branch is a body of an ``if`` chain (``elif`` and ``else`` too) that holds no further ``if``; they are numbered in
    the order of the source. A function without a condition has one, number 0.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.code: CodeType = inspect.unwrap(function).__code__  # type: ignore[attr-defined]
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.code)))
        offset = self.code.co_firstlineno - 1
        bodies: list[tuple[int, int]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.If):
                for body in (node.body, node.orelse):
                    if body and not any(isinstance(inner, ast.If) for each in body for inner in ast.walk(each)):
                        bodies.append((body[0].lineno + offset, (body[-1].end_lineno or body[-1].lineno) + offset))
        self.bodies = sorted(bodies)

    def found(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Run ``call``, in which the function is called once; the branch is that of the last line in any body."""
        taken = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal taken
            for number, (first, last) in enumerate(self.bodies):
                if first <= frame.f_lineno <= last:
                    taken = number
            return line

        def enter(frame: FrameType, event: str, argument: object) -> Any:
            return line if frame.f_code is self.code else None

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            value = call()
        finally:
            sys.settrace(before)
        return value, taken


def phase_names(task: str, branches: int, phases: tuple[str, ...]) -> list[int]:
    """The place in ``phases`` of each of a script's branches."""
    named = NAMED.get(task)
    if named is None or len(named) != branches:
        return [min(number, len(phases) - 1) for number in range(branches)]
    return [phases.index(name) for name in named]

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
    """Watches a function: ``found(call)`` returns the value of a call of it, and the number of the branch it took.

    A branch is a ``return``, in the order of the source. Of a function with a single one it is a body of an ``if``
    chain that holds no further ``if``, and one more where none of them was gone through.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.code: CodeType = inspect.unwrap(function).__code__  # type: ignore[attr-defined]
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.code)))
        offset = self.code.co_firstlineno - 1
        nodes = list(ast.walk(tree))
        ends: list[tuple[ast.stmt, ast.stmt]] = [(node, node) for node in nodes if isinstance(node, ast.Return)]
        if len(ends) < 2:
            bodies = [body for node in nodes if isinstance(node, ast.If) for body in (node.body, node.orelse) if body]
            ends = [
                (b[0], b[-1]) for b in bodies if not any(isinstance(n, ast.If) for each in b for n in ast.walk(each))
            ]
        self.bodies = sorted((one.lineno + offset, (two.end_lineno or two.lineno) + offset) for one, two in ends)

    def found(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Run ``call``, in which the function is called once; its branch is that of the last line that is in any."""
        taken = len(self.bodies)

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
    """The place in ``phases`` of each of a script's branches, and of none of them."""
    named = NAMED.get(task, ())
    if not named or len(named) != branches:
        return [min(number, len(phases) - 1) for number in range(branches + 1)]
    return [phases.index(name) for name in (*named, named[-1])]

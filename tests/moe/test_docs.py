"""docs/moe.md is what the registry says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from zoo import registry
from zoo.moe.docs import CALLS, KINDS, page


def test_the_page_is_up_to_date() -> None:
    committed = (Path(__file__).parents[2] / "docs" / "moe.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m zoo.moe.docs > docs/moe.md"


def test_every_part_of_the_core_is_on_it() -> None:
    text = page()
    for kind in KINDS:
        for entry in registry.entries(kind).values():
            if not entry.plugin.name:
                assert f"| `{entry.spec.name}` |" in text.partition(f"## {kind}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("kind", CALLS)
def test_parts_are_made_and_called_as_it_says(kind: str) -> None:
    """Arguments by name, of every registered part of the kind; those with a base class override what it names."""
    made, calls = re.match(r"\(([^)]*)\)|", CALLS[kind]), dict(re.findall(r"(\w+)\(([^)]*)\)", CALLS[kind]))
    assert made and (calls or made[1])
    for entry in registry.entries(kind).values():
        part = entry.load()
        for call, arguments in {**({"__init__": made[1]} if made[1] else {}), **calls}.items():
            assert ", ".join(list(inspect.signature(getattr(part, call)).parameters)[1:]) == arguments, (
                entry.name,
                call,
            )

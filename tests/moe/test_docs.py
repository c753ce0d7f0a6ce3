"""docs/moe.md is what the registry says."""

from __future__ import annotations

from pathlib import Path

from zoo import registry
from zoo.moe.docs import KINDS, page


def test_the_page_is_up_to_date() -> None:
    committed = (Path(__file__).parents[2] / "docs" / "moe.md").read_text(encoding="utf-8")
    assert committed == page(), "run: python -m zoo.moe.docs > docs/moe.md"


def test_every_part_of_the_core_is_on_it() -> None:
    text = page()
    for kind in KINDS:
        for entry in registry.entries(kind).values():
            if not entry.plugin.name:
                assert f"| `{entry.spec.name}` |" in text.partition(f"## {kind}\n")[2].partition("\n## ")[0]

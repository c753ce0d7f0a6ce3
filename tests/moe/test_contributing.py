"""The example of a part in CONTRIBUTING: installed as it is printed, it keeps the contract of the core's own parts."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from zoo import registry

FILES = {"my_parts/__init__.py", "my_parts/scorers.py"}
TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def printed() -> dict[str, str]:
    """The files of the example by name, in the order of the text."""
    blocks = re.findall(r"^`(my_parts/\w+\.py)`[^`]*```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return dict(blocks)


@pytest.fixture
def contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the routers' contract tests, with the example installed as pip would."""
    info = tmp_path / "my_parts-1.0.dist-info"
    (tmp_path / "my_parts").mkdir()
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-parts\nVersion: 1.0\n")
    entry = re.search(r'`(my_parts = "(my_parts:plugin)")`', TEXT)
    assert entry, "the text says the entry point"
    (info / "entry_points.txt").write_text(f"[zoo.plugins]\nmy_parts = {entry[2]}\n")
    for name, source in printed().items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry.refresh()
    spec = importlib.util.spec_from_file_location(
        "router_contract", Path(__file__).with_name("test_router_contract.py")
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_parts"]:
        del sys.modules[name]
    registry.refresh()


def test_the_example_is_short() -> None:
    lines = [line for source in printed().values() for line in source.splitlines() if line.strip()]
    assert set(printed()) == FILES and len(lines) <= 20


def test_the_example_keeps_the_contract(contract: ModuleType) -> None:
    part = ("scorer", "my_parts/distance")
    assert part in contract.cases.PARTS
    contract.test_gives_a_routing(*part)
    contract.test_gradient_reaches_every_parameter(*part)
    contract.test_padding_changes_nothing_else(*part)
    for lead in ((0, 4), (2, 0), (2, 4)):
        contract.test_nothing_to_route(*part, lead)
    contract.test_checkpointing_changes_nothing(*part)
    contract.test_saves_and_loads(*part)
    contract.test_routes_in_full_precision(*part)
    contract.test_leaves_nothing_to_chance(*part)
    contract.test_says_what_it_is(*part)
    contract.test_traces_without_a_break(("my_parts/distance", *[None] * (len(contract.cases.KINDS) - 2)))

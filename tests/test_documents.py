"""What README and docs/ tell a stranger to type is there: names, settings, and the Python of the README."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from zoo import config as zc
from zoo import registry
from zoo.claims import claim as claims
from zoo.train.recipe import read_recipe

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
MADE = {"my_field/patch_moe", "birds/patch_moe"}  # by `zoo new-plugin` in the line before


def commands() -> list[str]:
    """Every line of a code block that begins with zoo, with its continuation lines and without its comment."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        found += re.findall(
            r"^\s*(zoo (?:train|eval|info|predict|trace|reproduce) .*?)(?:\s+#.*)?$", text, re.MULTILINE
        )
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_what_is_typed_is_there(line: str) -> None:
    _, command, name, *rest = shlex.split(line)
    if "/" not in name or name.startswith(("runs/", "hf:", "hf-hub:")) or name in MADE:
        return
    if command == "train":
        read_recipe(name, [item for item in rest if not item.startswith(("-", "resume="))])
    elif command == "reproduce":
        claims.find(name)
    else:
        entry, _ = registry.find_model(name)
        if command == "predict":
            task = registry.find("task", registry.full_task(entry)).spec
            keys = {item.partition("=")[0] for item in rest[: rest.index("--out") if "--out" in rest else None]}
            assert keys <= {"device", *(known.name for known in task.inputs)}
            assert {known.name for known in task.inputs if known.required} <= keys


def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    time = pd.date_range("2024-01-01", periods=600, freq="h")
    pd.DataFrame({"date": time, "load": [hour % 24 for hour in range(600)]}).to_csv("my.csv", index=False)
    code = re.search(r"```python\n(import zoo\n.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec(code[1], names)  # what README.md says
    forecast = names["forecast"]
    assert isinstance(forecast, pd.DataFrame) and len(forecast) == 96


def test_a_recipe_of_ones_own_as_the_readme_has_it(tmp_path: Path) -> None:
    said = re.search(r"`(defaults: \[\S+\])` in `mine.yaml`", PAGES[0].read_text(encoding="utf-8"))
    assert said
    (tmp_path / "mine.yaml").write_text(said[1])
    assert zc.recipe_path(str(tmp_path / "mine.yaml")) and read_recipe(str(tmp_path / "mine.yaml"))["train"]["steps"]

"""Every recipe of every plugin runs as it stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zoo import cli, config, hub, registry, resources
from zoo.spec import DatasetSpec
from zoo.train.recipe import read_recipe


@pytest.mark.parametrize("recipe", config.recipes())
def test_recipe(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_recipe(recipe)["data"]
    spec = registry.find("data set", data["name"]).spec
    assert isinstance(spec, DatasetSpec)
    chosen = {value for value in data.values() if isinstance(value, str)}
    named = [f.path for f in spec.files if Path(f.path).stem.partition("-")[0] in chosen]
    wanted = named or [f.path for f in spec.files]
    if absent := [path for path in wanted if not (resources.data_dir() / path).exists()]:
        pytest.skip(f"needs {absent[0]} under ZOO_DATA")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo", "train", recipe, "--fast-dev-run", "device=cpu"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert hub.load(tmp_path / "runs" / recipe).model.zoo_name == read_recipe(recipe)["model"]["name"]

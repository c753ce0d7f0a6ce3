"""What is shipped: imports stay light, wheel and sdist are whole, and a third party's plugin works beside the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
import tomllib
from packaging.requirements import Requirement

import zoo
from zoo.cli.new_plugin import new_plugin
from zoo.spec import ZooError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_plugin"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").glob("zoo_*"))


def run(*command: str | Path, cwd: Path, path: tuple[Path, ...] = ()) -> str:
    """Standard output of a command that must succeed, with ``path`` first on Python's."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONWARNINGS": "default"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# -- imports and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["zoo", "zoo.registry", "zoo.config", "zoo.train.recipe", "zoo.cli", *PLUGINS])
def test_import_is_light(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'lightning', 'transformers', 'pandas'}} & set(sys.modules))"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == ""


def test_public_names_resolve() -> None:
    assert sorted(zoo._HOME) == sorted(zoo.__all__)
    for name in zoo.__all__:
        assert callable(getattr(zoo, name))
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        _ = zoo.creat_model


def test_no_folder_poses_as_a_package() -> None:
    """`transformers` imports whatever package is called ``kernels``; a namespace folder of that name is harmless."""
    assert [f for f in ("kernels", "plugins", "configs", "model_cards") if (ROOT / f / "__init__.py").exists()] == []


def test_transformers_imports_beside_the_kernels_folder() -> None:
    run(sys.executable, "-c", "import zoo, transformers; from transformers import Qwen3MoeForCausalLM", cwd=ROOT)


# -- pyproject and constraints ---------------------------------------------------------------------------------------


def test_every_plugin_is_declared() -> None:
    assert PROJECT["entry-points"]["zoo.plugins"] == {p.removeprefix("zoo_"): f"{p}:plugin" for p in PLUGINS}
    linter = PYPROJECT["tool"]["importlinter"]
    layers, forbidden = linter["contracts"]
    assert sorted(linter["root_packages"]) == sorted(["zoo", "zoo_kernels", *PLUGINS])
    assert " | ".join(PLUGINS) in layers["layers"]
    assert sorted(forbidden["forbidden_modules"]) == PLUGINS
    assert {f"{p.removeprefix('zoo_').replace('_', '-')}" for p in PLUGINS} <= set(PROJECT["optional-dependencies"])


def test_every_module_of_the_core_has_its_layer() -> None:
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = set(re.findall(r"zoo\.(\w+)", " ".join(layers)))
    there = {p.stem for p in (ROOT / "zoo").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - {"__init__"} <= placed


def test_plugins_use_no_private_name_of_the_core() -> None:
    private = re.compile(r"^\s*(?:from|import) zoo(?:_kernels)?\b[^\n]*[. ]_(?!_)\w", re.MULTILINE)
    assert [p for p in (ROOT / "plugins").rglob("*.py") if private.search(p.read_text())] == []


def test_constraints_lie_within_the_ranges() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = dict(line.split("==") for line in lines)
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *(r for needs in extras.values() for r in needs)]):
        name = requirement.name.lower()
        if name != "moe-zoo":
            assert name in pinned, f"constraints.txt has no {name}"
            assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes {name}=={pinned[name]}"
    assert set(Requirement(extras["all"][0]).extras) == set(extras) - {"all", "dev"}
    assert "torchvision" in pinned, "it comes with timm, and must be the one that belongs to torch"


# -- wheel and sdist -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel built from the tree, the sdist, and the wheel built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*build, out / "direct", "--wheel", ROOT, cwd=out)
    run(*build, out / "sdist", ROOT, cwd=out)
    return {
        "wheel": next((out / "direct").glob("moe_zoo-*.whl")),
        "sdist": next((out / "sdist").glob("moe_zoo-*.tar.gz")),
        "wheel of the sdist": next((out / "sdist").glob("moe_zoo-*.whl")),
    }


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_file_and_nothing_else(dist: dict[str, Path]) -> None:
    places = {"zoo": "zoo/", "configs": "zoo/configs/", "model_cards": "zoo/model_cards/", "kernels": "", "plugins": ""}
    places["tests/example_plugin"] = "zoo/example_plugin/"
    wanted = set()
    for folder, place in places.items():
        for file in (ROOT / folder).rglob("*"):
            inside = file.relative_to(ROOT / folder)
            at_the_top = folder in ("kernels", "plugins") and len(inside.parts) == 1
            if file.is_file() and not at_the_top and "__pycache__" not in file.parts and file.suffix != ".pyc":
                wanted.add(place + inside.as_posix())
    held = {name for name in members(dist["wheel"]) if ".dist-info/" not in name}
    assert held == wanted
    assert "zoo/py.typed" in held
    assert version("moe-zoo") == zoo.__version__


def test_sdist_builds_the_same_wheel(dist: dict[str, Path]) -> None:
    assert members(dist["wheel of the sdist"]) == members(dist["wheel"])
    with tarfile.open(dist["sdist"]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "Makefile", "constraints.txt", "tests/conftest.py", "tests/test_packaging.py"} <= held


# -- a third party's plugin ------------------------------------------------------------------------------------------


def pip_install(target: Path, *what: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "--disable-pip-version-check", "--target", target, *what, cwd=target.parent)


def copied(example: Path, to: Path) -> Path:
    """pip builds inside the folder it is given, so it is given a copy."""
    return shutil.copytree(example, to, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def site(dist: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder that holds the project's wheel and the example plugin, as pip installs them."""
    work = tmp_path_factory.mktemp("installed")
    pip_install(work / "site", dist["wheel"], copied(EXAMPLE, work / "birdsong"))
    return work / "site"


def test_installed_files_are_found(site: Path, tmp_path: Path) -> None:
    code = """if True:
        import json, zoo, zoo_kernels, zoo_birdsong
        from zoo import config, resources
        recipes = config.recipes()
        cards = resources.card_path("birdsong", "zoo_birdsong", "patch_moe"), resources.resource_dir("model_cards")
        files = [zoo.__file__, zoo_kernels.__file__, zoo_birdsong.__file__, *recipes.values(), *cards]
        print(json.dumps([list(recipes), [str(file) for file in files]]))
    """
    recipes, files = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, path=(site,)))
    assert "birdsong/patch_moe" in recipes and any(name.startswith("time_series/") for name in recipes)
    assert [f for f in files if not Path(f).exists() or not Path(f).is_relative_to(site)] == []


def test_the_example_works_through_the_cli(site: Path, tmp_path: Path) -> None:
    assert "birdsong/patch_moe" in run(
        sys.executable, site / "bin" / "zoo", "list", "birdsong/*", path=(site,), cwd=tmp_path
    )
    code = """if True:  # one process, because torch and lightning take seconds to import
        import sys
        from zoo.cli import main
        name, run = "birdsong/patch_moe", "runs/birdsong/patch_moe"
        for line in (["info", name], ["train", name, "--fast-dev-run"], ["eval", run, "limit=8"]):
            sys.argv = ["zoo", *line]
            try:
                main()
            except SystemExit as stop:
                if stop.code:
                    raise
    """
    out = run(sys.executable, "-c", code, cwd=tmp_path, path=(site,))
    report = json.loads((tmp_path / "runs/birdsong/patch_moe/eval/eval.json").read_text())
    assert set(report["metrics"]) == {"cross_entropy", "error"} and "cross_entropy" in out


def test_a_new_plugin_passes_its_own_tests(site: Path, tmp_path: Path) -> None:
    files = new_plugin("my_field", tmp_path / "my-field")
    assert not [f for f in files if "birdsong" in f.read_text() or "birdsong" in str(f.relative_to(tmp_path))]
    pip_install(tmp_path / "site", tmp_path / "my-field")
    out = run(sys.executable, "-m", "pytest", "-q", "tests", cwd=tmp_path / "my-field", path=(tmp_path / "site", site))
    assert "2 passed" in out


def test_new_plugin_refuses(tmp_path: Path) -> None:
    for name in ("", "My", "1st", "a-b", "a__b", "../x", "a b"):
        with pytest.raises(ZooError, match="cannot name a plugin"):
            new_plugin(name, tmp_path / "new")
    with pytest.raises(ZooError, match="exists already"):
        new_plugin("fine", tmp_path)
    taken = next(iter(entry_points(group="zoo.plugins"))).name
    with pytest.raises(ZooError, match=f"'{taken}' is installed already, from moe-zoo"):
        new_plugin(taken, tmp_path / "new")
    with pytest.raises(ZooError, match="zoo_kernels"):
        new_plugin("kernels", tmp_path / "new")
    assert not (tmp_path / "new").exists()

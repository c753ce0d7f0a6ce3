"""Plugins as they come: installed, broken, doubled, and what the names of their things mean."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zoo import registry
from zoo.spec import API, ZooError

Install = Callable[..., None]
SPEC = "from zoo.spec import *\n"
BIRDS = f"""{SPEC}
plugin = Plugin(
    api={API},
    doc="birds",
    models=(
        ModelSpec("finch_2", "acme_birds_models:Finch", "song", pretrained=dict.fromkeys("ab", Weights("bundled:x"))),
        ModelSpec("finch_10", "acme_birds_models:Finch", "song"),
        ModelSpec("wren", "acme_birds_models:Wren", "time_series/forecasting", requires=("no_such_module",)),
        ModelSpec("owl", "acme_birds_models:Owl", "song", requires=("no_such_package.inner",)),
    ),
    tasks=(TaskSpec("song", "acme_birds_models:Song"),),
    parts=(PartSpec("router", "sky", "acme_birds_models:Sky"),),
)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(distribution, plugin, source)`` puts a distribution with one plugin on the path, as pip would."""
    modules = set(sys.modules)

    def add(distribution: str, plugin: str, source: str) -> None:
        module = distribution.replace("-", "_")
        site = tmp_path / distribution
        info = site / f"{module}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[zoo.plugins]\n{plugin} = {module}:plugin\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        registry.refresh()

    yield add
    monkeypatch.undo()
    for name in set(sys.modules) - modules:
        if name.startswith("acme"):
            del sys.modules[name]
    registry.refresh()


def test_names_tags_and_filters(install: Install) -> None:
    install("acme-birds", "birds", BIRDS)
    names = ["birds/finch_2", "birds/finch_10", "birds/owl", "birds/wren"]
    assert registry.list_models("birds/*") == names, "2 comes before 10"
    assert registry.list_models("finch*") == names[:2], "a pattern without a plugin is one of bare names"
    assert registry.list_models("birds/*", pretrained=True) == ["birds/finch_2.a", "birds/finch_2.b"]
    assert registry.list_models("*.b", pretrained=True) == ["birds/finch_2.b"]
    assert registry.list_models(task="song") == registry.list_models(task="birds/song") == [*names[:2], "birds/owl"]
    assert "birds/wren" in registry.list_models(task="time_series/forecasting"), "a task may be another plugin's"
    assert registry.list_models("nothing*") == []
    entry, tag = registry.find_model("birds/finch_2.b")
    assert (entry.name, tag) == ("birds/finch_2", "b")
    assert registry.find("router", "birds/sky").plugin.owner == "acme-birds 1.5"
    assert registry.find("router", "topk").plugin.owner == "moe-zoo", "the core's own parts have no prefix"
    assert "birds" in registry.list_plugins() and "" not in registry.list_plugins()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("birds/finch_3", "unknown model 'birds/finch_3'; did you mean birds/finch_"),
        ("wren", "unknown model 'wren'; did you mean birds/wren?"),
        ("birds/finch_2.c", "model 'birds/finch_2' has no pretrained tag 'c'; known: a, b"),
        ("qqqq/zzzz", "unknown model 'qqqq/zzzz'; known: "),
    ],
)
def test_unknown_names_get_close_matches(install: Install, name: str, told: str) -> None:
    install("acme-birds", "birds", BIRDS)
    with pytest.raises(ZooError) as caught:
        registry.find_model(name)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("model", ["wren", "owl"])
def test_a_missing_package_is_named_when_the_thing_is_built(install: Install, model: str) -> None:
    install("acme-birds", "birds", BIRDS)
    with pytest.raises(ZooError, match=rf"model 'birds/{model}' needs no_such_\S+, which is not installed; run: pip"):
        registry.find("model", f"birds/{model}").load()


def test_a_target_that_is_not_there(install: Install) -> None:
    install("acme-birds", "birds", BIRDS)
    with pytest.raises(ZooError, match=r"model 'birds/finch_2' of acme-birds 1.5 .* acme_birds_models:Finch: Mod"):
        registry.find("model", "birds/finch_2").load()


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("plugin = {}", "acme_odd:plugin is a dict, not a zoo.spec.Plugin"),
        ("other = 1", "AttributeError: module 'acme_odd' has no attribute 'plugin'"),
        ("class Panic(BaseException): pass\nraise Panic('of Rust')", "Panic: of Rust"),
        ("raise OSError('one\\n  two')", "OSError: one two"),
        (f"{SPEC}plugin = Plugin(api=99)", f"written for plugin API 99, this zoo speaks {API}"),
        (f"{SPEC}plugin = Plugin(api='1')", f"written for plugin API '1', this zoo speaks {API}"),
        (f"{SPEC}plugin = Plugin(api={API}, parts=(PartSpec('a', 'b', 'x:Y')))", "parts is a PartSpec, not a tuple"),
        (f"{SPEC}plugin = Plugin(api={API}, models=None)", "models is a NoneType, not a tuple"),
        (f"{SPEC}plugin = Plugin(api={API}, requires=('torch'))", "requires is a str, not a tuple"),
        (f"{SPEC}plugin = Plugin(api={API}, tasks=(TaskSpec('a', 'x:Y', requires='z'),))", "'a' requires a str"),
        (f"{SPEC}plugin = Plugin(api={API}, requires=('nope.inner',))", "needs nope.inner, which is not installed"),
        (f"{SPEC}plugin = Plugin(api={API}, models=('finch',))", "lists 'finch' as a model, which is no spec"),
        (f"{SPEC}plugin = Plugin(api={API}, parts=(3,))", "lists 3 as a part, which is no spec"),
        (f"{SPEC}plugin = Plugin(api={API}, tasks=(TaskSpec('a.b', 'x:Y'),))", "names a task 'a.b'; use letters"),
        (f"{SPEC}plugin = Plugin(api={API}, tasks=(TaskSpec('a', 'x:Y'),) * 2)", "names the task 'a' twice"),
    ],
)
def test_a_broken_plugin_stops_nobody_else(install: Install, source: str, cause: str) -> None:
    install("acme-birds", "birds", BIRDS)
    install("acme-odd", "odd", source)
    broken = registry.broken_plugins()
    assert list(broken) == ["odd"]
    assert broken["odd"].owner == "acme-odd 1.5 (acme_odd:plugin)" and broken["odd"].cause.startswith(cause)
    assert registry.list_models("birds/*") and registry.list_models("time_series/*")
    with pytest.raises(ZooError, match=r"unknown model 'odd/x': its plugin is broken \(acme-odd 1.5"):
        registry.find_model("odd/x")


def test_a_plugin_that_greets_leaves_standard_output_alone(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("acme-birds", "birds", f"print('hello from birds')\n{BIRDS}")
    assert registry.list_models("birds/*") and capsys.readouterr() == ("", "hello from birds\n")


@pytest.mark.parametrize("source", ["class Sky: pass", "class Sky: Config = dict", "Sky = 3"])
def test_a_part_without_settings(install: Install, source: str) -> None:
    install("acme-birds-models", "models_of_birds", f"{SPEC}plugin = Plugin(api={API})\n{source}")
    install("acme-birds", "birds", BIRDS)
    with pytest.raises(
        ZooError, match=r"router 'birds/sky' of acme-birds 1.5 has no settings; give acme_birds_models:S"
    ):
        registry.find("router", "birds/sky").load()


def test_a_name_of_another_kind_says_so(install: Install) -> None:
    install("acme-birds", "birds", BIRDS)
    with pytest.raises(ZooError, match="unknown model 'birds/sky': that is a router; "):
        registry.find_model("birds/sky")


def test_two_owners_of_one_name_are_both_refused(install: Install) -> None:
    install("acme-birds", "birds", BIRDS)
    install("acme-aviary", "birds", BIRDS)
    assert "birds" not in registry.list_plugins() and registry.list_models("birds/*") == []
    twin = registry.broken_plugins()["birds"]
    assert "acme-birds 1.5" in twin.owner and "acme-aviary 1.5" in twin.owner and "uninstall one" in twin.cause
    with pytest.raises(ZooError, match="acme-aviary"):
        registry.find_model("birds/wren")


def test_zoo_plugins_restricts(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme-birds", "birds", BIRDS)
    monkeypatch.setenv("ZOO_PLUGINS", " birds , absent")
    registry.refresh()
    assert list(registry.list_plugins()) == ["birds"]
    assert {name.partition("/")[0] for name in registry.list_models()} == {"birds"}
    assert registry.broken_plugins()["absent"].cause == "named in ZOO_PLUGINS but not installed"
    assert registry.entries("router")["topk"], "the core's parts are always there"


def test_list_and_help_import_no_torch(tmp_path: Path) -> None:
    code = """if True:
        import io, sys, contextlib
        from zoo import cli
        for line in (["list"], ["list", "--json"], ["--help"], ["train", "--help"], ["info", "-h"], ["eval", "-h"],
                     ["predict", "-h"], ["doctor", "-h"], ["convert", "-h"], ["new-plugin", "-h"]):
            sys.argv = ["zoo", *line]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                try:
                    cli.main()
                except SystemExit as stop:
                    assert stop.code == 0, line
            assert out.getvalue().strip(), line
        print(*{"torch", "lightning", "transformers", "pandas", "numpy", "matplotlib"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")

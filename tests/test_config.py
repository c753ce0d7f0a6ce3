"""Configs: one merge order, parts by name, near misses, and nothing that could run."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from omegaconf import MISSING

from zoo import config as zc
from zoo.spec import ZooError
from zoo.train.recipe import Recipe, read_recipe

TINY = "time_series/time_moe_tiny"


@dataclass
class Inner:
    width: int = 4
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        zc.at_least(1, self, "width")


@dataclass
class Schema:
    """Of everything that a schema may hold."""

    path: str = MISSING
    rate: float = 0.5
    names: list[str] = field(default_factory=lambda: ["x"])
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)
    router: Any = zc.part("router", "topk", k=1)
    shared: Any = zc.part("shared")
    balance: Any = zc.parts("balancer", switch={"coef": 0.5})


def told(tree: Any) -> str:
    with pytest.raises(ZooError) as caught:
        zc.resolve(Schema, {"path": "p", **tree})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_filled_and_resolving_again_changes_nothing() -> None:
    tree = zc.resolve(Schema, {"path": "p", "balance": {"switch": None, "z_loss": {}}, "router": {"renorm": True}})
    assert tree["inner"] == {"width": 4, "mode": "a"} and tree["limit"] is None and tree["shared"] is None
    assert tree["router"]["name"] == "topk" and tree["router"]["k"] == 1 and tree["router"]["renorm"] is True
    assert tree["balance"] == {"switch": None, "z_loss": {"coef": 0.001}}, "null switches a default part off for good"
    assert zc.resolve(Schema, tree) == tree
    again = yaml.safe_load(yaml.safe_dump(tree))
    assert zc.resolve(Schema, again) == tree
    made = zc.make(Schema, path="p", inner={"width": 7})
    assert isinstance(made, Schema) and isinstance(made.inner, Inner) and made.inner.width == 7


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"rats": 1}, "unknown config key 'rats'; did you mean rate?"),
        ({"inner": {"widht": 1}}, "unknown config key 'inner.widht'; did you mean width?"),
        ({"rate": "fast"}, "config key 'rate': 'fast' is not a float"),
        ({"inner": {"width": 1.5}}, "config key 'inner.width': 1.5 is not a int"),
        ({"inner": {"mode": "c"}}, "config key 'inner.mode': 'c' is not a Literal['a', 'b']"),
        ({"inner": 3}, "config key 'inner' is a section; set its keys, not 3"),
        ({"inner": None}, "config key 'inner' is a section; set its keys, not None"),
        ({"names": "x"}, "config key 'names': 'x' is not a list[str]"),
        ({"path": "???"}, "config key 'path' has no default; set it: path=..."),
        ({"router": "topq"}, "config key 'router': unknown router 'topq'; did you mean topk?"),
        ({"router": {"kk": 1}}, "unknown config key 'router.kk'; "),
        ({"router": 3}, "config key 'router' must name a router, for example router.name="),
        ({"shared": {"gate": "none"}}, "config key 'shared' must name a shared, for example shared.name="),
        ({"balance": {"swich": {}}}, "config key 'balance.swich': unknown balancer 'swich'; did you mean switch?"),
        ({"balance": {"switch": 0.1}}, "config key 'balance.switch' is a section; set its keys, not 0.1"),
        ({"balance": ["switch"]}, "config key 'balance' must map names of parts to their settings"),
    ],
)
def test_near_misses(tree: Any, message: str) -> None:
    assert told(tree).startswith(message)


def test_bounds_are_checked_when_the_section_is_made() -> None:
    with pytest.raises(ZooError, match="width=0 must be at least 1"):
        zc.make(Schema, path="p", inner={"width": 0})


def test_another_part_discards_the_settings_of_the_old_one() -> None:
    base = {"router": {"name": "topk", "k": 3, "renorm": True}, "steps": 1}
    assert zc.merge(base, {"router": {"k": 4}})["router"] == {"name": "topk", "k": 4, "renorm": True}
    assert zc.merge(base, {"router": {"name": "topk", "k": 4}})["router"]["renorm"] is True
    assert zc.merge(base, {"router": {"name": "other", "scale": 2}})["router"] == {"name": "other", "scale": 2}
    assert zc.merge(base, {"router": "other"})["router"] == {"name": "other"}
    assert zc.merge(base, {"router": None}) == {"router": None, "steps": 1}
    assert zc.merge({"router": "topk"}, {"router": {"k": 4}})["router"] == {"name": "topk", "k": 4}
    assert base["router"] == {"name": "topk", "k": 3, "renorm": True}, "nothing is changed in place"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=csv", "data.path=f"],
        ["data.path=f", "data=csv"],
        ["data.name=csv", "data.path=f"],
        ["data.path=f", "data.name=csv"],
    ],
)
def test_a_part_is_named_before_its_settings_in_any_order(overrides: list[str]) -> None:
    assert zc.from_dotlist(overrides) == {"data": {"name": "csv", "path": "f"}}


def test_values_are_yaml() -> None:
    tree = zc.from_dotlist(["a.b=1", "a.c=[x, 2]", "d=null", "e=1e-3", "f=true", "g=a=b", "a.b=2", "h="])
    assert tree == {"a": {"b": 2, "c": ["x", 2]}, "d": None, "e": 1e-3, "f": True, "g": "a=b", "h": None}
    for bad in ("stack", "=3", " =3", "a=[1", "a={"):
        with pytest.raises(ZooError):
            zc.from_dotlist([bad])


def test_merge_order(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("train: {steps: 1, batch_size: 1, log_every: 1}\n")
    (tmp_path / "high.yaml").write_text("train: {steps: 2, batch_size: 2}\noptim: {lr: 0.5}\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"defaults: [low, high]\nmodel: {{name: {TINY}, stack: {{num_layers: 1}}}}\n"
        "data: {name: statsmodels}\ntrain: {steps: 3}\n"
    )
    tree = read_recipe(str(recipe), ["model.stack.hidden_size=32"])
    assert (tree["train"]["steps"], tree["train"]["batch_size"], tree["train"]["log_every"]) == (3, 2, 1)
    assert tree["train"]["val_every"] == Recipe().train.val_every, "the schema's default is the lowest"
    assert tree["optim"]["lr"] == 0.5
    stack = tree["model"]["stack"]
    assert (stack["num_layers"], stack["hidden_size"]) == (1, 32)
    assert stack["moe"]["experts"]["intermediate_size"] == 64, "of the model's own YAML"
    assert tree["data"]["name"] == "time_series/statsmodels", "a bare name is one of the model's plugin"
    assert read_recipe(str(recipe), ["train.steps=4"])["train"]["steps"] == 4


def test_another_model_discards_the_settings_of_the_old_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {{name: {TINY}, stack: {{num_layers: 1}}}}\ndata: statsmodels\n")
    assert read_recipe(str(recipe), ["model=time_series/time_moe_base"])["model"]["stack"]["num_layers"] == 12


def test_defaults_may_be_an_installed_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [{TINY}]\ntrain: {{steps: 7}}\n")
    mine, theirs = read_recipe(str(tmp_path / "mine.yaml")), read_recipe(TINY)
    assert mine == {**theirs, "train": {**theirs["train"], "steps": 7}}


def test_defaults_that_include_themselves(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("defaults: [b]\n")
    (tmp_path / "b.yaml").write_text("defaults: [a]\n")
    with pytest.raises(ZooError, match=r"a.yaml' includes itself"):
        zc.read_with_defaults(tmp_path / "a.yaml", tmp_path)
    (tmp_path / "c.yaml").write_text("defaults: a\n")
    with pytest.raises(ZooError, match="defaults must be a list of file names"):
        zc.read_with_defaults(tmp_path / "c.yaml", tmp_path)
    (tmp_path / "d.yaml").write_text("defaults: [gone]\n")
    with pytest.raises(ZooError, match=r"gone.yaml' does not exist"):
        zc.read_with_defaults(tmp_path / "d.yaml", tmp_path)


HOSTILE = {
    "tag": "model: !!python/object/apply:os.system ['touch {0}']\n",
    "new": "model: !!python/object/new:os.system ['touch {0}']\n",
    "name": f"model: {{name: os.system, args: ['touch {{0}}']}}\ndata: statsmodels\n# {TINY}\n",
    "target": f"model: {{name: {TINY}, _target_: os.system, args: ['touch {{0}}']}}\ndata: statsmodels\n",
    "data": f"model: {TINY}\ndata: {{name: 'os:system', path: 'touch {{0}}'}}\n",
    "router": f"model: {{name: {TINY}, stack: {{moe: {{router: {{name: 'os:system'}}}}}}}}\ndata: statsmodels\n",
    "environment": f"model: {TINY}\ndata: {{name: csv, path: '${{oc.env:HOME}}'}}\n",
    "reference": f"model: {TINY}\ndata: {{name: csv, path: '${{out}}'}}\n",
    "key": f"model: {TINY}\n'${{oc.env:HOME}}': 1\ndata: statsmodels\n",
    "recursive": "model: &a {b: *a}\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_config_runs_nothing(kind: str, tmp_path: Path) -> None:
    witness = tmp_path / "it_ran"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(HOSTILE[kind].replace("{0}", str(witness)))
    with pytest.raises(ZooError):
        read_recipe(str(recipe))
    assert not witness.exists()


def test_interpolation_is_refused_everywhere(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="is an interpolation"):
        zc.from_dotlist(["optim.lr=${oc.env:HOME}"])
    (tmp_path / "deep.yaml").write_text("a: {b: [1, {c: 'x${d}'}]}\n")
    with pytest.raises(ZooError, match="is an interpolation"):
        zc.read_yaml(tmp_path / "deep.yaml")


def test_a_part_without_settings_says_so() -> None:
    with pytest.raises(ZooError, match=r"unknown config key 'a.tau'; a has no settings"):
        zc.resolve(make_dataclass("Empty", []), {"tau": 1}, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]\n", "must be a mapping"),
        ("a: 1\nb: [\n", "read as YAML: line 3: "),
        ("a: '\xff'\n", "cannot be read as YAML"),
    ],
)
def test_files_that_are_no_config(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ZooError, match=message):
        zc.read_yaml(tmp_path / "bad.yaml")


def test_a_recipe_names_models_not_weights() -> None:
    with pytest.raises(ZooError, match="means weights"):
        read_recipe(TINY, [f"model={TINY}.etth1"])

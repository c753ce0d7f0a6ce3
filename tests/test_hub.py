"""Saving and loading through a small plugin, and folders that are broken or mean harm."""

from __future__ import annotations

import errno
import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from zoo import hub, registry
from zoo.cli import main
from zoo.hub import export, layout, sources
from zoo.hub import folder as fmt
from zoo.spec import ZooError

MANIFEST = """
from zoo.spec import *
LAYOUT = Importer(
    config={"width": "hidden", "depth": "total // groups"},
    expect={"model_type": "toy"},
    fixed={"scale": 0.5},
    keys={"blocks.{n}.w": "layers.{n}.weight", "blocks.{n}.b": "layers.{n}.bias"},
)
plugin = Plugin(
    api=API,
    models=(
        ModelSpec("toy", "zoo_toy.code:Toy", "shout", pretrained={
            "first": Weights("bundled:weights/first"), "second": Weights("bundled:weights/second"),
            "public": Weights("hf-hub:someone/toy@main", importer="layout"),
        }, importers={"layout": LAYOUT}),
        ModelSpec("bare", "zoo_toy.code:Bare", "shout"),
        ModelSpec("tied", "zoo_toy.code:Tied", "shout"),
    ),
    tasks=(TaskSpec("shout", "zoo_toy.code:Shout", inputs=(
        Input("input", "what to shout", required=True), Input("times", "how often", default=1))),),
    parts=(PartSpec("gain", "constant", "zoo_toy.code:Constant"),),
)
"""

CODE = """
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
from torch import nn
from zoo import config as zc
from zoo.hub import Model

class Constant:
    @dataclass
    class Config:
        value: float = 1.0
    def __init__(self, config):
        self.value = config.value

class Toy(Model):
    @dataclass
    class Config:
        width: int = 4
        depth: int = 2
        scale: float = 1.0
        gain: Any = zc.part("gain", "toy/constant")
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.gain = zc.build("gain", config.gain)
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x * self.config.scale * self.gain.value
    def dummy_inputs(self, batch_size=2):
        return {"x": torch.ones(batch_size, self.config.width)}

class Bare(Model):
    def forward(self, x):
        return x

class Tied(Model):
    def __init__(self, config):
        super().__init__(config)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
    def forward(self, x):
        return self.second(self.first(x))

class Shout:
    @dataclass
    class Config:
        mark: str = "!"
    def __init__(self, config):
        self.config = config
    def predict(self, model, preprocessing, inputs):
        return preprocessing.get("prefix", "") + inputs["input"].upper() + self.config.mark * inputs["times"]
    def write(self, result, out):
        path = Path(out) / "shout.txt"
        path.write_text(result)
        return [path]
"""


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plugin ``toy``, found through its entry point, with two bundled weights; gives its folder."""
    package = tmp_path_factory.mktemp("toy") / "zoo_toy"
    package.mkdir()
    (package / "__init__.py").write_text(MANIFEST)
    (package / "code.py").write_text(CODE)
    installed = registry.entry_points
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        toy = EntryPoint("toy", "zoo_toy:plugin", registry.GROUP)
        patch.setattr(registry, "entry_points", lambda group: [*installed(group=group), toy])
        registry.refresh()
        for tag, width in (("first", 4), ("second", 6)):
            hub.save(package / "weights" / tag, hub.create_model("toy/toy", width=width), preprocessing={"prefix": tag})
        yield package
        for module in ("zoo_toy", "zoo_toy.code"):
            sys.modules.pop(module, None)
    registry.refresh()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a saved toy."""
    model = hub.create_model("toy/toy")
    task = {"name": "toy/shout", "mark": "?"}
    hub.save(tmp_path / "saved", model, task=task, preprocessing={"prefix": "> ", "mean": [0.1]}, extra={"seed": 1})
    return tmp_path / "saved"


def edit(folder: Path, **changes: Any) -> Path:
    """Change ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def refused(match: str, what: Any) -> str:
    """The one line with which it is refused."""
    with pytest.raises(ZooError, match=match) as caught:
        what()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- create_model ----------------------------------------------------------------------------------------------------


def test_create_model_takes_keywords_nested_and_dotted() -> None:
    model = zoo.create_model("toy/toy", width=3, **{"gain.value": 2.0})
    assert model.config.width == 3 and model.config.gain == {"name": "toy/constant", "value": 2.0}
    assert model.zoo_name == "toy/toy" and model.training
    assert zoo.create_model("toy/toy", gain={"value": 3}).config.gain["value"] == 3.0
    assert zoo.create_model("toy/toy.second").config.width == 4, "a tag alone loads nothing"
    assert model(**model.dummy_inputs()).shape == (2, 3)


def test_create_model_on_the_meta_device() -> None:
    assert all(p.is_meta for p in zoo.create_model("toy/toy", device="meta").parameters())
    refused(r"device 'cuda:99' cannot be used here", lambda: zoo.create_model("toy/toy", device="cuda:99"))
    refused(r"device 'toaster'", lambda: zoo.create_model("toy/toy", device="toaster"))


def test_create_model_refuses_with_the_near_miss() -> None:
    refused(r"'toy/tyo'; did you mean toy/toy", lambda: zoo.create_model("toy/tyo"))
    refused(r"no pretrained tag 'frist'; did you mean first", lambda: zoo.create_model("toy/toy.frist"))
    refused(r"model\.widht'; did you mean width", lambda: zoo.create_model("toy/toy", widht=3))
    refused(r"model\.gain\.vlaue'; did you mean value", lambda: zoo.create_model("toy/toy", **{"gain.vlaue": 3}))
    refused(r"model\.width': 'wide' is not a int", lambda: zoo.create_model("toy/toy", width="wide"))


def test_pretrained_means_the_tag_or_the_first(plugin: Path) -> None:
    first, second = zoo.create_model("toy/toy", pretrained=True), zoo.create_model("toy/toy.second", pretrained=True)
    assert first.config.width == 4 and second.config.width == 6 and not first.training
    assert torch.equal(first.layers[0].weight, load_file(plugin / "weights/first/model.safetensors")["layers.0.weight"])
    refused("'toy/bare' has no pretrained weights", lambda: zoo.create_model("toy/bare", pretrained=True))


def test_overrides_of_pretrained_models_keep_every_shape() -> None:
    model = zoo.create_model("toy/toy", pretrained=True, scale=3.0)
    assert model.config.scale == 3.0 and same(model, zoo.create_model("toy/toy", pretrained=True))
    message = refused("another shape", lambda: zoo.create_model("toy/toy", pretrained=True, width=5))
    assert "layers.1.weight (4, 4), wanted (5, 5)" in message and "layers.1.bias (4), wanted (5)" in message
    message = refused("missing: layers.2.weight, layers.2.bias", lambda: hub.create_model("toy/toy", True, depth=3))
    message = refused("left over: layers.1.bias, layers.1.weight", lambda: hub.create_model("toy/toy", True, depth=1))


# -- save and load ---------------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(saved: Path, tmp_path: Path) -> None:
    predictor = zoo.load(saved)
    document = json.loads((saved / "config.json").read_text())
    assert document["format"] == fmt.FORMAT and document["zoo"] == zoo.__version__ and document["extra"] == {"seed": 1}
    assert predictor.name == "toy/toy" and not predictor.model.training
    assert predictor.preprocessing == {"prefix": "> ", "mean": [0.1]} and predictor.task.config.mark == "?"
    weights = load_file(saved / "model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in predictor.model.state_dict().items())
    assert predictor.write(predictor.predict(input="hello"), tmp_path) == [tmp_path / "shout.txt"]
    assert (tmp_path / "shout.txt").read_text() == "> HELLO?"


def test_load_by_every_kind_of_name(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    refused("run did not finish; train on with resume=last", lambda: zoo.load(run))
    (saved).rename(run / "model")
    monkeypatch.chdir(tmp_path)
    for name in (run, str(run), "run", "./run", f"local-dir:{run}", run / "model"):
        assert zoo.load(name).name == "toy/toy"
    tagged = zoo.load("toy/toy.second")
    assert tagged.name == "toy/toy.second" and tagged.model.config.width == 6
    assert tagged.task.config.mark == "!", "without a saved task it is the model's own, with its defaults"


def test_inputs_are_checked() -> None:
    predictor = zoo.load("toy/toy.first")
    assert predictor.predict(input="a", times=3) == "firstA!!!"
    refused("unknown input 'inptu' of toy/toy.first; did you mean input", lambda: predictor.predict(inptu="a"))
    refused(r"toy/toy.first needs input=... \(what to shout\)", lambda: predictor.predict(times=2))


def test_from_pretrained_and_back_loses_nothing(saved: Path, tmp_path: Path) -> None:
    cls = type(zoo.create_model("toy/toy"))
    model = cls.from_pretrained(saved, scale=2.0)
    assert model.config.scale == 2.0 and not model.training and same(model, zoo.load(saved).model)
    of_the_base = hub.Model.from_pretrained(saved, scale=2.0)
    assert type(of_the_base) is cls and same(of_the_base, model) and of_the_base.config == model.config
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").is_file()
    again = zoo.load(tmp_path / "again")
    assert again.model.config.scale == 2.0 and same(again.model, model)
    assert again.predict(input="a") == "> A?", "task and preprocessing travel with the model"


def test_push_to_hub_sends_the_saved_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, set[str]] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            sent[repo_id] = {p.name for p in Path(folder_path).iterdir()}
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert zoo.create_model("toy/toy").push_to_hub("someone/toy") == "https://hub/someone/toy"
    assert sent == {"someone/toy": {"config.json", "model.safetensors", "README.md"}}


@pytest.mark.parametrize("name", ["toy/tied", "toy/bare"])
def test_tied_weights_and_none_at_all(name: str, tmp_path: Path) -> None:
    model = zoo.create_model(name)
    hub.save(tmp_path, model)
    loaded = zoo.load(tmp_path).model
    assert same(loaded, model)
    if name == "toy/tied":
        assert loaded.first.weight is loaded.second.weight


def test_half_precision_weights_come_back_in_fp32(tmp_path: Path) -> None:
    model = zoo.create_model("toy/toy").bfloat16()
    hub.save(tmp_path, model)
    loaded = zoo.load(tmp_path).model
    assert loaded.layers[0].weight.dtype == torch.float32 and same(loaded, model.float())


class Private(hub.Model):
    @dataclass
    class Config:
        size: int = 2

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = torch.nn.Linear(config.size, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_a_class_that_nobody_registered(tmp_path: Path) -> None:
    model = Private(Private.Config(size=3))
    model.save_pretrained(tmp_path)
    assert same(Private.from_pretrained(tmp_path), model)
    refused("not registered; use CLASS.from_pretrained", lambda: zoo.load(tmp_path))
    with pytest.raises(TypeError, match=r"Private .* define dummy_inputs"):
        model.dummy_inputs()


def test_a_registered_class_built_by_hand_finds_its_name(tmp_path: Path) -> None:
    cls = type(zoo.create_model("toy/toy"))
    hub.save(tmp_path, cls(zoo.create_model("toy/toy").config))
    assert zoo.load(tmp_path).name == "toy/toy"


def test_saving_over_an_older_model_keeps_other_files(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    hub.save(saved, zoo.create_model("toy/toy", width=7))
    assert zoo.load(saved).model.config.width == 7
    assert {p.name for p in saved.iterdir()} == {"notes.txt", "config.json", "model.safetensors"}


def test_a_full_disk_leaves_the_older_model_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fmt, "save_file", full)
    refused("No space left.*free some space", lambda: hub.save(saved, zoo.create_model("toy/toy", width=7)))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_new_weights_never_stand_beside_an_old_config(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = fmt.os.replace, 0

    def killed(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(fmt.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        hub.save(saved, zoo.create_model("toy/toy"), preprocessing={"prefix": "new"})
    refused("neither a saved model", lambda: zoo.load(saved))


def test_only_plain_data_is_saved(tmp_path: Path) -> None:
    model = zoo.create_model("toy/toy")
    for odd in ({"means": [torch.ones(1)]}, {"mean": float("nan")}, {"f": print}):
        refused("must be plain data", lambda odd=odd: hub.save(tmp_path, model, preprocessing=odd))
    assert list(tmp_path.iterdir()) == []


# -- broken and hostile folders --------------------------------------------------------------------------------------


def test_folders_that_hold_no_model(tmp_path: Path, saved: Path) -> None:
    refused("nowhere' does not exist", lambda: zoo.load(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    refused(r"neither a saved model.*nor a run folder", lambda: zoo.load(tmp_path / "empty"))
    refused("is a file.*name the folder", lambda: zoo.load(saved / "model.safetensors"))
    torch.save({}, tmp_path / "empty" / "pytorch_model.bin")
    refused(r"pickled weights \(pytorch_model.bin\).*zoo convert", lambda: zoo.load(tmp_path / "empty"))
    refused("is a file.*zoo convert", lambda: zoo.load(tmp_path / "empty" / "pytorch_model.bin"))
    (saved / "model.safetensors").unlink()
    refused("model.safetensors' does not exist", lambda: zoo.load(saved))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 7}, "is in format 7, this zoo reads 1"),
        ({"format": "1"}, "is in format '1', this zoo reads 1"),
        ({"format": None}, "no format number.*zoo convert"),
        ({"model": None}, "name, model or task is missing"),
        ({"preprocessing": [1]}, "preprocessing must be a mapping"),
        ({"model": {"widht": 4}}, "did you mean width"),
        ({"model": {"width": "${oc.env:HOME}"}}, "is an interpolation"),
        ({"model": {"gain": {"name": "${oc.env:HOME}"}}}, "is an interpolation"),
        ({"name": "toy/gone"}, "unknown model 'toy/gone'"),
    ],
)
def test_configs_that_do_not_fit(saved: Path, changes: dict[str, Any], match: str) -> None:
    refused(match, lambda: zoo.load(edit(saved, **changes)))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": ' * 100_000], ids=["empty", "cut", "list", "deep"])
def test_a_config_that_is_no_json_object(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    refused("config.json' (cannot be read as JSON|must hold a JSON object)", lambda: zoo.load(saved))


@pytest.mark.parametrize("evil", ["os.system", "os:system", "zoo_toy.code:Toy", "builtins:eval"])
@pytest.mark.parametrize("place", ["model", "part", "task"])
def test_a_config_names_registered_things_only(saved: Path, place: str, evil: str, tmp_path: Path) -> None:
    command = f"touch {tmp_path / 'ran'}"
    changes: dict[str, Any] = {
        "model": {"name": evil, "model": {"command": command}},
        "part": {"model": {"gain": {"name": evil, "command": command, "_target_": evil}}},
        "task": {"task": {"name": evil, "command": command}},
    }[place]
    refused(f"unknown (model|gain|task) '{evil}", lambda: zoo.load(edit(saved, **changes)))
    assert not (tmp_path / "ran").exists()


def test_other_sections_are_not_read(saved: Path) -> None:
    edit(saved, callbacks=[{"name": "os.system"}], logger="${oc.env:HOME}", out="/etc")
    assert zoo.load(saved).name == "toy/toy"


class Bomb:
    """Pickles into a call that creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def bomb(path: Path, kind: str) -> Path:
    """A hostile pickle at ``path``; running it would create ``ran`` beside it."""
    content = {"layers.0.weight": torch.ones(4, 4), "x": Bomb(path.parent / "ran")}
    if kind == "torch.save":
        torch.save(content, path)
    elif kind == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))
    return path


KINDS = pytest.mark.parametrize("kind", ["torch.save", "legacy", "pickle"])


@KINDS
def test_a_pickle_under_the_name_of_weights_is_not_opened(saved: Path, kind: str) -> None:
    bomb(saved / "model.safetensors", kind)
    refused("is a pickle.*never loaded.*zoo convert", lambda: zoo.load(saved))
    assert not (saved / "ran").exists()


@pytest.mark.parametrize("keep", [0, 4, 7, 8, 60, 300, -1])
def test_truncated_weights_are_one_line(saved: Path, keep: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused("truncated or no safetensors", lambda: zoo.load(saved))


def test_missing_and_left_over_keys_are_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "layers.9.weight": torch.ones(1)}, file)
    refused("left over: layers.9.weight", lambda: zoo.load(saved))
    save_file({k: v for k, v in tensors.items() if k != "layers.1.bias"}, file)
    refused("missing: layers.1.bias", lambda: zoo.load(saved))
    save_file({**tensors, "layers.1.bias": torch.ones(4, dtype=torch.int64)}, file)
    refused(r"another shape: layers.1.bias \(4\) int64, wanted \(4\)", lambda: zoo.load(saved))


# -- the Hugging Face hub --------------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_configs_and_safetensors_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return str(saved)

    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    assert zoo.load("hf-hub:someone/model@v1").name == "toy/toy"
    assert type(zoo.create_model("toy/toy")).from_pretrained("someone/model", revision="v1").config.width == 4
    wanted = (("someone/model",), {"revision": "v1", "allow_patterns": ["*.json", "*.safetensors"]})
    assert asked == [wanted, wanted]


def test_no_connection_is_one_line() -> None:
    refused("cannot fetch 'someone/model'.*local-dir:FOLDER", lambda: zoo.load("hf-hub:someone/model"))
    refused("neither a folder nor the name", lambda: zoo.load("hf-hub:a/b/c"))
    refused("unknown source of weights 'ftp:x'", lambda: sources.locate("ftp:x"))


# -- importers and zoo convert ---------------------------------------------------------------------------------------


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A checkpoint in the layout that the toy's importer reads: bf16, two shards with an index."""
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "hidden": 3, "total": 4, "groups": 2}))
    index = {}
    for n in range(2):
        shard = {f"blocks.{n}.w": torch.randn(3, 3).bfloat16(), f"blocks.{n}.b": torch.randn(3).bfloat16()}
        save_file(shard, folder / f"model-{n}.safetensors")
        index |= dict.fromkeys(shard, f"model-{n}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def from_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(folder))


def test_a_public_checkpoint_loads_through_its_importer(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_hub(monkeypatch, public)
    for name in ("toy/toy.public", "hf-hub:someone/toy", "hf-hub:someone/toy@abc"):
        predictor = zoo.load(name)
        config = predictor.model.config
        assert (config.width, config.depth, config.scale) == (3, 2, 0.5) and predictor.name == name
        weight = load_file(public / "model-1.safetensors")["blocks.1.w"]
        assert torch.equal(predictor.model.layers[1].weight, weight.float())


def test_importers_are_exact(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_hub(monkeypatch, public)

    def config(**changes: Any) -> None:
        settings = {"model_type": "toy", "hidden": 3, "total": 4, "groups": 2, **changes}
        (public / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))

    def load() -> Any:
        return zoo.load("toy/toy.public")

    config(model_type="other")
    refused("model_type='other'; only model_type='toy' can be read", load)
    config(hidden=None)
    refused("lacks 'hidden', which sets width", load)
    config(groups=3)
    refused("4 // 3, not a whole number for depth", load)
    config(total="4")
    refused("not a whole number", load)
    config(hidden=5)
    refused(r"another shape: blocks.0.w \(3, 3\), wanted \(5, 5\) for layers.0.weight", load)
    config(total=6)
    refused(r"missing: blocks.2.w, blocks.2.b", load)
    config(total=2)
    refused(r"left over: blocks.1.b, blocks.1.w", load)
    config()
    (public / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../saved/x.safetensors"}}))
    refused("names '../saved/x.safetensors', which is not a file beside it", load)
    (public / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-9.safetensors"}}))
    refused("model-9.safetensors' does not exist", load)


def test_blocks_of_rows_are_taken_apart_and_put_together() -> None:
    given = {"0.qkv": torch.arange(12.0).view(6, 2), "0.odd": torch.zeros(4, 2)}
    rows = layout.Rows(given, ["{n}.qkv[0/3]", "{n}.odd[2/3]"])
    assert set(rows) == {"0.qkv[0/3]", "0.qkv[1/3]", "0.qkv[2/3]", "0.odd"}, "4 rows are no three blocks"
    assert rows["0.qkv[1/3]"].tolist() == [[4, 5], [6, 7]]
    back = export._whole({key: rows[key] for key in reversed(list(rows))})
    assert all(torch.equal(back[key], value) for key, value in given.items())
    assert layout.speaks(["{n}.qkv[0/3]"], ["x", "7.qkv"]) and not layout.speaks(["{n}.qkv"], ["7.qk"])


def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and output of the command line."""
    monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out + err


Cli = Any


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return lambda *arguments: cli(monkeypatch, capsys, "convert", *arguments)


@pytest.mark.parametrize("wrap", [{}, {"state_dict": "model."}, {"model": "module."}, {"legacy": ""}])
def test_pickled_weights_are_converted(convert: Cli, tmp_path: Path, wrap: dict[str, str]) -> None:
    model = zoo.create_model("toy/toy", width=3)
    key, prefix = next(iter(wrap.items()), ("", ""))
    state: Any = {prefix + name: value for name, value in model.state_dict().items()}
    source = tmp_path / "weights.ckpt"
    torch.save({key: state} if prefix else state, source, _use_new_zipfile_serialization=key != "legacy")
    code, out = convert(source, "--to", tmp_path / "to", "--model", "toy/toy", "width=3")
    assert code == 0 and "toy/toy, 24 parameters" in out
    assert same(zoo.load(tmp_path / "to").model, model)


def test_public_checkpoints_are_converted(convert: Cli, public: Path, tmp_path: Path) -> None:
    code, _ = convert(public, "--to", tmp_path / "to")
    assert code == 0, "the only model whose importer expects such a config needs no --model"
    tensors: dict[str, Tensor] = {}
    for shard in public.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (public / "model.safetensors.index.json").unlink()
    for n in range(2):
        torch.save({k: v for k, v in tensors.items() if f".{n}." in k}, public / f"pytorch_model-{n}.bin")
    assert convert(public, "--to", tmp_path / "pickled", "--model", "toy/toy", "--importer", "layout")[0] == 0
    first, second = zoo.load(tmp_path / "to"), zoo.load(tmp_path / "pickled")
    assert same(first.model, second.model) and first.model.config == second.model.config
    assert torch.equal(first.model.layers[0].weight, tensors["blocks.0.w"].float())


@KINDS
@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.ckpt", "evil.safetensors"])
def test_convert_runs_no_code(convert: Cli, tmp_path: Path, kind: str, name: str) -> None:
    source = bomb(tmp_path / name, kind)
    code, out = convert(source, "--to", tmp_path / "to", "--model", "toy/toy")
    assert code == 2 and out.count("\n") == 1 and name in out
    assert not (tmp_path / "ran").exists() and not (tmp_path / "to").exists()


@KINDS
def test_the_bomb_is_live(tmp_path: Path, kind: str) -> None:
    file = bomb(tmp_path / "evil.pt", kind)
    pickle.loads(file.read_bytes()) if kind == "pickle" else torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_convert_says_what_is_wrong(convert: Cli, tmp_path: Path, public: Path, saved: Path) -> None:
    def told(*arguments: object) -> str:
        code, out = convert(*arguments)
        assert code == 2 and out.count("\n") == 1
        return str(out)

    weights, to = tmp_path / "w.pt", ("--to", tmp_path / "to")
    assert "does not exist" in told(tmp_path / "no.pt", *to)
    torch.save(torch.ones(3), weights)
    assert "name it with --model" in told(weights, *to)
    assert "holds a Tensor, not named tensors" in told(weights, *to, "--model", "toy/toy")
    torch.save({"layers.0.weight": torch.ones(4, 4), "epoch": 3}, weights)
    assert "more than named tensors (epoch)" in told(weights, *to, "--model", "toy/toy")
    torch.save({"layers.0.weight": torch.ones(4, 4)}, weights)
    assert "missing: layers.0.bias" in told(weights, *to, "--model", "toy/toy")
    assert "no importer 'layuot'; did you mean layout" in told(public, *to, "--importer", "layuot")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gpt_oss"}')
    save_file({"a": torch.ones(2)}, tmp_path / "other" / "model.safetensors")
    assert "is of type 'gpt_oss', and no installed model reads that layout; " in told(tmp_path / "other", *to)
    assert "put its config.json at" in told(weights, *to, "--model", "toy/toy", "--importer", "layout")
    assert "name another folder" in told(public, "--to", public)
    weights.write_bytes(weights.read_bytes()[:-200])
    assert "truncated or more than plain weights" in told(weights, *to, "--model", "toy/toy")
    assert not (tmp_path / "to").exists()


def test_tensors_of_the_preprocessing_travel_beside_the_weights(tmp_path: Path) -> None:
    model = zoo.create_model("toy/toy")
    scale = {"codec": {"weights": {"a.b": torch.arange(3.0), "c": torch.tensor(2)}, "rate": 8}, "names": ["x"]}
    hub.save(tmp_path / "m", model, preprocessing=scale)
    again = hub.load(tmp_path / "m").preprocessing
    assert again["names"] == ["x"] and again["codec"]["rate"] == 8
    assert all(torch.equal(again["codec"]["weights"][key], value) for key, value in scale["codec"]["weights"].items())
    loaded = hub.load(tmp_path / "m")
    hub.save(tmp_path / "again", loaded.model)
    assert (tmp_path / "again" / fmt.PREPROCESSING).is_file(), "saved again with what it was loaded with"
    hub.save(tmp_path / "again", loaded.model, preprocessing={})
    assert not (tmp_path / "again" / fmt.PREPROCESSING).exists()
    (tmp_path / "m" / fmt.PREPROCESSING).unlink()
    with pytest.raises(ZooError, match=r"preprocessing\.safetensors' does not exist"):
        hub.load(tmp_path / "m")

"""The command line: every mistake is one line that says what to do, and JSON stands alone on standard output."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from zoo import cli, hub

TINY = "time_series/time_moe_tiny"
CSV = (TINY, "data=csv", "data.context=8", "data.horizon=2")
SMALL = (
    "model.stack.num_layers=1", "model.stack.hidden_size=16", "model.stack.mixer.num_heads=2", "data.series=sunspots",
    "data.context=16", "data.horizon=4", "train.batch_size=2", "train.eval_batch_size=8", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved forecaster with its preprocessing."""
    stack = {"num_layers": 1, "hidden_size": 16, "mixer": {"num_heads": 2}}
    model = hub.create_model(TINY, stack=stack)
    numbers = {"context": 16, "horizon": 4, "season": 1, "frequency": "rows", "columns": ["x"], "mean": [0], "std": [1]}
    hub.save(tmp_path_factory.mktemp("saved") / "model", model, preprocessing=numbers)
    return tmp_path_factory.getbasetemp() / "saved0" / "model"


def told(done: Any) -> str:
    """The one line of an error."""
    assert done.code == 2, done
    lines = done.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], done.err
    assert "Traceback" not in done.err and done.out == ""
    return errors[0].removeprefix("error: ")


NAMES = {
    ("info", "time_series/time_moe_tny"): "unknown model 'time_series/time_moe_tny'; did you mean",
    ("info", "nope/x"): "unknown model 'nope/x'; known: ",
    ("info", f"{TINY}.nope"): f"model '{TINY}' has no pretrained tag 'nope'; known: ",
    ("info", TINY, "stack.hiden_size=3"): "unknown config key 'model.stack.hiden_size'; did you mean hidden_size?",
    ("info", TINY, "stack.hidden_size=big"): "config key 'model.stack.hidden_size': 'big' is not a int",
    ("info", TINY, "stack.hidden_size=-4"): "hidden_size=-4 must be at least 1",
    ("info", TINY, "stack.mixer.num_heads=3"): "hidden_size=64 is not a multiple of num_heads=3",
    ("info", TINY, "stack.moe.router.k=9"): "router k=9 must lie between 1 and num_experts=8",
    ("info", TINY, "stack"): "'stack' is not an override; write key=value",
    ("info", TINY, "stack.num_layers=0"): "moe.balance sets switch, but the model has no MoE layer; remove it",
    ("list", "--task", "forecastin"): "unknown task 'forecastin'; did you mean time_series/forecasting?",
    ("train", "nope/x"): "unknown recipe 'nope/x'; known: ",
    ("train", "time_series/time_moe_tini"): "unknown recipe 'time_series/time_moe_tini'; did you mean",
    ("train", "none.yaml"): "config 'none.yaml' does not exist; check the path",
    ("train", TINY, "data=etr"): "config key 'data': unknown data set 'time_series/etr'; did you mean",
    ("train", TINY, "data=csv"): "config key 'data.path' has no default; set it: data.path=...",
    ("train", TINY, "data.series=co3"): "config key 'data.series': 'co3' is not a Literal",
    ("train", TINY, "train.stpes=3"): "unknown config key 'train.stpes'; did you mean steps?",
    ("train", TINY, "train.steps=0"): "steps=0 must be at least 1",
    ("train", TINY, "optim.lr=-1"): "lr=-1.0 must be at least 0",
    ("train", TINY, "optim.betas=[0.9,1]"): "betas=[0.9, 1.0] must be at least 0 and below 1",
    ("train", TINY, "model.stack.init_std=nan"): "init_std=nan must be at least 0",
    ("train", TINY, "optim.lr=nan"): "lr=nan must be at least 0",
    ("train", TINY, "seed=-1"): "seed=-1 must lie between 0 and 4294967295",
    ("train", TINY, f"seed={2**32}"): "seed=4294967296 must lie between 0 and",
    ("train", TINY, "data=null"): f"recipe '{TINY}' names no data set; set data.name=..., known: time_series/csv",
    ("train", "language/mixtral_tiny", "data=time_series/statsmodels"): (
        "data Statsmodels of zoo_time_series are not of the kind that task Modeling of zoo_language takes; "
    ),
    ("train", TINY, "model.stack.moe.experts=null"): "'experts' is null where a name is needed, for example ",
    ("train", TINY, "precision=fp8"): "config key 'precision': 'fp8' is not a Literal",
    ("train", TINY, "device=abacus"): "device 'abacus' cannot be used here: ",
    ("train", TINY, "train.strategy=nope", *SMALL): "device=cpu, devices=1 and strategy=nope do not work here: ",
    ("train", TINY, "resume=last"): "nothing to resume: there is no run in runs/time_series/time_moe_tiny; ",
    ("train", TINY, "resume=nowhere"): "'nowhere' is not a run folder: it holds no config.yaml; name one",
    ("eval", "nope/x"): "unknown model 'nope/x'; known: ",
    ("eval", "time_series/naive"): "'time_series/naive' brings no data of its own; name some with data=..., known: ",
    (
        "eval",
        "language/mixtral_tiny",
    ): ("'language/mixtral_tiny' brings no data of its own; name some with data=..., known: language/"),
    ("eval", f"{TINY}.etth1", "limit=abc"): "limit='abc' must be at least 1",
    ("eval", f"{TINY}.etth1", "batch_size=0"): "batch_size=0 must be at least 1",
    ("eval", f"{TINY}.etth1", "split=tst"): "split='tst' is no split of the data; choose one of train, val, test",
    ("train", TINY, "data=language/bytes"): "data Bytes hold no series to forecast; choose others: zoo list",
    ("trace", "nope/x"): "unknown model 'nope/x'; known: ",
    ("trace", f"{TINY}.etth1", "split=tst"): "split='tst' is no split of the data; choose one of train, val, test",
    ("eval", f"{TINY}.etth1", "limit=4", "--update-card"): "a card tells of whole splits; leave out limit=4, or --upd",
    ("eval", TINY, "--update-card"): f"'{TINY}' names no tag, and a card is kept for tags; write it as {TINY}.TAG",
    ("predict", "language/mixtral_tiny", "prompt=x", "seed=abc"): "seed='abc' must be a whole number, such as 0",
    ("predict", "language/mixtral_tiny", "prompt=x", "seed=1.5"): "seed=1.5 must be a whole number, such as 0",
    ("predict", "language/mixtral_tiny", "prompt=x", "top_p=much"): "top_p='much' must be a number, such as 1.0",
    ("eval", TINY, "spit=test"): "unknown setting 'spit' of zoo eval; did you mean split?",
    ("predict", "time_series/naive", "input=x.csv"): "model 'time_series/naive' has no pretrained weights; train it",
    ("new-plugin", "A-b"): "'A-b' cannot name a plugin; use lower-case letters",
    ("convert", "none.pt", "--to", "x"): "'none.pt' does not exist; name a file or folder of weights",
}


@pytest.mark.parametrize("line", NAMES, ids=" ".join)
def test_mistakes(zoo: Callable[..., Any], line: tuple[str, ...], tmp_path: Path) -> None:
    assert told(zoo(*line)).startswith(NAMES[line])
    assert list(tmp_path.iterdir()) == [], "nothing was written"


TABLES = {
    "no_numbers": ("a,b\nx,y\nz,w\n", (), "has no numeric column with values (found: a, b)"),
    "too_few": ("a\n1\n2\n3\n", (), "3 rows are too few for horizon=2, which needs 7; "),
    "one_empty": ("a,b\n" + "1,\n" * 40, ("data.columns=[b]",), "column 'b' holds no value at all; "),
    "all_empty": ("b,c\n" + ",\n" * 40, (), "has no numeric column with values"),
    "unknown": ("a,b\n" + "1,2\n" * 40, ("data.columns=[c]",), "has no column 'c'; "),
    "blank": ("", (), "is empty; give a table"),
    "binary": ("\0\1", (), "is binary, not a CSV; "),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_cannot_be_used(zoo: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    text, more, message = TABLES[kind]
    (tmp_path / "t.csv").write_text(text)
    line = told(zoo("train", *CSV, "data.path=t.csv", *more))
    assert "'t.csv'" in line and message in line
    assert "'gone.csv' does not exist; check the path" in told(zoo("train", *CSV, "data.path=gone.csv"))


def test_weights_that_cannot_be_used(zoo: Callable[..., Any], saved: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (tmp_path / "t.csv").write_text("x\n" + "1\n2\n" * 20)
    predict = ("predict", "./bad", "input=t.csv", "--out", "o")
    assert told(zoo(*predict)).startswith("'bad' is neither a saved model")
    assert told(zoo("info", "bad")).startswith("'bad' is neither a saved model")
    assert told(zoo("eval", "./gone", "data=csv")).startswith("'gone' does not exist; check the path")
    (bad / "config.json").write_bytes((saved / "config.json").read_bytes())
    assert "does not exist; save or download the model again" in told(zoo(*predict))
    whole = (saved / "model.safetensors").read_bytes()
    for rest in (whole[:-7], whole[:40], b""):
        (bad / "model.safetensors").write_bytes(rest)
        assert "is truncated or no safetensors file" in told(zoo(*predict))

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'it_ran'}",)

    torch.save(Hostile(), bad / "model.safetensors")
    assert "is a pickle, which could run code and is never loaded; convert it: zoo convert" in told(zoo(*predict))
    (bad / "model.safetensors").write_bytes(pickle.dumps(Hostile()))
    assert "is a pickle" in told(zoo(*predict))
    (bad / "model.safetensors").rename(bad / "weights.pt")
    assert "nothing in it was run" in told(zoo("convert", "bad/weights.pt", "--to", "x", "--model", TINY))
    (bad / "config.json").unlink()
    assert "holds pickled weights (weights.pt)" in told(zoo(*predict))
    assert not (tmp_path / "it_ran").exists()


def test_predict_inputs(zoo: Callable[..., Any], saved: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x\n" + "1\n2\n" * 20)
    assert "needs input=... (CSV or parquet file" in told(zoo("predict", str(saved)))
    assert "unknown input 'horizn' of" in told(zoo("predict", str(saved), "input=t.csv", "horizn=3"))
    assert "horizon=much must be a number of points" in told(zoo("predict", str(saved), "input=t.csv", "horizon=much"))
    assert "'gone.csv' does not exist" in told(zoo("predict", str(saved), "input=gone.csv"))
    assert "device 'cuda:77' cannot be used here" in told(zoo("predict", str(saved), "input=t.csv", "device=cuda:77"))
    assert not (tmp_path / "out").exists(), "what is refused leaves no folder behind"
    assert "--out t.csv is a file; name a folder" in told(zoo("predict", str(saved), "input=t.csv", "--out", "t.csv"))
    done = zoo("predict", str(saved), "input=t.csv", "horizon=3", "--out", "o", "--json")
    assert done.code == 0 and json.loads(done.out)["files"][0] == "o/forecast.csv"
    assert "data: no time column" in done.err


def test_out_that_is_no_folder(zoo: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = told(zoo("train", TINY, *SMALL, "--out", "file", "--fast-dev-run"))
    assert line.startswith("cannot make the run folder 'file/time_series/time_moe_tiny': ") and "--out" in line


def test_a_loss_that_is_not_a_number(zoo: Callable[..., Any], tmp_path: Path) -> None:
    line = told(zoo("train", TINY, *SMALL, "optim.lr=1e30", "train.steps=9", "optim.warmup=0"))
    assert line.startswith("the loss is nan at step 1; lower optim.lr") and "resume=last" in line
    assert told(zoo("eval", "runs/time_series/time_moe_tiny")).startswith("run folder 'runs/time_series/time_moe_tiny'")


@pytest.mark.parametrize("write", ["checkpoint", "weights"])
def test_a_full_disk(zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, write: str, tmp_path: Path) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith({"checkpoint": ".ckpt", "weights": ".safetensors"}[write]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    line = told(zoo("train", TINY, *SMALL, "train.steps=2"))
    assert "No space left on device" in line and "free some space" in line
    assert list(tmp_path.rglob("*.new")) == [], "half a checkpoint is not left behind"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\n Tried"),
            "out of memory: CUDA out of memory. Tried; lower train.",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPU"),
        (MemoryError(), "out of memory: "),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "cannot use 'x/y': Permission denied; change its"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x/y"), "cannot use 'x/y': Disk quota exceeded; free space or"),
    ],
)
def test_a_machine_that_is_too_small(
    zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("zoo.registry.list_models", fail)
    assert told(zoo("list")).startswith(said)
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        monkeypatch.setattr("zoo.registry.list_models", lambda *_, **__: (_ for _ in ()).throw(error))
        zoo("list")


def test_a_recipe_that_is_a_file_here(zoo: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert told(zoo("train", "mine")) == "unknown recipe 'mine'; did you mean mine.yaml?"


def test_a_resumed_run_keeps_its_settings(zoo: Callable[..., Any], tmp_path: Path) -> None:
    assert zoo("train", TINY, *SMALL, "--fast-dev-run").code == 0
    assert "'optim.lr=3' cannot change in a resumed run" in told(zoo("train", TINY, "optim.lr=3", "resume=last"))
    assert "optim.lr=3' cannot change" in told(zoo("train", TINY, *SMALL, "optim.lr=3", "resume=last"))
    assert zoo("train", TINY, *SMALL, "--fast-dev-run", "resume=last").code == 0, "the same line again"
    other = told(zoo("train", "time_series/seg_moe_etth1", f"resume=runs/{TINY}"))
    assert other == f"'runs/{TINY}' is a run of {TINY}, not of time_series/seg_moe; name a recipe of the former"
    (tmp_path / "runs/time_series/time_moe_tiny/config.yaml").write_text("model: [")
    assert "cannot be read as YAML" in told(zoo("train", TINY, "resume=last"))


def test_debug_shows_the_traceback(zoo: Callable[..., Any]) -> None:
    for line in (("--debug", "info", "nope/x"), ("info", "--debug", "nope/x"), ("info", "nope/x", "--debug")):
        with pytest.raises(cli.ZooError, match="unknown model 'nope/x'"):
            zoo(*line)
    command = [sys.executable, "-c", "from zoo.cli import main; main()", "--debug", "list", "--task", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" in done.stderr and "unknown task 'x'" in done.stderr


@pytest.mark.parametrize("line", [("info", TINY, "--nope"), ("info",), ("nope",), ("train", "--out")], ids=" ".join)
def test_usage(zoo: Callable[..., Any], line: tuple[str, ...]) -> None:
    done = zoo(*line)
    assert done.code == 2 and done.out == "" and "Error" in done.err and "Traceback" not in done.err


def test_interrupted(zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.registry.list_models", stop)
    assert zoo("list").code == 130


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    code = "from zoo.cli import main; main()"
    command = [sys.executable, "-c", code, "list", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read().decode()
    assert process.wait(60) in (0, 1) and "Traceback" not in errors, errors


@pytest.mark.parametrize("line", [("list",), ("info", TINY), ("doctor",)], ids=" ".join)
def test_json_stands_alone(zoo: Callable[..., Any], line: tuple[str, ...]) -> None:
    done = zoo(*line, "--json")
    assert done.code == 0 and isinstance(json.loads(done.out), dict)
    assert zoo(*line).code == 0


def test_parts_are_listed(zoo: Callable[..., Any]) -> None:
    def parts(*line: str) -> set[tuple[str, str]]:
        return {(part["kind"], part["name"]) for part in json.loads(zoo("list", *line, "--json").out)["parts"]}

    assert ("vocabulary", "language/byte") in parts() and ("selector", "topk") not in parts()
    assert parts("topk") == {("router", "topk"), ("selector", "topk")} and "selector" in zoo("list", "topk").out
    assert parts("--task", "forecasting") == set()


def test_info_takes_the_settings_of_a_recipe(zoo: Callable[..., Any]) -> None:
    bare, whole = (json.loads(zoo("info", TINY, f"{key}stack.num_layers=3", "--json").out) for key in ("", "model."))
    assert bare == whole and bare["config"]["stack"]["num_layers"] == 3


def test_cfg_prints_what_runs(zoo: Callable[..., Any], tmp_path: Path) -> None:
    printed = zoo("train", TINY, *SMALL, "--cfg")
    tree = yaml.safe_load(printed.out)
    assert tree["model"]["stack"]["hidden_size"] == 16 and tree["train"]["batch_size"] == 2
    (tmp_path / "again.yaml").write_text(printed.out)
    assert yaml.safe_load(zoo("train", "again.yaml", "--cfg").out) == tree
    assert zoo("train", TINY, *SMALL, "--fast-dev-run").code == 0
    assert yaml.safe_load((tmp_path / "runs/time_series/time_moe_tiny/config.yaml").read_text()) == tree
    done = zoo("eval", "runs/time_series/time_moe_tiny", "limit=4", "rivals=[time_series/naive]", "--json")
    document = json.loads(done.out)
    assert document["items"] == 4 and document["settings"] == {"rivals": ["time_series/naive"]}
    assert list(document["rivals"]) == ["naive"], "a setting of the task, as told"

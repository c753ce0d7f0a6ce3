"""`zoo bench`: the document it writes, what it refuses and leaves out, and saved bytes against the analytic minimum."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from zoo.bench.layer import SHAPES, Shape, bench_layer, contenders, parse_dtype, parse_shape, too_slow
from zoo.bench.memory import saved_bytes
from zoo.bench.model import parse_shape as parse_model
from zoo.cli import app
from zoo.spec import ZooError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_document_and_saved_bytes(dtype: torch.dtype) -> None:
    shape = Shape(40, 32, 16, 6, 2)
    document = bench_layer("tiny", shape, True, 2, dtype)
    assert f"torch.{document['dtype']}" == str(dtype)
    timed = {(row["pass"], row["contender"]) for row in document["results"]}
    for name in ("zoo", "zoo in HF", "HF grouped_mm", "HF eager", "HF batched_mm", "dense", "GEMM limit"):
        assert {("forward", name), ("forward+backward", name)} <= timed
    assert document["saved_bytes"]["zoo in HF"] == document["saved_bytes"]["zoo"] == document["minimum_bytes"]
    assert document["saved_bytes"]["HF grouped_mm"] > 2 * document["minimum_bytes"]
    assert {"load_average"} <= document["contention"].keys()


def test_quantised_experts_are_timed_where_it_is_decoding() -> None:
    rows = bench_layer("decode", Shape(4, 16, 8, 3, 2), True, 2)["results"]
    timed = {(row["pass"], row["contender"]) for row in rows}
    assert {("forward", "zoo int8"), ("forward", "zoo ternary")} <= timed
    assert not {("forward+backward", "zoo int8"), ("forward+backward", "zoo ternary")} & timed
    assert "zoo int8" not in contenders(Shape(40, 16, 8, 3, 2))
    ternary = contenders(Shape(4, 18, 8, 3, 2))  # 18 is no multiple of 4
    assert "zoo int8" in ternary and "zoo ternary" not in ternary


def test_saved_bytes_counts_a_storage_once_and_no_parameter() -> None:
    weight, x = torch.nn.Parameter(torch.randn(4, 4)), torch.randn(8, 4, requires_grad=True)
    assert saved_bytes(lambda: (x @ weight) * (x @ weight.T), [weight]) == 3 * 8 * 4 * 4


def test_what_would_take_too_long_is_left_out_and_told() -> None:
    assert "GB of weights" in too_slow("HF batched_mm", SHAPES["a"], False)
    assert "zero gradients" in too_slow("HF eager", SHAPES["d"], True)
    assert not too_slow("HF eager", SHAPES["d"], False) and not too_slow("HF grouped_mm", SHAPES["b"], True)


@pytest.mark.parametrize("text", ["e", "1,2,3", "0,8,8,4,2", "8,8,8,2,4"])
def test_bad_shapes_are_refused(text: str) -> None:
    with pytest.raises(ZooError, match="--shape"):
        parse_shape(text)
    with pytest.raises(ZooError, match="--shape"):
        parse_model(text)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ZooError, match="--dtype float64 is not one of float32, bfloat16, float16"):
        parse_dtype("float64")


@pytest.mark.parametrize(("command", "shape"), [("moe", "16,16,8,4,2"), ("model", "1,16,8,4,2,32,16,8")])
def test_command_writes_json_and_plot_and_unpins(command: str, shape: str, tmp_path: Path) -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    line = ["bench", command, "--shape", shape, "--threads", "1", "--repeats", "2", "--json", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, line, catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads((tmp_path / f"bench_{command}.json").read_text())
    assert document == json.loads(result.stdout) and document["threads"] == 1
    assert (tmp_path / f"bench_{command}.png").stat().st_size > 1000
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, threads)


def test_more_threads_than_cores_is_refused() -> None:
    with pytest.raises(ZooError, match="--threads 9999"):
        CliRunner().invoke(app, ["bench", "moe", "--threads", "9999"], catch_exceptions=False)

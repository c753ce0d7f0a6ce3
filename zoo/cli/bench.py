"""`zoo bench`: our experts against Hugging Face's, measured here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.common import Json, out_folder, print_json

MODEL = "8,256,256,64,8,4096,2048,512"
app = typer.Typer(help="Measure our experts against Hugging Face's, interleaved in one run.", no_args_is_help=True)
Threads = Annotated[int, typer.Option(help="Cores to use, and threads.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured rounds; two more warm up.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the JSON document and the bar plot.")]


@app.command("moe")
def moe_command(
    shape: Annotated[list[str] | None, typer.Option(help="a, b, c, d or T,D,F,E,K; may be repeated.")] = None,
    backward: Annotated[bool, typer.Option("--backward", help="Forward+backward and saved bytes as well.")] = False,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16, of tokens, weights and torch.mm.")
    ] = "float32",
    threads: Threads = 2,
    repeats: Repeats = 9,
    json_: Json = False,
    out: Out = None,
) -> None:
    """One layer of experts: zoo, Hugging Face's implementations, a dense layer, and the limit set by torch.mm.

    With at most 8 rows an expert (decoding), int8 and ternary experts as well: there the bytes of the weights decide.
    """

    def measure() -> list[dict[str, Any]]:
        from zoo.bench.layer import SHAPES, bench_layer, parse_dtype, parse_shape

        shapes = [parse_shape(text) for text in shape or SHAPES]
        return [bench_layer(name, sizes, backward, repeats, parse_dtype(dtype)) for name, sizes in shapes]

    _run("moe", measure, "HF grouped_mm", threads, repeats, json_, out)


@app.command("model")
def model_command(
    shape: Annotated[str, typer.Option(help="LAYERS,D,F,E,K,VOCABULARY,TOKENS,SEQUENCE.")] = MODEL,
    threads: Threads = 2,
    repeats: Repeats = 5,
    json_: Json = False,
    out: Out = None,
) -> None:
    """A whole training step of a Qwen3-MoE-like Hugging Face model, with zoo and with grouped_mm."""

    def measure() -> list[dict[str, Any]]:
        from zoo.bench.model import bench_model, parse_shape

        return [bench_model(parse_shape(shape), repeats)]

    _run("model", measure, "grouped_mm", threads, repeats, json_, out)


def _run(
    what: str, measure: Callable[[], list[dict[str, Any]]], peer: str, threads: int, repeats: int, json_: bool,
    out: Path | None,
) -> None:  # fmt: skip
    from zoo.bench.show import plot, show
    from zoo.bench.timing import pinned, versions

    folder = None if out is None else out_folder(out)
    with pinned(threads) as cores:
        results = measure()
    document = {"bench": what, "threads": threads, "cores": cores, "repeats": repeats, **versions(), "shapes": results}
    if json_:
        print_json(document)
    else:
        for result in results:
            show(result, peer)
    if folder is not None:
        path = folder / f"bench_{what}.json"
        path.write_text(json.dumps(document, indent=2) + "\n")
        for written in [path, *plot(results, path.with_suffix(".png"))]:
            print(f"wrote {written}", file=sys.stderr)

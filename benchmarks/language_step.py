"""Training throughput of the reference recipe: `zoo train` against the same model in the Hugging Face Trainer with
``grouped_mm``, and `zoo train` against a bare loop over our own model. Ratios of one run.

python benchmarks/language_step.py [--rounds 3] [--steps 6] [--threads 1] [--shape 8,256,256,64,8,4096,2048,512]

Both models are a Qwen3-MoE of the shape LAYERS,D,F,E,K,VOCABULARY,TOKENS,SEQUENCE, with equally many parameters, on the
same batches, with AdamW, clipping and fp32. A hook on every optimiser step takes the times, so each trainer is timed as
its user meets it: loading, logging, callbacks and all; starting and ending are left out. The trainers take turns. On a
machine that others use the CPU time is the number to read, with one thread.

Needs accelerate beside the zoo, which the Hugging Face Trainer is built on.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.bench.timing import contention, pinned

WARMUP = 2
NAMES = ("zoo train", "bare loop", "HF Trainer, grouped_mm")


def recipe(shape: Any, text: Path, steps: int) -> list[str]:
    """Overrides of a recipe of ours that make it the Qwen3-MoE of this shape."""
    return [
        f"data=language/text data.path={text} data.context={shape.sequence} data.vocabulary=language/bpe",
        f"data.vocabulary.vocab_size={shape.vocabulary} model.vocab_size={shape.vocabulary}",
        f"model.stack.num_layers={shape.layers} model.stack.hidden_size={shape.model}",
        "model.stack.mixer.num_heads=4 model.stack.mixer.num_kv_heads=2 model.stack.mixer.qk_norm=head",
        f"model.stack.mixer.head_dim={shape.model // 4} model.stack.moe.num_experts={shape.experts}",
        f"model.stack.moe.router.k={shape.slots} model.stack.moe.experts.intermediate_size={shape.inner}",
        "model.stack.moe.balance.switch=null optim.lr=1e-4 optim.weight_decay=0.0 device=cpu",
        f"train.steps={steps} train.batch_size={shape.tokens // shape.sequence} train.eval_batch_size=1",
        f"train.val_batches=1 train.val_every={steps} train.save_every={steps}",
    ]


@contextmanager
def step_times() -> Iterator[list[tuple[float, float]]]:
    """Collects wall and CPU time at the end of every optimiser step of any optimiser of torch."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    seen: list[tuple[float, float]] = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append((time.perf_counter(), time.process_time())))
    try:
        yield seen
    finally:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each trainer in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="8,256,256,64,8,4096,2048,512")
    arguments = parser.parse_args()
    with pinned(arguments.threads), tempfile.TemporaryDirectory() as folder:
        compare(arguments.shape, arguments.rounds, arguments.steps, Path(folder))


def compare(text: str, rounds: int, steps: int, folder: Path) -> None:
    import torch

    from zoo.bench.model import build, parse_shape
    from zoo.nn.size import measure
    from zoo.train.recipe import read_recipe

    logging.disable(logging.WARNING)
    shape = parse_shape(text)
    corpus = folder / "corpus.txt"
    corpus.write_text(_sources(), encoding="utf-8")
    tree = read_recipe("language/qwen3_moe_tiny", " ".join(recipe(shape, corpus, WARMUP + steps)).split())
    theirs = build(shape)
    theirs.set_experts_implementation("grouped_mm")
    runs = dict(zip(NAMES, contenders(tree, theirs, folder), strict=True))
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    with contention() as seen:
        for number, (name, run) in itertools.product(range(rounds), runs.items()):
            with step_times() as times:
                run(number)
            for (w0, c0), (w1, c1) in itertools.pairwise(times[WARMUP - 1 :]):
                wall[name].append(w1 - w0)
                cpu[name].append(c1 - c0)
            print(f"round {number + 1}: {name:24} {_median(cpu[name])} s CPU a step", file=sys.stderr, flush=True)
    from zoo import create_model

    model = tree["model"]
    ours = measure(create_model(model["name"], device="meta", **{k: v for k, v in model.items() if k != "name"}))
    count = sum(p.numel() for p in theirs.parameters())
    print(
        f"shape {text}: {ours.parameters:,} parameters in ours, {count:,} in theirs, {torch.get_num_threads()} threads"
    )
    for name in runs:
        print(f"{name:24} {_median(wall[name])} s wall, {_median(cpu[name])} s CPU a step of {shape.tokens} tokens")
    for kind, found in (("wall", wall), ("CPU", cpu)):
        zoo, bare, peer = (statistics.median(found[name]) for name in NAMES)
        print(f"{kind}: HF Trainer / zoo train {peer / zoo:.2f}, zoo train / bare loop {zoo / bare:.3f}")
    print(f"others used {seen.get('others', float('nan')):.0%} of all cores, load {seen['load_average']}")


def contenders(tree: dict[str, Any], theirs: Any, folder: Path) -> list[Callable[[int], None]]:
    """The three, each a function of the round; all see the batches that `zoo train` draws."""
    import torch
    import transformers

    from zoo import config as zc
    from zoo import hub
    from zoo.train.recipe import Recipe
    from zoo.train.run import train
    from zoo.train.sampling import StepSampler

    r = zc.to_object(Recipe, tree)
    data, task = zc.build("data set", tree["data"]), zc.build("task", tree["task"])
    windows = data.split("train")
    order = [i for batch in StepSampler(len(windows), r.train.batch_size, r.train.steps, r.seed) for i in batch]
    ours = hub.create_model(r.model["name"], **{k: v for k, v in r.model.items() if k != "name"}).train()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=r.optim.lr, betas=r.optim.betas, weight_decay=0.0, fused=True)

    def lightning(number: int) -> None:
        train(tree, folder / f"run{number}", quiet=True)

    def bare(number: int) -> None:
        loader = torch.utils.data.DataLoader(torch.utils.data.Subset(windows, order), batch_size=r.train.batch_size)
        for batch in loader:
            task.loss(ours, batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(ours.parameters(), r.optim.clip)
            optimizer.step()
            optimizer.zero_grad()

    class Labelled(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
            tokens = windows[order[item]]["tokens"][:-1]
            return {"input_ids": tokens, "labels": tokens}

    def hugging_face(number: int) -> None:
        arguments = transformers.TrainingArguments(
            output_dir=str(folder / f"hf{number}"), per_device_train_batch_size=r.train.batch_size,
            max_steps=r.train.steps, learning_rate=r.optim.lr, weight_decay=0.0, max_grad_norm=r.optim.clip,
            use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=r.train.log_every,
            lr_scheduler_type="cosine", dataloader_num_workers=0, seed=0,
        )  # fmt: skip
        transformers.Trainer(model=theirs, args=arguments, train_dataset=Labelled()).train()

    return [lightning, bare, hugging_face]


def _sources() -> str:
    """Half a megabyte of text that every installation has: Python files of torch."""
    import torch

    files = sorted(Path(torch.__file__).parent.glob("nn/**/*.py"))
    return "".join(file.read_text(encoding="utf-8") for file in files)[:500_000]


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):7.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()

"""A real dense model against its upcycled mixtures before any training: nats a token on tinyshakespeare.

    python benchmarks/upcycle_dense.py FOLDER [--tokens 1024] [--experts 8]

FOLDER is a Llama checkpoint in the layout of transformers, with its ``tokenizer.json``; SmolLM2-135M for the numbers in
docs/measured.md. The reference is transformers' own class.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer

from zoo.download import fetch
from zoo.hub.convert import opened
from zoo.surgery.upcycle import upcycle
from zoo_language.data.files import SHAKESPEARE


@torch.no_grad()
def nats(forward: Any, tokens_BL: torch.Tensor) -> float:
    logits_BLV = torch.cat([forward(row[None]) for row in tokens_BL])
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).double(), tokens_BL[:, 1:].flatten()).item()


def reference(folder: Path, tokens_BL: torch.Tensor) -> tuple[int, float]:
    """Parameters and loss of transformers' own class."""
    public = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return public.num_parameters(), nats(lambda row: public(row).logits, tokens_BL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=8)
    asked = parser.parse_args()
    torch.manual_seed(0)
    text = fetch(SHAKESPEARE).read_text(encoding="utf-8")[: 8 * asked.tokens]
    ids = Tokenizer.from_file(str(asked.folder / "tokenizer.json")).encode(text).ids[: asked.tokens]
    tokens_BL = torch.tensor(ids).view(-1, 256)

    rows = [("transformers, dense", *reference(asked.folder, tokens_BL))]
    dense = opened(str(asked.folder))
    settings = {
        "dense": None,
        f"clone, 2 of {asked.experts}": {"k": 2, "method": "clone"},
        f"split, 2 of {asked.experts}": {"k": 2, "method": "split"},
        f"split, 4 of {asked.experts}": {"k": 4, "method": "split"},
    }
    for name, chosen in settings.items():
        start = time.perf_counter()
        model: Any = dense if chosen is None else upcycle(dense, asked.experts, **chosen)
        made = time.perf_counter() - start
        count = sum(p.numel() for p in model.parameters())
        rows.append((name, count, nats(lambda row, model=model: model(row).logits_BLV, tokens_BL)))
        print(f"{name}: made in {made:.1f} s", flush=True)
        del model
        gc.collect()
    print(f"{tokens_BL.numel()} tokens in rows of {tokens_BL.shape[1]}")
    print("| model | parameters | nats a token | difference |\n| --- | --- | --- | --- |")
    for name, count, loss in rows:
        print(f"| {name} | {count / 1e6:.1f} M | {loss:.7f} | {loss - rows[0][2]:+.1e} |")


if __name__ == "__main__":
    main()

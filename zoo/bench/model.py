"""A whole training step of a Qwen3-MoE-like Hugging Face model: forward, backward and AdamW.

The same model and optimiser serve all contenders; only the experts' implementation is switched between the steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from zoo.bench.memory import saved_bytes
from zoo.bench.timing import contention, interleave
from zoo.integrations.transformers import register
from zoo.spec import ZooError

PEER = "grouped_mm"
IMPLEMENTATIONS = ("zoo", PEER)


class ModelShape(NamedTuple):
    layers: int = 8
    model: int = 256
    inner: int = 256
    experts: int = 64
    slots: int = 8
    vocabulary: int = 4096
    tokens: int = 2048
    sequence: int = 512


def parse_shape(text: str) -> ModelShape:
    """``LAYERS,D,F,E,K,VOCABULARY,TOKENS,SEQUENCE``. Raises `ZooError` for anything else."""
    parts = text.split(",")
    if len(parts) != 8 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ZooError(f"--shape {text} is not LAYERS,D,F,E,K,VOCABULARY,TOKENS,SEQUENCE (eight positive integers)")
    shape = ModelShape(*map(int, parts))
    if shape.tokens % shape.sequence or shape.slots > shape.experts or shape.model % 4:
        raise ZooError(f"--shape {text}: SEQUENCE must divide TOKENS, 4 must divide D, and K be at most E")
    return shape


def build(shape: ModelShape) -> Any:
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    register()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.model, num_hidden_layers=shape.layers,
        moe_intermediate_size=shape.inner, intermediate_size=shape.inner, num_experts=shape.experts,
        num_experts_per_tok=shape.slots, decoder_sparse_step=1, norm_topk_prob=True, num_attention_heads=4,
        num_key_value_heads=2, head_dim=shape.model // 4, use_cache=False,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, experts_implementation="zoo").train()


def bench_model(shape: ModelShape, repeats: int) -> dict[str, Any]:
    """Times of a step and of its forward+backward, ratios to `PEER`, and saved bytes, as one JSON document."""
    model = build(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(shape.vocabulary, (shape.tokens // shape.sequence, shape.sequence))

    def loss(implementation: str) -> torch.Tensor:
        model.set_experts_implementation(implementation)
        return model(ids, labels=ids).loss

    def step(implementation: str) -> None:
        loss(implementation).backward()
        optimizer.step()
        optimizer.zero_grad()

    def gradients(implementation: str) -> None:
        loss(implementation).backward()
        optimizer.zero_grad()

    kinds = {"training step": step, "forward+backward": gradients}
    runs = {f"{kind} {name}": (lambda f=f, n=name: f(n)) for kind, f in kinds.items() for name in IMPLEMENTATIONS}
    with contention() as seen:
        times = interleave(runs, repeats)
    skipped = [{"contender": "eager", "pass": "all", "why": "its backward is quadratic in the number of experts"}]
    results = []
    for kind in kinds:
        peer = times[f"{kind} {PEER}"].summary()
        for name in IMPLEMENTATIONS:
            own = times[f"{kind} {name}"].summary()
            ratio = {clock: peer[clock]["median"] / max(own[clock]["median"], 1e-9) for clock in own}
            results.append({"pass": kind, "contender": name, **own, "speedup": ratio})
    saved = {name: saved_bytes(lambda n=name: loss(n), model.parameters()) for name in IMPLEMENTATIONS}
    return {
        "name": "model", "shape": shape._asdict(), "parameters": sum(p.numel() for p in model.parameters()),
        "contention": seen, "skipped": skipped, "results": results, "saved_bytes": saved,
    }  # fmt: skip

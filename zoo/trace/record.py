"""Tracing our own models: hooks on the routers of their MoE layers.

Shapes: B sequences, L positions, T decisions of a layer (B * L, or fewer when a unit has several tokens), K slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.moe import MoE, RouterOutput
from zoo.spec import ZooError
from zoo.trace.folder import Recorder
from zoo.trace.trace import FIELDS, Array, RoutingTrace

Batch = Mapping[str, Tensor]


def record(
    model: nn.Module,
    batches: Iterable[Batch],
    run: Callable[[nn.Module, Batch], Any],
    folder: str | Path,
    *,
    logits: bool = True,
    info: Mapping[str, Any] | None = None,
) -> RoutingTrace:
    """Trace a model over batches, in eval mode and without gradients, into a folder (see `Recorder`).

    Args:
        run: one whole forward pass of the model on a batch, such as a task's ``loss``.
        logits: keep the router's logits, in half precision.

    Side information is what the model gives its routers (`RouteContext`), and what the batch has under the names
    ``domain``, ``modality``, ``label``, ``token_ids`` or ``tokens``: a value a sequence or a position (one
    position more is a last target). Raises `ZooError` when the model has no MoE layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoE)}
    if not layers:
        raise ZooError(f"{type(model).__name__} has no MoE layer; there is nothing to trace")
    was_training = model.training
    model.eval()
    try:
        with Recorder(folder, logits, info) as recorder, torch.inference_mode():
            for batch in batches:
                with watching(layers, recorder, batch):
                    run(model, batch)
                recorder.step()
    finally:
        model.train(was_training)
    assert recorder.trace is not None
    return recorder.trace


@contextmanager
def watching(layers: Mapping[str, MoE], recorder: Recorder, batch: Batch) -> Iterator[None]:
    """Hand every decision of these layers to the recorder."""

    def see(name: str, arguments: tuple[Any, ...], out: RouterOutput) -> None:
        fields = side_information(out.valid_T, arguments[2], batch)
        valid_T = array(out.valid_T)
        recorder.decision(
            name, out.num_experts, *(array(t)[valid_T] for t in (out.index_TK, out.weight_TK, out.used_TK)),
            array(out.logits_TE.float())[valid_T], fields,
        )  # fmt: skip

    handles = [
        layer.router.register_forward_hook(lambda _m, arguments, out, name=name: see(name, arguments, out))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def side_information(valid_T: Tensor, ctx: Any, batch: Batch) -> dict[str, Array]:
    """The fields of the valid tokens: from the context where it has them, else from the batch."""
    size, fields = len(valid_T), {}
    for name in FIELDS:
        value = getattr(ctx, name)
        if value is None:
            value = of_batch(batch, name, size)
        if value is not None and not value.is_floating_point() and value.numel() == size:
            fields[name] = array(value).reshape(size).astype(np.int64)
    fields.setdefault("seq_id", np.zeros(size, np.int64))
    valid_N = array(valid_T)
    fields = {name: value[valid_N] for name, value in fields.items()}
    fields.setdefault("position", running_position(fields["seq_id"]))
    return fields


def of_batch(batch: Batch, name: str, size: int) -> Tensor | None:
    """A field of the batch for each of ``size`` decisions in the order of its rows; None when it has none that fits."""
    value = batch.get(name, batch.get("tokens") if name == "token_ids" else None)
    if value is None or name in ("seq_id", "position") or not len(value) or size % len(value):
        return None
    length = size // len(value)
    if value.dim() == 1:
        return value.repeat_interleave(length)
    return value[:, :length].flatten() if value.dim() == 2 and value.shape[1] in (length, length + 1) else None


def running_position(seq_N: Array) -> Array:
    """The how-manieth of its sequence each token is, from 0."""
    order_N = np.argsort(seq_N, kind="stable")
    _, start_S, length_S = np.unique(seq_N[order_N], return_index=True, return_counts=True)
    position_N = np.empty(len(seq_N), np.int64)
    position_N[order_N] = np.arange(len(seq_N)) - np.repeat(start_S, length_S)
    return position_N


def array(tensor: Tensor) -> Array:
    """As numpy, on the CPU; half precisions in single."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()  # type: ignore[no-any-return]

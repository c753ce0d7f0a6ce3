"""Mixture-of-experts models of Hugging Face transformers as they are: found, traced, tapped, seen expert by expert.

    adapter = Adapter(model)
    trace = adapter.trace(batches, "traces/olmoe")                # see `zoo.trace`
    adapter.layers[0].view(3)["down"]                             # (D, F), shares memory with the model's
    with adapter.tapped(Taps(output=see)):
        model(input_ids)

Two layouts are known: fused experts, one tensor for all (transformers >= 5), and a ModuleList, one module an expert
(remote code, and what was written for transformers 4). Nothing is copied, and nothing of the model is changed for good.

Legend: T tokens, K slots, E experts, D model width, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.integrations.layers import Choose, Decision, Layer, find_layers, watching
from zoo.integrations.taps import tapped_fused, tapped_modules
from zoo.moe.experts.base import Taps
from zoo.moe.types import RouteContext
from zoo.spec import ZooError
from zoo.trace import Recorder, RoutingTrace
from zoo.trace.record import array, side_information


class Adapter:
    """Args:
    model: any module with MoE blocks: a submodule ``experts`` beside a ``gate`` or ``router``.
    choose: (block, logits (T, E)) to (weight (T, K), index (T, K)), for blocks whose gate only gives logits, and that
        are not known here.

    Raises `ZooError` when there is no such block.
    """

    def __init__(self, model: nn.Module, choose: Choose | None = None) -> None:
        self.model, self.choose = model, choose
        self.layers = tuple(find_layers(model))
        if not self.layers:
            raise ZooError(f"{type(model).__name__} has no block with experts and a gate; it is no MoE that we know")

    def trace(
        self,
        batches: Iterable[Mapping[str, Tensor]],
        folder: str | Path,
        *,
        logits: bool = True,
        info: Mapping[str, Any] | None = None,
    ) -> RoutingTrace:
        """What every gate decides for the tokens of ``batches`` (``input_ids``, ``attention_mask`` and whatever else
        the model takes, and for the trace alone ``domain``, ``modality`` or ``label``), padding left out. In eval mode
        and without gradients. A slot of weight 0 is an unused one."""
        own = ("domain", "modality", "label")
        was_training = self.model.training
        self.model.eval()
        try:
            with Recorder(folder, logits, info) as recorder, torch.inference_mode():
                for batch in batches:

                    def see(layer: Layer, decision: Decision, batch: Mapping[str, Tensor] = batch) -> None:
                        _hand_over(recorder, layer, decision, batch)

                    with self.watching(see):
                        self.model(**{key: value for key, value in batch.items() if key not in own})
                    recorder.step()
        finally:
            self.model.train(was_training)
        assert recorder.trace is not None
        return recorder.trace

    @contextmanager
    def watching(self, see: Callable[[Layer, Decision], None]) -> Iterator[None]:
        """Inside the block ``see`` gets every decision, before the experts run."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(watching(layer, see, self.choose))
            yield

    @contextmanager
    def tapped(self, taps: Taps | Callable[[int], Taps | None]) -> Iterator[None]:
        """Inside the block the experts show their rows to the taps, which may replace them: see `zoo.moe.experts.base`.
        One `Taps` for all layers, or a function of the layer's place.

        Fused experts run in plain PyTorch meanwhile, row by row; a module of its own shows the rows of one expert at a
        time, in a plan in which the others have none. Afterwards the model is as it was.
        """
        with ExitStack() as stack:
            for place, layer in enumerate(self.layers):
                chosen = taps if isinstance(taps, Taps) else taps(place)
                if chosen is not None:
                    modules = isinstance(layer.experts, nn.ModuleList)
                    stack.enter_context(
                        tapped_modules(layer, chosen, self.choose) if modules else tapped_fused(layer, chosen)
                    )
            yield


def _hand_over(recorder: Recorder, layer: Layer, decision: Decision, batch: Mapping[str, Tensor]) -> None:
    size, ids = len(decision.index_TK), batch.get("input_ids")
    first = next(iter(batch.values()))
    rows = size // len(first) if size % len(first) == 0 else size
    row_T = torch.arange(size, device=decision.index_TK.device) // rows
    valid_T = torch.ones_like(row_T, dtype=torch.bool)
    mask = batch.get("attention_mask")
    if mask is not None and mask.numel() == size:
        valid_T = mask.flatten() > 0
    ctx = RouteContext(seq_id=row_T, token_ids=ids if ids is not None and ids.numel() == size else None)
    fields = side_information(valid_T, ctx, batch)
    used_TK = (decision.weight_TK != 0) & (decision.index_TK < layer.num_experts)
    keep = array(valid_T)
    index_TK = decision.index_TK.clamp(max=layer.num_experts - 1)
    logits = None if decision.logits_TE is None else array(decision.logits_TE)[keep]
    recorder.decision(
        layer.name,
        layer.num_experts,
        *(array(t)[keep] for t in (index_TK, decision.weight_TK, used_TK)),
        logits,
        fields,
    )

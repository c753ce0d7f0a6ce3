"""Drawing frames from a model of codes in delayed order.

Shapes: B sequences, P symbols, S steps, T frames, C channels, V entries of a channel, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.moe import Routing
from zoo.nn import Cache
from zoo.nn.generation import choose
from zoo.spec import ZooError
from zoo_audio.delay import BOS, EOS, PAD, counted, delayed, restored


class Drawn(NamedTuple):
    """``codes``: the frames (T, C) of each sequence; ``experts``: for each, the mean number of real experts over layers
    and over the steps that speak of each frame's first channel; ``ended``: whether it came to an end by itself."""

    codes: list[Tensor]
    experts: list[Tensor]
    ended: list[bool]


@torch.no_grad()
def generate(
    model: Any,
    text_BP: Tensor,
    valid_BP: Tensor,
    *,
    max_frames: int,
    given_TC: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    fine: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    codes_in_use: int | None = None,
) -> Drawn:
    """Frames after a prompt, for several prompts at once.

    Only the first channel says when a sequence ends; the others follow as their delay elapses. Frames that are given
    (the same for all) stay as they are.

    Args:
        max_frames: after so many frames, given ones included, it ends in any case.
        fine: temperature of all channels but the first, relative to it.
        codes_in_use: draw only from the first codes of each channel.

    Raises:
        ZooError: more positions than the model's ``max_length``, or settings out of range.
    """
    c = model.config
    delay, codes, device = list(c.delay), c.codebook_size, text_BP.device
    if temperature < 0 or not 0 < top_p <= 1:
        raise ZooError(f"temperature={temperature} must be at least 0 and top_p={top_p} above 0 and at most 1")
    given = 0 if given_TC is None else len(given_TC)
    if given >= max_frames:
        raise ZooError(f"{given} frames are given and at most {max_frames} wanted; raise max_frames")
    total = max_frames + 1 + max(delay)
    if text_BP.shape[1] + total > c.max_length:
        most = c.max_length - text_BP.shape[1] - 1 - max(delay)
        raise ZooError(f"the model takes {c.max_length} positions: ask for at most {most} frames")
    batch, channels = len(text_BP), len(delay)
    steps_BSC = torch.full((batch, 1, channels), codes + BOS, device=device)
    known_SC = (
        delayed(given_TC[None], torch.tensor([given]), delay, codes)[0] if given and given_TC is not None else None
    )
    frames_B = torch.full((batch,), max_frames, device=device)
    cache = Cache() if use_cache else None
    new_BSC, new_text, new_valid = steps_BSC, text_BP, valid_BP
    nobody_BV = torch.zeros(1, codes + 3, dtype=torch.bool, device=device)
    nobody_BV[:, : codes if codes_in_use is None else codes_in_use] = True
    active: list[Tensor] = []
    for step in range(total):
        valid = torch.cat([new_valid, torch.ones(batch, new_BSC.shape[1], dtype=torch.bool, device=device)], 1)
        out = model(new_text, new_BSC, valid, cache=cache, last_only=True)
        active.append(_active(out.routing, model, batch))
        row = []
        for channel, late in enumerate(delay):
            frame = step - late
            if frame < 0:
                row.append(torch.full((batch,), codes + BOS, device=device))
                continue
            if known_SC is not None and frame < given:
                row.append(known_SC[step, channel].to(device).expand(batch))
                continue
            allowed_BV = nobody_BV.clone()
            allowed_BV[:, codes + EOS] = channel == 0 and frame > 0
            logits_BV = out.logits_BSCV[:, -1, channel].float().masked_fill(~allowed_BV, -torch.inf)
            chosen_B = choose(logits_BV, temperature * (fine if channel else 1.0), top_p, generator)[:, 0]
            if channel == 0:
                frames_B = torch.where((chosen_B == codes + EOS) & (frame < frames_B), frame, frames_B)
            chosen_B = torch.where(frames_B == frame, codes + EOS, chosen_B)
            row.append(torch.where(frames_B < frame, codes + PAD, chosen_B))
        new_BSC = torch.stack(row, -1)[:, None]
        steps_BSC = torch.cat([steps_BSC, new_BSC], 1)
        if int(frames_B.max()) + max(delay) <= step:
            break
        if use_cache:
            new_text, new_valid = text_BP[:, :0], valid_BP[:, :0]
        else:
            new_BSC = steps_BSC
    found = [restored(steps_SC[1:], delay, codes) for steps_SC in steps_BSC]
    active_BS = torch.stack(active, 1)
    experts = [active_S[: len(f)] for active_S, f in zip(active_BS, found, strict=True)]
    return Drawn(found, experts, [int(f) < max_frames for f in frames_B])


def _active(routing: Routing, model: Any, batch: int) -> Tensor:
    """(B,): real experts of each sequence's last position, the mean over layers."""
    if not routing:
        return torch.zeros(batch)
    nulls = null_experts(model)
    layers = []
    for out in routing:
        real_TK = out.used_TK & (out.index_TK < out.num_experts - nulls)
        layers.append(real_TK.sum(-1).view(batch, -1)[:, -1].float())
    return torch.stack(layers).mean(0).cpu()


def null_experts(model: Any) -> int:
    """How many of the last experts of each layer are null ones."""
    experts = model.config.stack.moe.experts
    banks = experts.get("banks", []) if isinstance(experts, dict) else []
    return sum(bank["count"] for bank in banks if bank["name"] == "null")


def asked(model: Any, batch: Mapping[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
    """The model's output, what each step should have been (B, S, C), and where that counts."""
    delay, codes = model.config.delay, model.config.codebook_size
    target_BSC = delayed(batch["codes"], batch["frames"], delay, codes)
    start_B1C = torch.full_like(target_BSC[:, :1], codes + BOS)
    steps = target_BSC.shape[1]
    counts_BSC = counted(batch["frames"], steps, delay)
    valid_BS = torch.arange(steps, device=target_BSC.device) <= batch["frames"][:, None] + max(delay)
    valid_BL = torch.cat([batch["text_valid"], valid_BS], 1)
    inputs_BSC = torch.cat([start_B1C, target_BSC[:, :-1]], 1)
    return model(batch["text"], inputs_BSC, valid_BL, batch["domain"]), target_BSC, counts_BSC

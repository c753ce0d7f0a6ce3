"""The delay pattern of a multi-codebook model: channel c of frame t stands at step t + delay_c, so that each channel
sees what the ones before it say of the same frame (MusicGen, arXiv:2306.05284; UniMoE-Audio, arXiv:2510.13344).

Step s of channel c is, with t = s - delay_c and T frames: BOS before the first frame, the code of frame t, EOS at
t = T, PAD after it. The three stand behind the codes, as in the published checkpoint (1024, 1025, 1026).

Shapes: B sequences, T frames, S = T + 1 + max(delay) steps, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EOS, PAD, BOS = 0, 1, 2
SPECIAL = 3


def delayed(codes_BTC: Tensor, frames_B: Tensor, delay: Sequence[int], codes: int) -> Tensor:
    """(B, S, C): frames in delayed order.

    Args:
        frames_B: how many of the T frames are a sequence's own.
        codes: size of a codebook; EOS is ``codes``, PAD and BOS follow.
    """
    most, steps = codes_BTC.shape[1], codes_BTC.shape[1] + 1 + max(delay)
    delay_C = torch.tensor(list(delay), device=codes_BTC.device)
    frame_SC = torch.arange(steps, device=codes_BTC.device)[:, None] - delay_C
    frame_BSC = frame_SC.expand(len(codes_BTC), -1, -1)
    found_BSC = codes_BTC.gather(1, frame_BSC.clamp(0, max(0, most - 1))) if most else frame_BSC
    last_B11 = frames_B[:, None, None]
    found_BSC = torch.where(frame_BSC < last_B11, found_BSC, torch.where(frame_BSC == last_B11, codes, codes + PAD))
    return torch.where(frame_BSC < 0, codes + BOS, found_BSC)


def restored(delayed_SC: Tensor, delay: Sequence[int], codes: int) -> Tensor:
    """(T, C): the frames of one sequence, all that come before the first channel's EOS; without one, all whole ones.

    The inverse of `delayed` on a sequence's own frames.
    """
    ends = (delayed_SC[:, 0] == codes + EOS).nonzero()
    frames = int(ends[0]) - delay[0] if len(ends) else len(delayed_SC) - max(delay)
    rows = [delayed_SC[d : d + max(0, frames), c] for c, d in enumerate(delay)]
    return torch.stack(rows, -1) if frames > 0 else delayed_SC[:0]


def counted(frames_B: Tensor, steps: int, delay: Sequence[int]) -> Tensor:
    """(B, S, C): True where a step is the code of a frame or the EOS after the last: what a model is to predict."""
    delay_C = torch.tensor(list(delay), device=frames_B.device)
    frame_SC = torch.arange(steps, device=frames_B.device)[:, None] - delay_C
    return (frame_SC >= 0) & (frame_SC <= frames_B[:, None, None])

"""What ACT is built of beside the stack: a decoder that looks into a memory, and a tower that makes tokens of images.

Shapes: B batch, Q queries, M tokens of the memory, H heads, C head width, D width, V views, h w cells of a picture.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.moe import RouteContext
from zoo.nn import TransformerConfig
from zoo.nn.attention import width_of_head
from zoo.nn.build import Site
from zoo.nn.span import span_of
from zoo.spec import ZooError
from zoo_robotics.models.policy import EyesConfig


class CrossAttention(nn.Module):
    """Queries attend to a memory; no positions of its own."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.head = width_of_head(width, heads)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(self, x_BQD: Tensor, memory_BMD: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for proj, x in ((self.q_proj, x_BQD), (self.k_proj, memory_BMD), (self.v_proj, memory_BMD))
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the memory, feed-forward; residual, with the norms before or after
    each as the stack says (arXiv:1706.03762, figure 1). The parts are those of the stack."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config
        site = Site(c.hidden_size, c.moe, c.mixer, c.feed_forward, norm_name=c.norm, norm_eps=c.norm_eps)
        self.post = c.wiring.get("norm", "pre") == "post"
        self.mixer, self.feed_forward = site.mixer(), site.feed_forward()
        heads, bias = c.mixer.get("num_heads", 4), bool(c.mixer.get("qkv_bias"))
        self.cross = CrossAttention(c.hidden_size, heads, bias)
        self.norms = nn.ModuleList(site.norm() for _ in range(3))

    def forward(self, x_BQD: Tensor, memory_BMD: Tensor) -> Tensor:
        span, ctx = span_of(x_BQD, causal=False), RouteContext()
        x_BQD = self._join(0, x_BQD, lambda x: self.mixer(x, span, ctx)[0])
        x_BQD = self._join(1, x_BQD, lambda x: self.cross(x, memory_BMD))
        return self._join(2, x_BQD, lambda x: self.feed_forward(x, ctx)[0])

    def _join(self, place: int, x_BQD: Tensor, branch: Any) -> Tensor:
        norm = self.norms[place]
        return norm(x_BQD + branch(x_BQD)) if self.post else x_BQD + branch(norm(x_BQD))


class Eyes(nn.Module):
    """Pictures (B, V, 3, h, w), uint8, to tokens (B, M, D): one for each cell of the tower's last map, with a fixed
    sine of its row and column and a learned vector of its view."""

    def __init__(self, config: EyesConfig, width: int) -> None:
        super().__init__()
        self.config = config
        if config.tower == "resnet18":
            import timm

            self.tower: nn.Module = timm.create_model(
                "resnet18", features_only=True, out_indices=[4], norm_layer=timm.layers.GroupNorm
            )
            channels = 512
        else:
            sizes, layers = [3, 32, 64, 128, 128], []
            for before, after in pairwise(sizes):
                layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            self.tower, channels = nn.Sequential(*layers), 128
        self.proj = nn.Linear(channels, width)
        self.view = nn.Embedding(config.views, width)
        self.register_buffer("mean_C11", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, images_BVCHW: Tensor) -> Tensor:
        c, shape = self.config, tuple(images_BVCHW.shape[1:])
        if shape != (c.views, 3, c.size, c.size):
            raise ZooError(f"images are {shape}, but this policy takes {(c.views, 3, c.size, c.size)} (views, C, H, W)")
        x = (images_BVCHW.flatten(0, 1).float() / 255 - self.mean_C11) / self.std_C11
        map_NChw = self.tower(x)
        map_NChw = map_NChw[-1] if isinstance(map_NChw, list) else map_NChw
        x_NhwD = self.proj(map_NChw.permute(0, 2, 3, 1))
        x_NhwD = x_NhwD + sine_2d(*x_NhwD.shape[1:], device=x.device)
        x_BVMD = x_NhwD.flatten(1, 2).unflatten(0, (-1, c.views)) + self.view.weight[:, None]
        return x_BVMD.flatten(1, 2)


def sine_2d(rows: int, columns: int, width: int, device: Any = None) -> Tensor:
    """(rows, columns, width): half of it tells the row, half the column."""
    half = width // 2
    row, column = (
        sine(torch.arange(rows, device=device), half),
        sine(torch.arange(columns, device=device), width - half),
    )
    return torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], -1)


def sine(at_T: Tensor, width: int, shortest: float = 2 * torch.pi, longest: float = 2 * torch.pi * 10000) -> Tensor:
    """(T, width): sines, then cosines, of ``2 pi at / period`` for periods in geometric progression
    (arXiv:1706.03762, section 3.5). An odd width ends in a zero."""
    count = max(1, width // 2)
    period = shortest * (longest / shortest) ** (torch.arange(count, device=at_T.device) / max(1, count - 1))
    angle = 2 * torch.pi * at_T.float()[:, None] / period
    both = torch.cat([angle.sin(), angle.cos()], -1)[:, : 2 * (width // 2)]
    return F.pad(both, (0, width - both.shape[-1]))

"""Image towers: pixels to a grid of vectors. ``tower(pixels_NCHW) -> (N, T, C)``, colours from 0 to 1.

A tower knows its ``grid``, rows and columns of tokens (T of them), and its ``width`` C. It brings colours to the scale
that it was trained with itself. `freeze` or a stage's ``trainable`` say whether it is trained; batch norms always stay
as they came, so that an image says the same whatever stands beside it.

Shapes: N images, H height, W width, T tokens, C tower width.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import at_least
from zoo.spec import ZooError

Size = tuple[int, int]
NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Tower(nn.Module):
    """The base of all: ``colours`` names the mean and deviation that pixels are brought to."""

    grid: Size
    width: int

    def __init__(self, colours: str) -> None:
        super().__init__()
        mean, deviation = NORMS[colours]
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation_C11", torch.tensor(deviation)[:, None, None], persistent=False)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self.features((pixels_NCHW - self.mean_C11) / self.deviation_C11)

    def features(self, x_NCHW: Tensor) -> Tensor:
        """(N, T, C) of colours on the tower's own scale."""
        raise TypeError(f"{type(self).__name__} must override features")


class Conv(Tower):
    """A tower of our own to train from nothing: 3x3 convolutions, each halving the picture, with group norms and GELUs;
    then ``mix`` more on the grid, on a residual path, so that a token knows its neighbours."""

    @dataclass
    class Config:
        channels: list[int] = field(default_factory=lambda: [16, 32, 64, 96])
        mix: int = 1
        groups: int = 8

        def __post_init__(self) -> None:
            at_least(0, self, "mix")
            at_least(1, self, "groups")
            if not self.channels or any(c % self.groups for c in self.channels):
                raise ZooError(f"channels={self.channels} must be multiples of groups={self.groups}, one or more")

    def __init__(self, config: Config, size: Size) -> None:
        super().__init__("half")
        steps, groups = len(config.channels), config.groups
        if any(side % 2**steps for side in size):
            raise ZooError(f"image_size={list(size)} must be divisible by {2**steps}: {steps} convolutions halve it")

        def layer(before: int, after: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(before, after, 3, stride=stride, padding=1)
            return nn.Sequential(conv, nn.GroupNorm(groups, after), nn.GELU())

        widths = [3, *config.channels]
        self.layers = nn.Sequential(*(layer(a, b, 2) for a, b in itertools.pairwise(widths)))
        self.mix = nn.ModuleList(layer(widths[-1], widths[-1], 1) for _ in range(config.mix))
        self.grid, self.width = (size[0] >> steps, size[1] >> steps), widths[-1]

    def features(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.layers(x_NCHW)
        for block in self.mix:
            x_NCHW = x_NCHW + block(x_NCHW)
        return x_NCHW.flatten(2).mT


class Patches(Tower):
    """No encoder: one convolution cuts the picture into patches, each gets its position (Mono-InternVL,
    arXiv:2410.08202).

    Config:
        prefix: positions before those of the patches that are kept but not looked at: public checkpoints have one.
    """

    @dataclass
    class Config:
        patch: int = 8
        width: int = 64
        prefix: int = 0
        colours: Literal["imagenet", "clip", "half"] = "imagenet"

        def __post_init__(self) -> None:
            at_least(1, self, "patch", "width")
            at_least(0, self, "prefix")

    def __init__(self, config: Config, size: Size) -> None:
        super().__init__(config.colours)
        if any(side % config.patch for side in size):
            raise ZooError(f"image_size={list(size)} must be divisible by patch={config.patch}")
        self.grid, self.width = (size[0] // config.patch, size[1] // config.patch), config.width
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.prefix = config.prefix
        self.position_embedding = nn.Parameter(torch.zeros(1, config.prefix + math.prod(self.grid), config.width))
        if not self.position_embedding.is_meta:
            nn.init.normal_(self.position_embedding, std=0.02)

    def features(self, x_NCHW: Tensor) -> Tensor:
        return self.patch_embedding(x_NCHW).flatten(2).mT + self.position_embedding[:, self.prefix :]


class Timm(Tower):
    """Any image model of timm by its name, without its head: its last feature map, or the tokens of a transformer
    without its class token. Weights are not fetched here: see `zoo_vision_language.pretrained`.

    Config:
        model: a name as in ``timm.list_models()``.
        layer: of a transformer, which layer's tokens, counted from the end (LLaVA takes the one before the last, -2).
    """

    @dataclass
    class Config:
        model: str = "tf_efficientnet_lite0"
        layer: int = -1
        colours: Literal["imagenet", "clip", "half"] = "imagenet"

    def __init__(self, config: Config, size: Size) -> None:
        super().__init__(config.colours)
        self.layer = config.layer
        self.model = timm_model(config.model, size)
        self.is_transformer = hasattr(self.model, "blocks") and hasattr(self.model, "patch_embed")
        self.width = self.model.num_features
        if self.is_transformer:
            self.grid = tuple(self.model.patch_embed.grid_size)
            self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        else:
            step = self.model.feature_info[-1]["reduction"]
            self.grid = (math.ceil(size[0] / step), math.ceil(size[1] / step))

    def features(self, x_NCHW: Tensor) -> Tensor:
        if not self.is_transformer:
            return self.model.forward_features(x_NCHW).flatten(2).mT
        if self.layer == -1:
            return self.model.forward_features(x_NCHW)[:, self.prefix :]
        found = self.model.forward_intermediates(
            x_NCHW, indices=[len(self.model.blocks) + self.layer], intermediates_only=True, output_fmt="NLC"
        )
        return found[0]


def timm_model(name: str, size: Size) -> Any:
    """A model of timm for images of that size, without weights and head. Raises `ZooError` for an unknown name, or one
    whose features are neither a map nor tokens."""
    import timm
    from timm.layers import freeze_batch_norm_2d

    from zoo.registry import suggest

    if name not in timm.list_models(name):
        raise ZooError(f"timm has no model '{name}'; {suggest(name, timm.list_models())}")
    transformer = {"img_size": size, "global_pool": "", "class_token": True}
    for settings in (transformer, {"img_size": size}, {}):
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, **settings)
            break
        except TypeError:
            continue
    flat = hasattr(model, "blocks") and hasattr(model, "patch_embed")
    if not flat and not getattr(model, "feature_info", None):
        raise ZooError(f"timm's '{name}' gives neither a feature map nor tokens; choose a convolutional net or a ViT")
    return freeze_batch_norm_2d(model)


class Transformers(Tower):
    """The vision model of a CLIP or SigLIP of transformers (MoE-LLaVA, MoIIE): the tokens of one of its layers, without
    the class token.

    Config:
        kind: which of the two.
        layer: whose output, counted from the end; LLaVA takes the one before the last, -2.
    """

    @dataclass
    class Config:
        kind: Literal["clip", "siglip"] = "clip"
        hidden_size: int = 1024
        intermediate_size: int = 4096
        num_layers: int = 24
        num_heads: int = 16
        patch: int = 14
        activation: str = "quick_gelu"
        layer: int = -2

        def __post_init__(self) -> None:
            at_least(1, self, "hidden_size", "intermediate_size", "num_layers", "num_heads", "patch")
            if not -self.num_layers <= self.layer <= -1:
                raise ZooError(f"layer={self.layer} must lie between -1 and -num_layers={-self.num_layers}")

    def __init__(self, config: Config, size: Size) -> None:
        super().__init__("clip" if config.kind == "clip" else "half")
        from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

        if size[0] != size[1] or size[0] < config.patch:
            raise ZooError(f"image_size={list(size)} must be a square, a patch of {config.patch} or more")
        kinds: Any = {"clip": (CLIPVisionConfig, CLIPVisionModel), "siglip": (SiglipVisionConfig, SiglipVisionModel)}
        config_class, model_class = kinds[config.kind]
        settings = config_class(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=size[0],
            patch_size=config.patch,
            hidden_act=config.activation,
            **({"vision_use_head": False} if config.kind == "siglip" else {}),
        )
        self.layer, self.skip = config.layer, int(config.kind == "clip")
        self.model = model_class(settings)
        self.grid, self.width = (size[0] // config.patch,) * 2, config.hidden_size

    def features(self, x_NCHW: Tensor) -> Tensor:
        found = self.model(x_NCHW, output_hidden_states=True)
        tokens: Tensor = found.hidden_states[self.layer][:, self.skip :]
        return tokens

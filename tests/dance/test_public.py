"""Weights in the public layout of MEGADance, a tiny random checkpoint, against the decoder written down from its
description: streams one after the other, one mask for all pairs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import hub
from zoo.hub.convert import convert
from zoo.spec import ZooError
from zoo_dance.importers import LAYERS
from zoo_dance.music.synth import steady, synthesise, write_song

D, I, N, HEADS, WINDOW, GENRES, DIGITS = 16, 32, 4, 2, 3, 2, (3, 2)  # noqa: E741
SMALL: dict[str, Any] = {
    "genres": GENRES,
    "codec": {"width": 8, "downs": 1, "depth": 1, "quantiser": {"name": "dance/fsq", "levels": list(DIGITS)}},
    "music_hidden": 6,
    "head_hidden": 7,
    "max_length": 8,
    "stack": {
        "hidden_size": D,
        "wiring": {"name": "dance/stream_block", "mamba": {"name": "dance/mamba", "d_state": N}},
        "mixer": {"name": "dance/window_attention", "num_heads": HEADS, "window": WINDOW},
        "feed_forward": {
            "name": "dense", "intermediate_size": 4 * D, "gated": False, "activation": "gelu", "bias": True
        },
        "pattern": [
            {},
            {
                "wiring": {
                    "name": "mixture_of_blocks",
                    "router": {
                        "name": "composed",
                        "scorer": {"name": "none"},
                        "selector": {"name": "label"},
                        "weigher": {"name": "uniform"},
                    },
                    "inside": {"name": "dance/stream_block", "mamba": None},
                }
            },
        ],
    },
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    s: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inn: int, bias: bool = True) -> None:
        s[f"{name}.weight"] = (out, inn)
        if bias:
            s[f"{name}.bias"] = (out,)

    def conv(name: str, out: int, inn: int, size: int) -> None:
        s[f"{name}.weight"], s[f"{name}.bias"] = (out, inn, size), (out,)

    for stream, width in (("UP", 90), ("DOWN", 57)):
        encoder, decoder = f"fsq.Pose_{stream}_Encoder.encoders.0", f"fsq.Pose_{stream}_Decoder.decoders.0"
        model = f"{encoder}.level_blocks.0.model"
        conv(f"{model}.0.0", 8, width, 4)
        conv(f"{model}.0.1.model.0.model.1", 8, 8, 3)
        conv(f"{model}.0.1.model.0.model.3", 8, 8, 1)
        conv(f"{model}.1", 8, 8, 3)
        model = f"{decoder}.level_blocks.0.model"
        conv(f"{model}.0", 8, 8, 3)
        conv(f"{model}.1.0.model.0.model.1", 8, 8, 3)
        conv(f"{model}.1.0.model.0.model.3", 8, 8, 1)
        conv(f"{model}.1.1", 8, 8, 4)
        conv(f"{decoder}.out", width, 8, 3)
        linear(f"fsq.Pose_{stream}_Quantizer.bottleneck.project_in", len(DIGITS), 8)
        linear(f"fsq.Pose_{stream}_Quantizer.bottleneck.project_out", 8, len(DIGITS))
    root = "gpt.dance_decoder"
    linear(f"{root}.music_MLP.0", 6, 35)
    linear(f"{root}.music_MLP.1", D, 6)
    linear(f"{root}.MLP_Output.0", 7, D)
    linear(f"{root}.MLP_Output.1", sum(DIGITS), 7)
    for stream in ("up", "down"):
        for n, level in enumerate(DIGITS):
            s[f"{root}.pose_{stream}_emb.{n}.weight"] = (level, D)
    for layer in range(LAYERS):
        here = f"{root}.decoder_layers.{layer}"
        for n in (1, 2, 3):
            mamba = f"{here}.global_mamba.mamba{n}"
            s |= {f"{mamba}.A_log": (I, N), f"{mamba}.D": (I,)}
            s |= {f"{mamba}.conv1d.weight": (I, 1, 4), f"{mamba}.conv1d.bias": (I,)}
            linear(f"{mamba}.in_proj", 2 * I, D, False)
            linear(f"{mamba}.x_proj", 1 + 2 * N, I, False)
            linear(f"{mamba}.dt_proj", I, 1)
            linear(f"{mamba}.out_proj", D, I, False)
            s |= {f"{here}.global_mamba.norm{n}.{kind}": (D,) for kind in ("weight", "bias")}
        for block in ("global_swab", *(f"genre_swab.{g}" for g in range(GENRES))):
            for part in ("key", "query", "value", "proj"):
                linear(f"{here}.{block}.attn.{part}", D, D)
            linear(f"{here}.{block}.mlp.0", 4 * D, D)
            linear(f"{here}.{block}.mlp.2", D, 4 * D)
            for ln in (1, 2):
                for n in (1, 2, 3):
                    s |= {f"{here}.{block}.ln{ln}.ln{n}.{kind}": (D,) for kind in ("weight", "bias")}
            s[f"{here}.{block}.attn.mask"] = (1, 1, 29, 29)
    s["cls_model.head.weight"] = (3, 3)
    return s


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    state = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes().items()}
    torch.save({"model": state, "epoch": 90}, tmp_path / "model.pth")
    return tmp_path / "model.pth", state


class Reference:
    """The decoder of the description, on a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.s = state

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.s[f"{name}.weight"], self.s.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), self.s[f"{name}.weight"], self.s[f"{name}.bias"])

    def mamba(self, name: str, x: Tensor) -> Tensor:
        u, z = self.linear(f"{name}.in_proj", x).chunk(2, -1)
        u = F.conv1d(F.pad(u.mT, (3, 0)), self.s[f"{name}.conv1d.weight"], self.s[f"{name}.conv1d.bias"], groups=I)
        u = F.silu(u).mT
        step, b, c = self.linear(f"{name}.x_proj", u).split([1, N, N], -1)
        step = F.softplus(self.linear(f"{name}.dt_proj", step))
        h, ys = torch.zeros(len(x), I, N), []
        for t in range(x.shape[1]):
            h = torch.exp(step[:, t, :, None] * -self.s[f"{name}.A_log"].exp()) * h
            h = h + step[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
            ys.append((h * c[:, t, None]).sum(-1))
        y = torch.stack(ys, 1) + self.s[f"{name}.D"] * u
        return self.linear(f"{name}.out_proj", y * F.silu(z))

    def norms(self, name: str, x: Tensor) -> Tensor:
        return torch.cat([self.norm(f"{name}.ln{n + 1}", part) for n, part in enumerate(x.chunk(3, 1))], 1)

    def block(self, name: str, x: Tensor) -> Tensor:
        y = self.norms(f"{name}.ln1", x)
        q, k, v = (
            self.linear(f"{name}.attn.{part}", y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        time = torch.arange(x.shape[1] // 3)
        seen = ((time[:, None] >= time) & (time[:, None] - time < WINDOW)).repeat(3, 3)
        weight = (q @ k.mT / (D // HEADS) ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        x = x + self.linear(f"{name}.attn.proj", (weight @ v).transpose(1, 2).flatten(2))
        y = self.linear(f"{name}.mlp.0", self.norms(f"{name}.ln2", x))
        return x + self.linear(f"{name}.mlp.2", F.gelu(y))

    def __call__(self, digits: tuple[Tensor, Tensor], music: Tensor, genre: int) -> tuple[Tensor, Tensor]:
        root = "gpt.dance_decoder"
        parts = [
            sum(F.embedding(d[..., n], self.s[f"{root}.pose_{stream}_emb.{n}.weight"]) for n in range(len(DIGITS)))
            for stream, d in zip(("up", "down"), digits, strict=True)
        ]
        heard = self.linear(f"{root}.music_MLP.1", self.linear(f"{root}.music_MLP.0", music))
        x = torch.cat([*parts, heard], 1)  # type: ignore[list-item]
        for layer in range(LAYERS):
            here = f"{root}.decoder_layers.{layer}"
            streams = []
            for n, part in enumerate(x.chunk(3, 1), 1):
                y = part + self.mamba(f"{here}.global_mamba.mamba{n}", part)
                streams.append(self.norm(f"{here}.global_mamba.norm{n}", y))
            x = self.block(f"{here}.global_swab", torch.cat(streams, 1))
            x = self.block(f"{here}.genre_swab.{genre}", x)
        x = self.linear(f"{root}.MLP_Output.1", self.linear(f"{root}.MLP_Output.0", x))
        one, two, _ = x.chunk(3, 1)
        return one, two


def test_the_public_layout_says_what_its_description_says(
    checkpoint: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path, state = checkpoint
    model: Any = convert(str(path), tmp_path / "ours", "dance/megadance", overrides=SMALL)
    tokens = 6
    digits = tuple(torch.stack([torch.randint(0, level, (1, tokens)) for level in DIGITS], -1) for _ in range(2))
    music = torch.randn(1, tokens, 35)
    for genre in range(GENRES):
        with torch.no_grad():
            ours = model.next(digits, music, torch.tensor([genre]))[0]
            theirs = Reference(state)(digits, music, genre)  # type: ignore[arg-type]
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
    down = state["fsq.Pose_DOWN_Encoder.encoders.0.level_blocks.0.model.0.0.weight"]
    assert torch.equal(model.codec.encoders[1].model[0][0].weight, down)


def test_a_key_too_many_or_too_few_is_named(checkpoint: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state = checkpoint
    lost = "gpt.dance_decoder.decoder_layers.3.genre_swab.1.attn.key.weight"
    torch.save({"model": {**{k: v for k, v in state.items() if k != lost}, "gpt.more": torch.zeros(1)}}, path)
    with pytest.raises(ZooError, match=lost) as error:
        convert(str(path), tmp_path / "ours", "dance/megadance", "public", overrides=SMALL)
    assert "left over: gpt.more" in str(error.value)


def test_converted_weights_dance_with_the_authors_means_and_spreads(
    checkpoint: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    convert(str(checkpoint[0]), tmp_path / "ours", "dance/megadance", overrides=SMALL)
    song = write_song(synthesise("house", 2, steady(2, 120.0)), tmp_path / "song.wav")
    predictor = hub.load(tmp_path / "ours")
    with pytest.raises(ZooError, match="stats=FOLDER"):
        predictor.predict(music=str(song), genre="1")
    widths = {"smpl_poses": 144, "smpl_root_vel": 3, "music_librosa": 35}
    torch.save({f"{key}_mean": torch.zeros(width) for key, width in widths.items()}, tmp_path / "mean.pt")
    torch.save({f"{key}_std": torch.ones(width) for key, width in widths.items()}, tmp_path / "std.pt")
    result = predictor.predict(music=str(song), genre="1", stats=str(tmp_path))
    assert len(result.motion) == 60

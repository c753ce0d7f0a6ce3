"""The task of a tokeniser: motion in, codes, motion out.

Shapes: B clips, T frames, C features, t tokens, N digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection

from zoo.spec import ZooError
from zoo.train.task import Batch, Loss, Task
from zoo_dance.data.motions import SPLITS
from zoo_dance.models.quantisers import code_of
from zoo_dance.motion.bvh import write_bvh
from zoo_dance.motion.draw import write_gif
from zoo_dance.motion.formats import read_motion
from zoo_dance.motion.retarget import canonical
from zoo_dance.motion.skeleton import FPS, Motion, facing, from_features, grounded, to_features
from zoo_dance.tasks.reconstruction import ReconstructionConfig, Scale, joint_errors, joints, reconstruction_loss


class Recoded(NamedTuple):
    """What `Coding.predict` returns: the motion as the codes give it, and the codes of each stream."""

    motion: Motion
    codes: list[list[int]]
    notes: list[str]


class Coding(Task):
    """Reconstruction. ``quantiser`` is the factor of the quantiser's own loss."""

    monitor = "l1"

    @dataclass
    class Config:
        weights: ReconstructionConfig = field(default_factory=ReconstructionConfig)
        quantiser: float = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scale: Scale | None = None

    def match(self, model: Any, data: Any, trained: Mapping[str, Any]) -> None:
        """Raises `ZooError` for windows that are no whole number of tokens."""
        if trained:
            data.normalise_as(trained)
        frames, stride = data.preprocessing["frames"], model.config.stride
        if frames % stride:
            raise ZooError(f"data.frames={frames} is no multiple of a token's {stride} frames; change it")
        self.scale = Scale(data.preprocessing)

    def loss(self, model: Any, batch: Batch) -> Loss:
        assert self.scale is not None
        out = model(batch["motion"])
        loss = reconstruction_loss(batch["motion"], out.motion_BTC, batch["valid"], self.scale, self.config.weights)
        return Loss(loss + self.config.quantiser * out.loss_B.mean())

    def metrics(self) -> MetricCollection:
        """``l1`` of normalised features, ``joint_cm`` the mean distance of a joint from where it should be, and
        ``joint_mse`` the mean square of its three coordinates, in square metres."""
        return MetricCollection({"l1": MeanMetric(), "joint_cm": MeanMetric(), "joint_mse": MeanMetric()})

    def update(self, metrics: MetricCollection, model: Any, batch: Batch) -> None:
        assert self.scale is not None
        found = model(batch["motion"]).motion_BTC
        update_reconstruction(metrics, batch, found, self.scale)

    def assess(self, model: Any, data: Any, split: str, most: int | None) -> dict[str, float]:
        """``code_use``: the share of codes that some window of the whole data set uses, the mean over the streams."""
        return {"code_use": code_use(model.codec, data)}

    def predict(self, model: Any, preprocessing: Mapping[str, Any], inputs: Mapping[str, Any]) -> Recoded:
        """The motion of a file through the codes."""
        motion = facing(canonical(read_motion(inputs["motion"]), f"'{inputs['motion']}'", FPS))
        scale, stride = Scale(preprocessing), model.config.stride
        length = len(motion) // stride * stride
        if not length:
            raise ZooError(f"'{inputs['motion']}' is shorter than a token ({stride} frames at 30 a second)")
        x = scale.do(to_features(motion)[None, :length].to(model.device))
        out = model(x)
        codes = [code_of(each[0], model.codec.levels).tolist() for each in out.digits]
        again = grounded(from_features(scale.undo(out.motion_BTC)[0].cpu(), motion.root_T3[0]))
        error = float(joint_errors(x, out.motion_BTC, scale).mean())
        notes = [*motion.notes, f"joints are {100 * error:.3g} cm from where they were, the root left out"]
        return Recoded(again, codes, notes)

    def write(self, result: Recoded, out: Path) -> list[Path]:
        """``motion.bvh``, ``motion.gif``, ``codes.txt``."""
        out.mkdir(parents=True, exist_ok=True)
        text = "".join(" ".join(map(str, row)) + "\n" for row in result.codes)
        (out / "codes.txt").write_text(text, encoding="utf-8")
        files = [write_bvh(result.motion, out / "motion.bvh"), write_gif(result.motion, out / "motion.gif")]
        return [*files, out / "codes.txt"]


def update_reconstruction(metrics: MetricCollection, batch: Batch, found: torch.Tensor, scale: Scale) -> None:
    """Feed ``l1``, ``joint_cm`` and ``joint_mse``, frame by frame."""
    given, valid = batch["motion"], batch["valid"]
    metrics["l1"].update((given - found).abs().mean(-1)[valid])
    one, two = (scale.undo(x) for x in (given, found))
    metrics["joint_cm"].update(100 * joint_errors(given, found, scale)[valid])
    metrics["joint_mse"].update((joints(one) - joints(two)).square().mean((-1, -2))[valid])


def code_use(codec: Any, data: Any) -> float:
    """The share of codes that the data set uses, all its splits together, the mean over the streams."""
    used: list[set[int]] = [set() for _ in codec.quantisers]
    for split in SPLITS:
        windows = data.split(split)
        windows.move = False
        for batch in DataLoader(windows, batch_size=64):
            valid = batch["valid"][:, :: codec.stride].cpu()
            digits = codec.encode(batch["motion"].to(next(codec.parameters()).device))
            for seen, each in zip(used, digits, strict=True):
                seen.update(code_of(each.cpu(), codec.levels)[valid].tolist())
    return sum(len(seen) / codec.quantisers[0].size for seen in used) / len(used)

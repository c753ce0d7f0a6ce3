"""Judges of generated pictures: small networks trained on real ones alone, with a fixed seed, and the distance between
two sets of pictures in what a judge sees.

Shapes: N pictures, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo.threads import one_thread

FEATURES = 32
EPOCHS, BATCH = 20, 32
RIVALS = 31
"""Other captions that the right one is ranked among."""


class Judge(nn.Module):
    """Three convolutions to `FEATURES` features of a picture; on them a classifier, or the space that captions share
    (as CLIP, arXiv:2103.00020).

    Args:
        classes: how many there are; 0 for captions, of ``buckets`` pieces.
    """

    def __init__(self, channels: int, size: int, classes: int, buckets: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2 if size >= 16 else 1),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(64 * 16, FEATURES),
        )  # fmt: skip
        self.classes = classes
        self.head = nn.Linear(FEATURES, classes) if classes else None
        self.table = None if classes else nn.EmbeddingBag(buckets, FEATURES, mode="mean", padding_idx=0)
        self.heat = nn.Parameter(torch.tensor(2.0))

    def features(self, x_NCHW: Tensor) -> Tensor:
        """(N, F)."""
        found: Tensor = self.body(x_NCHW)
        return found

    def likeness(self, x_NCHW: Tensor, pieces_MW: Tensor) -> Tensor:
        """(N, M): how well each picture goes with each caption."""
        assert self.table is not None
        picture = F.normalize(self.features(x_NCHW), dim=-1)
        caption = F.normalize(self.table(pieces_MW), dim=-1)
        return picture @ caption.T * self.heat.exp()

    def loss(self, x_NCHW: Tensor, known: Tensor) -> Tensor:
        if self.head is not None:
            return F.cross_entropy(self.head(F.relu(self.features(x_NCHW))), known, label_smoothing=0.05)
        logits = self.likeness(x_NCHW, known)
        # Pictures of one caption are all right for it.
        same = (known[:, None] == known[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def right(self, x_NCHW: Tensor, known: Tensor) -> Tensor:
        """(N,): 1 where a picture shows what it is to show: its class, or its caption before `RIVALS` others, which
        are other captions of the same set, drawn with a fixed seed; a tie counts as its share."""
        if self.head is not None:
            return (self.head(F.relu(self.features(x_NCHW))).argmax(-1) == known).float()
        likeness = self.likeness(x_NCHW, known)
        other = ~(known[:, None] == known[None]).all(-1)
        draw = torch.rand(other.shape, generator=torch.Generator().manual_seed(0)).to(likeness.device)
        rank = torch.where(other, draw, 2.0).argsort(1)[:, : min(RIVALS, int(other.sum(1).min()))]
        return (likeness.diagonal()[:, None] > likeness.gather(1, rank)).all(1).float()


def stacked(dataset: Dataset[Any], name: str, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Pictures and what is known of them."""
    items: list[Mapping[str, Tensor]] = [dataset[row] for row in rows]
    return torch.stack([item["image"] for item in items]), torch.stack([item[name] for item in items])


def train_judge(x_NCHW: Tensor, known: Tensor, classes: int, buckets: int, epochs: int = EPOCHS) -> Judge:
    """A judge of these real pictures; the same each time, and with any number of threads. Pictures are moved by up to
    a pixel in twelve."""
    with one_thread(), torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge(x_NCHW.shape[1], x_NCHW.shape[-1], classes, buckets)
        _fit(judge, x_NCHW.cpu().clone(), known.cpu().clone(), epochs)
        return judge.eval().requires_grad_(False)


def _fit(judge: Judge, x_NCHW: Tensor, known: Tensor, epochs: int) -> None:
    steps = epochs * -(-len(x_NCHW) // BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    reach = x_NCHW.shape[-1] // 12
    for _ in range(epochs):
        for rows in torch.randperm(len(x_NCHW)).split(BATCH):
            x = x_NCHW[rows]
            if reach:
                down, right = torch.randint(-reach, reach + 1, (2,)).tolist()
                x = x.roll((down, right), (-2, -1))
            optimizer.zero_grad()
            judge.loss(x, known[rows]).backward()
            optimizer.step()
            schedule.step()


def halves(one_NF: Tensor, two_NF: Tensor, rounds: int = 8) -> float:
    """Mean `frechet` distance between a half of one set and the other half of another, item for item of the same
    kind, over fixed random halvings. Of a set and itself it is what two samples of one distribution differ by."""
    generator, half, total = torch.Generator().manual_seed(0), len(one_NF) // 2, 0.0
    for _ in range(rounds):
        order = torch.randperm(len(one_NF), generator=generator)
        total += frechet(one_NF[order[:half]], two_NF[order[half:]])
    return total / rounds


def frechet(one_NF: Tensor, two_NF: Tensor) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, the Frechet distance between two normal distributions of these
    means and covariances (arXiv:1706.08500); in fp64."""
    one, two = one_NF.double(), two_NF.double()
    cov1, cov2 = one.T.cov(), two.T.cov()
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return float((one.mean(0) - two.mean(0)).square().sum() + cov1.trace() + cov2.trace() - 2 * shared)

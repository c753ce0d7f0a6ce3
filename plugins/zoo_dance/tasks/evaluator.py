"""The one evaluator of dances. Numbers are only comparable inside it: they depend on rate, window, joints and judge.

Shapes: T frames, J joints, N dances, F features, K genres.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_dance.motion.beats import motion_beats
from zoo_dance.motion.skeleton import BODY, FEET, FPS

ROUNDS = 8
"""Random halvings that a distance is averaged over."""
BEAT_SIGMA = 3.0
LOW = 0.05
JUDGE_WIDTH, JUDGE_STEPS, JUDGE_BATCH = 48, 250, 32

_J = {name: place for place, name in enumerate(BODY.names)}


def kinetic(places_TJ3: Tensor) -> Tensor:
    """(72,): for each joint the mean energy of its way over the ground, of its way up and down, and its mean
    acceleration, at unit mass (fairmotion's kinetic features)."""
    speed = (places_TJ3[1:] - places_TJ3[:-1]) * FPS
    change = (speed[1:] - speed[:-1]) * FPS
    across = speed[..., [0, 2]].square().sum(-1).mean(0)
    up = speed[..., 1].square().mean(0)
    effort = change.norm(dim=-1).mean(0) if len(change) else torch.zeros_like(up)
    return torch.cat([across, up, effort / FPS])


def geometric(places_TJ3: Tensor) -> Tensor:
    """(26,): how often simple relations of the body hold (after Muller et al., 2005): a hand before the chest, above
    the head, at the hip, arms or knees bent, feet apart, a foot lifted or quick, the body bent, low or turning."""
    p = places_TJ3
    hips = p[:, _J["left_hip"]] - p[:, _J["right_hip"]]
    side = F.normalize(hips, dim=-1)
    ahead = F.normalize(torch.linalg.cross(side, torch.tensor([0.0, 1.0, 0.0], dtype=p.dtype).expand_as(side)), dim=-1)
    speed = torch.cat([torch.zeros_like(p[:1]), (p[1:] - p[:-1]) * FPS])
    chest, pelvis, head = p[:, _J["spine3"]], p[:, _J["pelvis"]], p[:, _J["head"]]
    found: list[Tensor] = []
    for name, sign in (("left", 1.0), ("right", -1.0)):
        hand, elbow, shoulder = (p[:, _J[f"{name}_{part}"]] for part in ("wrist", "elbow", "shoulder"))
        ankle, knee, hip = (p[:, _J[f"{name}_{part}"]] for part in ("ankle", "knee", "hip"))
        found += [
            ((hand - chest) * ahead).sum(-1) > 0.2,
            hand[:, 1] > head[:, 1],
            hand[:, 1] > shoulder[:, 1],
            sign * ((hand - shoulder) * side).sum(-1) > 0.3,
            (hand - hip).norm(dim=-1) < 0.25,
            _bend(shoulder, elbow, hand) < 1.9,
            _bend(hip, knee, ankle) < 2.1,
            ((ankle - pelvis) * ahead).sum(-1) > 0.2,
            ankle[:, 1] > p[..., 1].min(-1).values + 0.15,
            speed[:, _J[f"{name}_wrist"]].norm(dim=-1) > 1.5,
            speed[:, _J[f"{name}_ankle"]].norm(dim=-1) > 1.0,
        ]
    apart = (p[:, _J["left_ankle"]] - p[:, _J["right_ankle"]]).norm(dim=-1) > 0.45
    trunk = F.normalize(p[:, _J["neck"]] - pelvis, dim=-1)
    low = pelvis[:, 1] - p[..., 1].min(-1).values < 0.6
    found += [apart, trunk[:, 1] < 0.85, low, speed[:, _J["pelvis"]].norm(dim=-1) > 1.0]
    return torch.stack(found, -1).to(p.dtype).mean(0)


def _bend(one: Tensor, middle: Tensor, two: Tensor) -> Tensor:
    """The angle at ``middle``, radians."""
    cos = F.cosine_similarity(one - middle, two - middle, dim=-1)
    return torch.arccos(cos.clamp(-1, 1))


def frechet(one_NF: Tensor, two_NF: Tensor) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (arXiv:1706.08500), in fp64."""
    one, two = one_NF.double(), two_NF.double()
    cov1, cov2 = one.T.cov(), two.T.cov()
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return float((one.mean(0) - two.mean(0)).square().sum() + cov1.trace() + cov2.trace() - 2 * shared)


def halves(one_NF: Tensor, two_NF: Tensor) -> float:
    """Mean `frechet` distance between half of one set and the other half of another, over fixed random halvings. Of a
    set and itself it is what two samples of one distribution differ by: the floor."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    half = len(one_NF) // 2
    for _ in range(ROUNDS):
        order = torch.randperm(len(one_NF), generator=generator)
        total += frechet(one_NF[order[:half]], two_NF[order[half:]])
    return total / ROUNDS


def diversity(x_NF: Tensor) -> float:
    """Mean distance between two."""
    return float(torch.pdist(x_NF).mean()) if len(x_NF) > 1 else 0.0


def alignment(music_beats: Sequence[float], places_TJ3: Tensor) -> float | None:
    """Mean over the beats of the music, in frames, of exp(-d^2 / (2 sigma^2)), d the distance to the nearest beat of
    the motion, sigma 3 frames. None without beats."""
    mine = torch.tensor(motion_beats(places_TJ3, FPS), dtype=torch.float64)
    if not len(music_beats):
        return None
    if not len(mine):
        return 0.0
    gaps = (torch.tensor(list(music_beats), dtype=torch.float64)[:, None] - mine).abs().amin(1)
    return float(torch.exp(-gaps.square() / (2 * BEAT_SIGMA**2)).mean())


def slide(places_TJ3: Tensor) -> float:
    """Centimetres a second that feet move over the ground while they are within `LOW` of their lowest place."""
    feet_TF3 = places_TJ3[:, FEET]
    low = (feet_TF3[..., 1] < feet_TF3[..., 1].min(0).values + LOW)[1:]
    speed = (feet_TF3[1:, :, [0, 2]] - feet_TF3[:-1, :, [0, 2]]).norm(dim=-1) * FPS
    return float(100 * (speed * low).sum() / low.sum().clamp(min=1))


def jitter(places_TJ3: Tensor) -> float:
    """Mean size of the third difference of a joint's place, in metres a second^3 over 1000."""
    third = places_TJ3.diff(dim=0).diff(dim=0).diff(dim=0) * FPS**3
    return float(third.norm(dim=-1).mean() / 1000) if len(third) else 0.0


class Judge(nn.Module):
    """Tells the genre of a motion from places and speeds of its joints, seen from its root: three convolutions over
    time and a mean. It learns from real motion alone."""

    def __init__(self, genres: int) -> None:
        super().__init__()
        width = JUDGE_WIDTH
        self.body = nn.Sequential(
            nn.Conv1d(len(BODY.names) * 6 + 3, width, 5, padding=2), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv1d(width, width, 5, padding=4, dilation=2), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv1d(width, width, 5, padding=8, dilation=4), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width, genres)

    def forward(self, seen_NFT: Tensor, valid_NT: Tensor) -> Tensor:
        y = self.body(seen_NFT * valid_NT[:, None])
        return self.head((y * valid_NT[:, None]).sum(-1) / valid_NT.sum(-1, keepdim=True).clamp(min=1))


def seen(places_TJ3: Tensor) -> Tensor:
    """(F, T): places from the root, speeds, and the root's own speed; the first frame's heading is ahead."""
    hips = places_TJ3[0, _J["left_hip"]] - places_TJ3[0, _J["right_hip"]]
    angle = torch.atan2(hips[2], hips[0])
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([torch.stack(row) for row in ([cos, zero, sin], [zero, one, zero], [-sin, zero, cos])])
    p = places_TJ3 @ turn.T
    speed = torch.cat([torch.zeros_like(p[:1]), (p[1:] - p[:-1]) * FPS])
    local = p - p[:, :1] * torch.tensor([1.0, 0.0, 1.0], dtype=p.dtype)
    return torch.cat([local.flatten(1), speed.flatten(1) * 0.3, speed[:, 0]], -1).T.float()


def train_judge(dances: Sequence[Tensor], genre_N: Tensor, genres: int) -> Judge:
    """A judge of these real motions (T, J, 3); the same each time."""
    x_NFT, valid_NT = stacked(dances)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge, x_NFT, valid_NT, genre_N = Judge(genres), x_NFT.clone(), valid_NT.clone(), genre_N.clone()
        optimizer = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=JUDGE_STEPS + 1)
        # Genres count alike, however many clips there are of each.
        weight_N = 1.0 / torch.bincount(genre_N, minlength=genres).clamp(min=1)[genre_N].float()
        for _ in range(JUDGE_STEPS):
            rows = torch.multinomial(weight_N, JUDGE_BATCH, replacement=True)
            optimizer.zero_grad()
            F.cross_entropy(judge(x_NFT[rows], valid_NT[rows]), genre_N[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return judge.eval().requires_grad_(False)


def accuracy(judge: Judge, dances: Sequence[Tensor], genre_N: Tensor) -> float:
    """How often the judge sees the genre that was asked for."""
    return float((judge(*stacked(dances)).argmax(-1) == genre_N).float().mean())


def stacked(dances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the judge sees of dances of several lengths, (N, F, T), and which frames are real, (N, T)."""
    longest = max(len(each) for each in dances)
    x = torch.stack([F.pad(seen(each), (0, longest - len(each))) for each in dances])
    valid = torch.stack([torch.arange(longest) < len(each) for each in dances]).float()
    return x, valid


def judged(
    made: Sequence[Tensor],
    real: Sequence[Tensor],
    beats: Sequence[Sequence[float]],
    genre_N: Tensor,
    judge: Judge | None,
    held_out_N: Tensor | None = None,
) -> dict[str, float]:
    """All numbers of dances (T, J, 3) beside those of the real ones that belong to the same music and genre.

    ``fid_k`` and ``fid_g``: Frechet distances of `kinetic` and `geometric` features, z-normalised by the real ones;
    ``..._floor`` between halves of the real ones; ``div_...`` their spread. ``bas``: beat alignment; ``bas_shuffled``
    with the beats of another song. ``genre_acc`` by the judge; ``genre_acc_held_out``
    of the held-out pairs alone. ``slide`` of feet in cm/s, ``jitter`` in km/s^3.
    ``..._real`` are those of the real dances; ``windows`` and ``frames`` say on how much.
    """
    out: dict[str, float] = {"windows": len(made), "frames": sum(len(each) for each in made) / max(1, len(made))}
    for name, features in (("k", kinetic), ("g", geometric)):
        real_NF = torch.stack([features(each) for each in real])
        made_NF = torch.stack([features(each) for each in made])
        mean, spread = real_NF.mean(0), real_NF.std(0).clamp(min=1e-2)
        real_NF, made_NF = (real_NF - mean) / spread, (made_NF - mean) / spread
        out |= {f"fid_{name}": halves(made_NF, real_NF), f"fid_{name}_floor": halves(real_NF, real_NF)}
        out |= {f"div_{name}": diversity(made_NF), f"div_{name}_real": diversity(real_NF)}
    other = [beats[(n + len(beats) // 2 + 1) % len(beats)] for n in range(len(beats))]
    for name, dances, heard in (("bas", made, beats), ("bas_shuffled", made, other), ("bas_real", real, beats)):
        scores = [s for b, each in zip(heard, dances, strict=True) if (s := alignment(b, each)) is not None]
        out[name] = sum(scores) / max(1, len(scores))
    if judge is not None:
        out |= {"genre_acc": accuracy(judge, made, genre_N), "genre_acc_real": accuracy(judge, real, genre_N)}
        if held_out_N is not None and held_out_N.any():
            rows = held_out_N.nonzero()[:, 0].tolist()
            for name, dances in (("genre_acc_held_out", made), ("genre_acc_held_out_real", real)):
                out[name] = accuracy(judge, [dances[row] for row in rows], genre_N[rows])
    for name, score in (("slide", slide), ("jitter", jitter)):
        out[name] = sum(score(each) for each in made) / len(made)
        out[f"{name}_real"] = sum(score(each) for each in real) / len(real)
    return out

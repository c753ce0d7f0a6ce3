"""A trained model of vision_language against the control that sees no image, question by question on the test split:

    python benchmarks/against_blind.py RUN [--split test] [--by question]

RUN is a run folder. The 95% interval of the difference is normal, over questions; with ``--by question`` over groups of
the same words (NLVR asks each of six pictures, so they are not independent), with ``--by image`` over images.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import torch

from zoo import config as zc
from zoo import hub


def interval(difference: list[int], group: list[str]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95% interval over groups: the variance of a ratio of sums."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for d, g in zip(difference, group, strict=True):
        sums[g][0] += d
        sums[g][1] += 1
    count, groups = len(difference), len(sums)
    mean = sum(difference) / count
    spread = sum((total - mean * size) ** 2 for total, size in sums.values())
    half = 1.96 * math.sqrt(spread * groups / (groups - 1)) / count
    return mean, mean - half, mean + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--by", choices=("each", "question", "image"), default="each")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    predictor = hub.load(args.run)
    task, model = predictor.task, predictor.model
    data = zc.build("data set", zc.read_yaml(Path(args.run) / "config.yaml")["data"])
    task.match(model, data, predictor.preprocessing)
    rows = data.split(args.split)
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    with torch.inference_mode():
        for start in range(0, len(rows), args.batch_size):
            some = range(start, min(len(rows), start + args.batch_size))
            batch = data.collate([rows[n] for n in some])
            right_BQ = task.right(model, batch).tolist()
            blind_BQ = batch["blind"].tolist()
            for place, n in enumerate(some):
                for q, turn in enumerate(rows.rows[n].turns):
                    group = {"question": turn.question, "image": str(rows.rows[n].images), "each": f"{n}.{q}"}[args.by]
                    found[turn.kind].append((int(right_BQ[place][q]), int(blind_BQ[place][q]), group))
    if len(found) > 1:
        found["all"] = [item for kind in list(found) for item in found[kind]]
    for kind, items in found.items():
        mean, low, high = interval([a - b for a, b, _ in items], [group for *_, group in items])
        model_share, blind_share = (sum(item[n] for item in items) / len(items) for n in (0, 1))
        print(
            f"{kind}: {len(items):,} questions in {len({g for *_, g in items}):,} groups, model {model_share:.3f}, "
            f"blind {blind_share:.3f}, difference {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        )


if __name__ == "__main__":
    main()

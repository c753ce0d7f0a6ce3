"""BIP's prices against the linear program: routed score and largest load violation, per skew of the scores and sweeps.

python benchmarks/bip_optimum.py [batches]

Tokens choose 2 of 8 experts by softmax scores of normal logits, to which ``skew * linspace(1, -1, 8)`` is added, in
batches of 64 tokens. "published" is the update of the paper (arXiv:2502.15451) as far as it is known here: the next
largest values themselves, at least 0. Cold prices start from 0 in every batch, warm ones from those of the last.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from zoo.moe import Balancers

T, E, K = 64, 8, 2


def optimum(scores_TE: Tensor) -> float:
    """The highest score that any routing of K experts a token within the capacity has."""
    of_token, of_expert = np.kron(np.eye(T), np.ones(E)), np.kron(np.ones(T), np.eye(E))
    rooms = [T * K / E] * E
    flat = scores_TE.flatten().double().numpy()
    best = linprog(-flat, A_eq=of_token, b_eq=[K] * T, A_ub=of_expert, b_ub=rooms, bounds=(0, 1))
    return -float(best.fun)


def ours(price_E: Tensor, scores_TE: Tensor, sweeps: int) -> Tensor:
    balancer = Balancers({"bip": {"k": K, "sweeps": sweeps}}, 1, E).each["bip"]
    prices: Tensor = balancer.prices(price_E, scores_TE, torch.ones(T, dtype=torch.bool))  # type: ignore[operator]
    return prices


def published(price_E: Tensor, scores_TE: Tensor, sweeps: int) -> Tensor:
    for _ in range(sweeps):
        gain_T1 = (scores_TE - price_E).topk(K + 1).values[:, K:].clamp(min=0)
        price_E = (scores_TE - gain_T1).sort(0, descending=True).values[T * K // E].clamp(min=0)
    return price_E


def main(batches: int = 50) -> None:
    print("| skew | sweeps | prices | score over optimum, mean | worst | MaxVio, mean | worst |\n" + "| --- " * 7 + "|")
    for skew in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        data = [(torch.randn(T, E) + skew * torch.linspace(1, -1, E)).softmax(-1) for _ in range(batches)]
        best = [optimum(scores_TE) for scores_TE in data]
        for sweeps in (2, 4, 8, 14):
            for name, rule, warm in (("published", published, False), ("cold", ours, False), ("warm", ours, True)):
                price_E, over, violation = torch.zeros(E), [], []
                for scores_TE, most in zip(data, best, strict=True):
                    price_E = rule(price_E if warm else torch.zeros(E), scores_TE, sweeps)
                    index_TK = (scores_TE - price_E).topk(K).indices
                    over.append(float(scores_TE.gather(1, index_TK).double().sum()) / most - 1)
                    violation.append(float(index_TK.flatten().bincount(minlength=E).max()) / (T * K / E) - 1)
                worst = max(over, key=abs)
                print(
                    f"| {skew:.0f} | {sweeps} | {name} | {np.mean(over):+.2%} | {worst:+.2%} "
                    f"| {np.mean(violation):.3f} | {max(violation):.3f} |"
                )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

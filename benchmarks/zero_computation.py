"""Expert-forward time of a MoE++ layer against a plain one with the same true experts, as a ratio in one run.

python benchmarks/zero_computation.py [--experts 8] [--free 1 1 2] [--hidden 768] [--inner 2048] [--tokens 2048]

MoE++ (arXiv:2410.07348, table 3) adds zero, copy and constant experts to N true ones; ``tau`` sets how many go to
them: here each slot's expert is drawn with the odds that its load-balance loss (eq. 7) and capacity (eq. 8) aim at, tau
for a true expert and 1 for a free one; the plain layer draws among the true ones alone. Only the bank is timed, without
the router; both take turns, and the median of the ratios of neighbouring turns is given.

Shapes: T tokens, K slots, E experts, D model width.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from zoo import config as zc
from zoo.moe.experts import Bank
from zoo_kernels import ops

K = 2
PAPER = {
    8: {0.1: 2.64, 0.25: 1.93, 0.5: 1.38, 0.75: 1.25, 1.0: 1.19},
    16: {0.1: 2.11, 0.25: 1.59, 0.5: 1.30, 0.75: 1.22, 1.0: 1.15},
}
"""Table 3, "MoE++ 0.6B/(8+4)E" and "1B/(16+4)E": time of the plain layer over that of each tau."""


def bank(num_experts: int, hidden: int, inner: int, free: tuple[int, int, int]) -> Bank:
    """N true experts, then zero, copy and constant ones."""
    names = ("null", "copy", "constant")
    true = {"name": "swiglu", "intermediate_size": inner, "count": num_experts}
    banks = [true, *({"name": name, "count": count} for name, count in zip(names, free, strict=True) if count)]
    node = {"name": "mixed", "banks": banks} if sum(free) else {k: v for k, v in true.items() if k != "count"}
    made: Bank = zc.build("experts", node, hidden, num_experts + sum(free))
    made.reset_parameters(0.02)
    return made


def drawn(odds_E: Tensor, tokens: int) -> Tensor:
    """(T, K): different experts, by these odds."""
    return odds_E.expand(tokens, -1).multinomial(K)


def seconds(made: Bank, x_TD: Tensor, index_TK: Tensor) -> float:
    weight_TK = torch.full(index_TK.shape, 1 / K)
    plan = ops.plan(index_TK, made.num_experts)
    start = time.perf_counter()
    made(x_TD, weight_TK, plan)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in {"experts": 8, "hidden": 768, "inner": 2048, "tokens": 2048, "turns": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--free", type=int, nargs=3, default=(1, 1, 2), help="zero, copy and constant experts")
    args = parser.parse_args()
    torch.manual_seed(0)
    plain, plus = (bank(args.experts, args.hidden, args.inner, free) for free in ((0, 0, 0), tuple(args.free)))
    x_TD, even_E = torch.randn(args.tokens, args.hidden), torch.ones(args.experts)
    free = sum(args.free)
    print(f"{args}, {torch.get_num_threads()} threads\n")
    print("| tau | slots at true experts | plain, ms | MoE++, ms | plain / MoE++ | by work alone | paper |")
    print("| --- " * 7 + "|")
    for tau in (0.1, 0.25, 0.5, 0.75, 1.0):
        odds_E = torch.cat([even_E * tau, torch.ones(free)])
        times, shares = [], []
        for turn in range(args.turns + 2):
            index_TK = drawn(odds_E, args.tokens)
            pair = seconds(plain, x_TD, drawn(even_E, args.tokens)), seconds(plus, x_TD, index_TK)
            if turn >= 2:  # the first ones warm up
                times.append(pair)
                shares.append(float((index_TK < args.experts).float().mean()))
        share = statistics.mean(shares)
        ratio = statistics.median(one / other for one, other in times)
        one, other = (1000 * statistics.median(column) for column in zip(*times, strict=True))
        paper = PAPER.get(args.experts, {}).get(tau)
        said = f"{paper:.2f}" if paper else ""
        print(f"| {tau} | {share:.3f} | {one:.1f} | {other:.1f} | {ratio:.2f} | {1 / share:.2f} | {said} |", flush=True)


if __name__ == "__main__":
    main()

"""COMET against top-k where the right assignment is known: which of them finds the planted gate?

python benchmarks/comet_planted.py [--experts 8] [--steps 1000]

Experts are fixed random layers, and the target is what the expert says that a planted linear gate names; only the gate
is learned, by squared error on the output. Both gates can represent the planted one: a linear gate is one, and so are
the leaves of COMET's trees (arXiv:2306.02824) while their branches stay open. Recovery is the share of fresh tokens
whose heaviest expert is the planted one. Each contestant has 12 settings tried on two seeds of their own; the best one
runs on five others, with the same data, experts and planted gate for all contestants of a seed.

Shapes: T tokens, D model width, E experts.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import config as zc
from zoo.moe import Balancers, RouteContext, RouterOutput
from zoo.moe.router import Router, RouterConfig

D, INNER, T = 16, 16, 256
RATES = (3e-3, 1e-2, 3e-2)
Setting = dict[str, Any]


def topk(k: int, balance: float) -> Setting:
    # a renormalised top-1 has no gradient
    router = {"selector": {"name": "topk", "k": k}, "weigher": {"name": "gather", "renorm": k > 1}}
    return {"router": router, "balance": {"switch": {"coef": balance}} if balance else {}}


def comet(entropy: float, gamma: float = 1.0, search: int = 0) -> Setting:
    hooks = {"local_search": {"steps": search}} if search else {}
    scorer = {"name": "comet", "trees": 2, "entropy": entropy, "gamma": gamma}
    selector = {"name": "threshold", "threshold": 1e-6}
    return {"router": {"scorer": scorer, "logit_hooks": hooks, "selector": selector}, "balance": {}}


def contestants(steps: int) -> dict[str, dict[str, Setting]]:
    """Four settings of each, by what they are; times three learning rates."""
    entropies = (0.0, 0.01, 0.1, 1.0)
    return {
        "top-k": {f"k={k}, balance={c}": topk(k, c) for k, c in product((1, 2), (0.0, 0.01))},
        "COMET": {f"entropy={e}": comet(e) for e in entropies},
        "COMET, narrow step (gamma=0.1)": {f"entropy={e}": comet(e, 0.1) for e in entropies},
        "COMET, local search": {f"entropy={e}": comet(e, search=steps // 2) for e in entropies},
    }


def run(experts: int, setting: Setting, rate: float, seed: int, steps: int) -> tuple[float, float, float]:
    """Recovery, experts a token and squared error over that of saying 0, on fresh tokens."""
    torch.manual_seed(seed)
    in_EFD, out_EDF = torch.randn(experts, INNER, D) * D**-0.5, torch.randn(experts, D, INNER) * INNER**-0.5
    gate_ED, data = torch.randn(experts, D), torch.Generator().manual_seed(1000 + seed)

    def batch(tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, what every expert says, what the planted one says, and which that is."""
        x_TD = torch.randn(tokens, D, generator=data)
        label_T = (x_TD @ gate_ED.T).argmax(-1)
        said_TED = torch.einsum("edf,tef->ted", out_EDF, F.silu(torch.einsum("efd,td->tef", in_EFD, x_TD)))
        return x_TD, said_TED, said_TED[torch.arange(tokens), label_T], label_T

    made = Router(zc.make(RouterConfig, **setting["router"]), D, experts)
    made.reset_parameters(0.1)
    balancers = Balancers(setting["balance"], 1, experts)
    optimiser = torch.optim.Adam(made.parameters(), lr=rate)

    def mixed(x_TD: Tensor, said_TED: Tensor, step: int | None) -> tuple[Tensor, RouterOutput]:
        out = made(x_TD, torch.ones(len(x_TD), dtype=torch.bool), RouteContext(step=step))
        weight_TE = torch.zeros_like(out.scores_TE).scatter_add(1, out.index_TK, out.weight_TK)
        return torch.einsum("te,ted->td", weight_TE, said_TED), out

    for step in range(steps):
        x_TD, said_TED, target_TD, _ = batch(T)
        y_TD, out = mixed(x_TD, said_TED, step)
        loss = F.mse_loss(y_TD, target_TD) / target_TD.square().mean() + sum(balancers.loss((out,)).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
    with torch.inference_mode():
        made.eval()
        x_TD, said_TED, target_TD, label_T = batch(8192)
        y_TD, out = mixed(x_TD, said_TED, None)
        heaviest_T = out.index_TK.gather(1, out.weight_TK.argmax(1, keepdim=True))[:, 0]
        error = F.mse_loss(y_TD, target_TD) / target_TD.square().mean()
    return float((heaviest_T == label_T).float().mean()), float(out.used_TK.sum() / len(label_T)), float(error)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    print(f"{args.experts} experts, {args.steps} steps of {T} tokens\n")
    print("| gate | setting | recovery of seeds 0 to 4 | median | experts a token | error |\n" + "| --- " * 6 + "|")
    for name, settings in contestants(args.steps).items():
        tried = [
            (statistics.mean(run(args.experts, setting, rate, seed, args.steps)[0] for seed in (100, 101)), said, rate)
            for said, setting in settings.items()
            for rate in RATES
        ]
        _, best, rate = max(tried)
        results = [run(args.experts, settings[best], rate, seed, args.steps) for seed in range(5)]
        recovery, used, error = zip(*results, strict=True)
        each = " ".join(f"{value:.3f}" for value in recovery)
        print(
            f"| {name} | {best}, lr={rate} | {each} | {statistics.median(recovery):.3f} "
            f"| {statistics.mean(used):.2f} | {statistics.mean(error):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

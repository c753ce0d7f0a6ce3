"""Ten thousand layer calls of random shapes: memory must not grow, nothing may be NaN, 1% are checked against float64.

OMP_NUM_THREADS=1 python benchmarks/soak.py --calls 10000
"""

import argparse
import random
from pathlib import Path

import torch

from zoo_kernels import ops, reference


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def call(rng: random.Random, check: bool) -> float:
    """One forward and backward; the largest relative error against float64, or 0 if not checked. Raises on NaN."""
    tokens, model, inner = rng.randint(0, 200), rng.randint(1, 96), rng.randint(1, 96)
    experts = rng.randint(1, 24)
    k, activation = rng.randint(1, min(experts, 6)), rng.choice(reference.ACTIVATIONS)
    gated = activation in reference.GATED
    width = inner * (2 if gated else 1)
    shapes = [(tokens, model), (tokens * k,), (experts, width, model), (experts, model, inner), (experts, width)]
    widths = None
    if rng.random() < 0.3:  # experts that differ in width
        units = [rng.randint(0, inner) for _ in range(experts)]
        widths, twice = ops.Widths.of(units), width // inner
        shapes[2:] = [(twice * sum(units), model), (sum(units), model), (twice * sum(units),)]
    x, weight, w_in, w_out, b_in = leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
    index, _, _ = ops.route(torch.randn(tokens, experts), k)
    plan = ops.plan(index, experts, torch.rand(tokens, k) > rng.choice([-1.0, 0.3]))
    options = {"activation": activation, "widths": widths, "interleaved": gated and rng.random() < 0.3}
    if activation == "clamped_swiglu":
        options["limit"] = 7.0
    save = rng.choice(["hidden", "x_only"])
    y = ops.expert_ffn(x, weight, plan, w_in / model**0.5, w_out / inner**0.5, b_in=b_in, save=save, **options)
    grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    results = [y.detach(), *grads]
    if not all(torch.isfinite(result).all() for result in results):
        raise ArithmeticError(f"not finite: {shapes}, {options}")
    if not check:
        return 0.0
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    matrices = exact[2] / model**0.5, exact[3] / inner**0.5
    want = reference.expert_ffn(exact[0], exact[1], plan, *matrices, b_in=exact[4], **options)
    wanted = [want.detach(), *torch.autograd.grad(want, exact, torch.ones_like(want))]
    # gradients of gates are sums that may cancel: compared on the scale of a typical entry
    return max(
        ((a.double() - b).norm() / (b.norm() + 1e-2 * b.numel() ** 0.5 + 1e-30)).item()
        for a, b in zip(results, wanted, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    worst, memory = 0.0, []
    for number in range(args.calls):
        worst = max(worst, call(rng, check=number % 100 == 0))
        if number % (args.calls // 10) == args.calls // 10 - 1:
            memory.append(resident_mb())
            print(f"{number + 1} calls: {memory[-1]:.0f} MB resident, worst relative error {worst:.1e}", flush=True)
    growth = memory[-1] - memory[len(memory) // 2]
    print(f"growth over the second half: {growth:.1f} MB")
    if growth > 20 or worst > 1e-5:
        raise SystemExit("soak failed")


if __name__ == "__main__":
    main()

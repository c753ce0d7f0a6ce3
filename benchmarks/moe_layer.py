"""One MoE layer against Hugging Face's experts and the GEMM limit, interleaved, in one process.

    python benchmarks/moe_layer.py --shape b --threads 1 --clock cpu
    python benchmarks/moe_layer.py --shape 4096,512,256,64,6 --threads 2 --json out.json

Legend: T tokens, D model, F inner, E experts, K slots. Every contender gets the same tensors; medians with quartiles.
`--clock cpu` is process CPU time divided by the threads, for a busy machine; `wall` needs a quiet one.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

SHAPES = {
    "a": (2048, 512, 1024, 8, 2),
    "b": (4096, 512, 256, 64, 6),
    "c": (16, 512, 256, 64, 8),
    "d": (512, 256, 128, 256, 8),
}


def contenders(torch, shape: tuple[int, ...], names: list[str]) -> dict[str, tuple[Callable, tuple]]:
    """name -> (function of nothing giving the output, leaves to differentiate)."""
    import torch.nn.functional as F
    from transformers.integrations import moe

    from zoo_kernels import ops

    t, d, f, e, k = shape
    torch.manual_seed(0)
    x = torch.randn(t, d, requires_grad=True)
    w_in = torch.nn.Parameter(torch.randn(e, 2 * f, d) / d**0.5)
    w_out = torch.nn.Parameter(torch.randn(e, d, f) / f**0.5)
    index, weight, _ = ops.route(torch.randn(t, e), k, renorm=True)
    weight.requires_grad_()
    flags = {"has_gate": True, "has_bias": False, "is_transposed": False, "has_post_expert_norm": False}
    hf = SimpleNamespace(
        num_experts=e, gate_up_proj=w_in, down_proj=w_out, act_fn=F.silu, _is_expert_parallel=False, **flags
    )
    hf._apply_gate = lambda proj: moe._default_apply_gate(hf, proj)
    wide_in, wide_out = torch.nn.Parameter(torch.randn(2 * f * k, d)), torch.nn.Parameter(torch.randn(d, f * k))

    def zoo(save: str = "hidden"):
        return ops.expert_ffn(x, weight.flatten(), ops.plan(index, e), w_in, w_out, save=save)

    def dense():
        gate, up = F.linear(x, wide_in).chunk(2, -1)
        return F.linear(F.silu(gate) * up, wide_out)

    leaves = (x, weight, w_in, w_out)
    table = {
        "zoo": (zoo, leaves),
        "zoo x_only": (lambda: zoo("x_only"), leaves),
        "hf grouped_mm": (lambda: moe.grouped_mm_experts_forward(hf, x, index, weight), leaves),
        "hf batched_mm": (lambda: moe.batched_mm_experts_forward(hf, x, index, weight), leaves),
        "dense": (dense, (x, wide_in, wide_out)),
    }
    return {name: table[name] for name in names}


def measure(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return 1e3 * (clock() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help="a, b, c, d or T,D,F,E,K (default: all four)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--samples", type=int, default=9)
    parser.add_argument("--peers", default="zoo,hf grouped_mm,dense")
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    import torch

    torch.set_num_threads(args.threads)
    clock = time.perf_counter if args.clock == "wall" else lambda: time.process_time() / args.threads
    square = torch.randn(1024, 1024)
    report = {"threads": args.threads, "clock": args.clock, "load": os.getloadavg()[0], "torch": torch.__version__}
    for name in args.shape or list(SHAPES):
        shape = SHAPES.get(name) or tuple(map(int, name.split(",")))
        peers = contenders(torch, shape, args.peers.split(","))
        times: dict[str, list[float]] = {}
        for sample in range(args.samples + 2):
            for peer, (forward, leaves) in peers.items():
                with torch.no_grad():
                    fwd = measure(forward, clock)
                grad = torch.ones(shape[0], shape[1])
                both = measure(lambda f=forward, v=leaves, g=grad: torch.autograd.grad(f(), v, g), clock)
                if sample > 1:  # the first two rounds warm caches and pools
                    times.setdefault(f"{peer} fwd", []).append(fwd)
                    times.setdefault(f"{peer} fwd+bwd", []).append(both)
            mm = measure(lambda: torch.mm(square, square), clock)
            if sample > 1:
                times.setdefault("mm", []).append(mm)
        t, d, f, _, k = shape
        limit = statistics.median(times.pop("mm")) / (2 * 1024**3) * 6 * t * k * d * f
        rows = {key: statistics.quantiles(values, n=4) for key, values in times.items()}
        print(f"\n{name} {shape}: torch.mm limit {limit:.1f} / {3 * limit:.1f} ms, load {os.getloadavg()[0]:.1f}")
        for key, (low, median, high) in rows.items():
            kind = key.rsplit(" ", 1)[1]
            peer = rows.get(f"hf grouped_mm {kind}", (0, median, 0))[1]
            print(f"  {key:24s} {median:9.2f} ms  [{low:.2f}, {high:.2f}]   {peer / median:5.2f}x vs grouped_mm")
        report[name] = {"shape": shape, "limit_ms": limit, "quartiles_ms": rows}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()

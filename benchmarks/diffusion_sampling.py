"""Sampling throughput: a diffusion transformer with our experts against the same model whose experts are Hugging Face's
``grouped_mm``. Same weights, same noise, same routing decisions; ratios of one run.

python benchmarks/diffusion_sampling.py [--model diffusion/dit_moe_s_8e2a] [--layers 4] [--pictures 4] [--steps 2]
    [--rounds 3] [--threads 1]

Both draw the same pictures with guidance (so the model sees each picture twice a step) by Euler's method; the two take
turns. The largest difference between the pictures is printed beside the times. On a machine that others use the CPU
time is the number to read, with one thread.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

from zoo.bench.timing import contention, interleave, pinned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diffusion/dit_moe_s_8e2a")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with pinned(arguments.threads):
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    import copy

    import torch

    import zoo
    from zoo import config as zc
    from zoo.nn.size import measure
    from zoo.nn.transformer import initialise
    from zoo_diffusion.sampling import sample

    torch.manual_seed(0)
    ours = zoo.create_model(arguments.model, **{"stack.num_layers": arguments.layers}).eval()
    initialise(ours, 0.05)  # a new model predicts nothing
    theirs = copy.deepcopy(ours)
    hugging_face(theirs)
    objective = zc.build("objective", zc.resolve_part("objective", {"name": "diffusion/rectified_flow"}, ""))
    node = {"name": "diffusion/euler", "steps": arguments.steps}
    sampler = zc.build("sampler", zc.resolve_part("sampler", node, ""))
    condition = ours.condition.examples(arguments.pictures)
    drawn: dict[str, Any] = {}

    @torch.no_grad()
    def draw(name: str, model: Any) -> None:
        drawn[name] = sample(model, objective, sampler, condition, arguments.pictures, guidance=2.0)

    with contention() as seen:
        times = interleave(
            {"zoo": lambda: draw("zoo", ours), "HF grouped_mm": lambda: draw("hf", theirs)}, arguments.rounds
        )
    size, config = measure(ours), ours.config
    tokens = 2 * arguments.pictures * (config.image_size // config.patch_size) ** 2
    print(
        f"{arguments.model} of {arguments.layers} layers, {size.parameters:,} parameters, {size.active:,} active; "
        f"{tokens} tokens an evaluation, {torch.get_num_threads()} thread(s)"
    )
    rows = {name: each.summary() for name, each in times.items()}
    print("| experts | CPU ms a picture | wall ms a picture | speed-up, CPU | speed-up, wall |")
    print("|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        cells = [row[clock]["median"] / arguments.pictures for clock in ("cpu_ms", "wall_ms")]
        ratios = [rows["HF grouped_mm"][c]["median"] / row[c]["median"] for c in ("cpu_ms", "wall_ms")]
        print(f"| {name} | {cells[0]:.1f} | {cells[1]:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"largest difference of the pictures: {(drawn['zoo'] - drawn['hf']).abs().max():.2g}")
    print(f"others used {seen.get('others', float('nan')):.0%} of all cores, load {seen['load_average']}")


def hugging_face(model: Any) -> None:
    """Let every mixture compute its experts as transformers does with ``grouped_mm``, on the same weights."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    from zoo.moe import MoE

    for moe in [module for module in model.modules() if isinstance(module, MoE)]:
        experts, inner = moe.experts, moe.experts.config.intermediate_size
        config: Any = SimpleNamespace(
            num_experts=moe.num_experts, hidden_size=experts.hidden_size, moe_intermediate_size=inner, hidden_act="silu"
        )
        config._experts_implementation = "grouped_mm"
        peer: Any = Qwen3MoeExperts(config)
        peer.gate_up_proj, peer.down_proj = experts.gate_up_proj, experts.down_proj

        def apply(x: Any, out: Any, valid: Any = None, peer: Any = peer, shared: Any = moe.shared) -> Any:
            y = peer(x.flatten(0, 1), out.index_TK, out.weight_TK).view_as(x)
            return y if shared is None else shared(x, y)

        moe.apply_experts = apply


if __name__ == "__main__":
    main()

"""Forecasts a second of the Time-MoE tiny tag against the same model in Hugging Face's modules, and memory over many.

python benchmarks/time_moe_throughput.py [--batch 64] [--context 512] [--horizon 96] [--repeats 7] [--series 10000]

Time-MoE's trunk is that of Qwen2-MoE (top-2 softmax gates without renormalisation, a shared expert with a sigmoid gate,
biases on q, k and v), so the peer is transformers' ``Qwen2MoeModel`` with ``experts_implementation="grouped_mm"`` and
its ``DynamicCache``, with the tag's own weights, embedding and heads; that both forecast the same is checked first.
They take turns, and the median of the ratios of neighbouring turns is given. Then ``--series`` windows are forecast in
batches, and the growth of the process's memory after the first tenth is printed.

Shapes: B windows, L points.
"""

from __future__ import annotations

import argparse
import os
import statistics

import torch
from torch import Tensor, nn

import zoo
from zoo.bench.timing import interleave


class Peer(nn.Module):
    """The tag in transformers' modules."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        from transformers import Qwen2MoeConfig, Qwen2MoeModel

        stack = ours.config.stack
        width, mixer, moe = stack.hidden_size, stack.mixer, stack.moe
        config = Qwen2MoeConfig(
            vocab_size=1,
            hidden_size=width,
            num_hidden_layers=stack.num_layers,
            num_attention_heads=mixer["num_heads"],
            num_key_value_heads=mixer["num_heads"],
            moe_intermediate_size=moe.experts["intermediate_size"],
            shared_expert_intermediate_size=moe.shared["intermediate_size"],
            num_experts=moe.num_experts,
            num_experts_per_tok=moe.router["k"],
            norm_topk_prob=False,
            rms_norm_eps=stack.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": mixer["rope_theta"]},
            max_position_embeddings=ours.config.max_length,
            attn_implementation="sdpa",
            experts_implementation="grouped_mm",
        )
        self.trunk = Qwen2MoeModel(config).eval()
        self.ours = [ours]  # embedding and heads are shared, and not this module's parameters
        names = {
            "mixer_norm": "input_layernorm",
            "mixer": "self_attn",
            "feed_forward_norm": "post_attention_layernorm",
            "feed_forward.router.scorer": "mlp.gate",
            "feed_forward.shared.gate.weight": "mlp.shared_expert_gate.weight",
            "feed_forward.shared": "mlp.shared_expert",
            "feed_forward.experts": "mlp.experts",
        }
        state = {"embed_tokens.weight": torch.zeros(1, width)}
        for key, value in ours.stack.state_dict().items():
            *layer, rest = key.split(".", 2) if key.startswith("layers.") else (key,)
            for one, other in names.items() if layer else ():
                if rest.startswith(one):
                    rest = other + rest.removeprefix(one)
                    break
            state[".".join([*layer, rest])] = value
        wanted = self.trunk.state_dict()
        self.trunk.load_state_dict({key: value for key, value in state.items() if key in wanted})

    def forecast(self, past_BL: Tensor, horizon: int) -> Tensor:
        from transformers import DynamicCache

        ours, cache = self.ours[0], DynamicCache()
        x_BL, new_BL, done = past_BL, past_BL, 0
        while done < horizon:
            out = self.trunk(inputs_embeds=ours.embed(new_BL), past_key_values=cache, use_cache=True)
            head = ours._head_for(horizon - done)
            new_BL = head(out.last_hidden_state[:, -1])[:, : horizon - done]
            x_BL, done = torch.cat([x_BL, new_BL], dim=1), done + new_BL.shape[1]
        return x_BL[:, -horizon:]


def resident() -> float:
    """MiB of this process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("batch", 64), ("context", 512), ("horizon", 96), ("repeats", 7), ("series", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    ours = zoo.load("time_series/time_moe_tiny.etth1").model
    peer = Peer(ours)
    past_BL = torch.randn(a.batch, a.context).cumsum(1)
    past_BL = (past_BL - past_BL.mean(1, keepdim=True)) / past_BL.std(1, keepdim=True)
    valid_BL = torch.ones_like(past_BL, dtype=torch.bool)
    one, other = ours.forecast(past_BL, valid_BL, a.horizon), peer.forecast(past_BL, a.horizon)
    print(f"largest difference of the forecasts: {float((one - other).abs().max()):.1e}")
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    runs = {
        "zoo": lambda: ours.forecast(past_BL, valid_BL, a.horizon),
        "Hugging Face, grouped_mm": lambda: peer.forecast(past_BL, a.horizon),
    }
    times = interleave(runs, a.repeats)
    print(f"{torch.get_num_threads()} threads, {a.batch} windows of {a.context} points, {a.horizon} ahead")
    for name, found in times.items():
        wall, cpu = (statistics.median(values) / 1e3 for values in (found.wall, found.cpu))
        print(f"{name:26s} {a.batch / wall:8.1f} forecasts/s   {a.batch / cpu:8.1f} per CPU second")
    mine, theirs = times.values()
    for kind in ("wall", "cpu"):
        pairs = zip(getattr(theirs, kind), getattr(mine, kind), strict=True)
        print(f"ratio by {kind} time: {statistics.median(t / m for t, m in pairs):.2f}")
    start = 0.0
    for done in range(0, a.series, a.batch):
        ours.forecast(past_BL, valid_BL, a.horizon)
        if not start and done >= a.series // 10:
            start = resident()
    if a.series:
        print(f"{a.series} series: {resident():.0f} MiB, {resident() - start:+.1f} MiB since the first tenth")


if __name__ == "__main__":
    main()

"""Models of transformers as they are: traces equal their own routers, views share memory, taps see and restore."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from zoo.integrations.adapter import Adapter
from zoo.integrations.transformers import register
from zoo.moe.experts.base import Taps
from zoo.spec import ZooError
from zoo_kernels.plan import Plan

register()

TINY = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    moe_intermediate_size=12, num_experts_per_tok=2,
)  # fmt: skip
MLA = dict(q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
DEEPSEEK = dict(n_routed_experts=8, n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1)
MODELS: dict[str, dict[str, Any]] = {
    "olmoe": dict(num_experts=5),
    "qwen3_moe": dict(num_experts=5, decoder_sparse_step=1, norm_topk_prob=True),
    "deepseek_v3": MLA | DEEPSEEK,
    "gpt_oss": dict(num_local_experts=5),
    "mixtral": dict(num_local_experts=5),
    "qwen2_moe": dict(num_experts=5, shared_expert_intermediate_size=12),
}


def tiny(family: str, implementation: str = "grouped_mm") -> Any:
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **TINY | MODELS[family])
    model = AutoModelForCausalLM.from_config(config, experts_implementation=implementation).eval()
    for name, parameter in model.named_parameters():  # routers and experts that tell tokens apart
        if "gate.weight" in name or "router" in name or "experts" in name:
            nn.init.normal_(parameter, std=0.5)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            nn.init.normal_(buffer, std=0.3)
    return model


def padded(rows: int = 3, length: int = 7) -> dict[str, Tensor]:
    mask = (torch.arange(length) < torch.tensor([[length], [4], [1]])[:rows]).long()
    return {"input_ids": torch.randint(3, 48, (rows, length)), "attention_mask": mask}


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
def test_a_trace_equals_the_models_own_routers(family: str, tmp_path: Path) -> None:
    model, batches = tiny(family), [padded(), padded(2, 5)]
    adapter = Adapter(model)
    trace = adapter.trace([b | {"domain": torch.arange(len(b["input_ids"]))} for b in batches], tmp_path / "t")
    said: dict[str, list[tuple[Tensor, ...]]] = {layer.name: [] for layer in adapter.layers}
    for layer in adapter.layers:
        layer.gate.register_forward_hook(lambda _m, _i, out, name=layer.name: said[name].append(out))
    with torch.no_grad():
        outputs = [model(**b) for b in batches]
    kept = [b["attention_mask"].flatten().bool() for b in batches]
    dense = 1 if family == "deepseek_v3" else 0
    assert [layer.name for layer in trace.layers] == [layer.name for layer in adapter.layers]
    assert len(trace.layers) == 3 - dense
    for layer in trace.layers:
        logits, weight, index = (
            torch.cat([out[i][keep] for out, keep in zip(said[layer.name], kept, strict=True)]) for i in range(3)
        )
        assert np.array_equal(layer.index_NK, index) and np.array_equal(layer.weight_NK, weight)
        assert np.array_equal(layer.logits_NE, logits.half()) and layer.used_NK.all()
    stream = trace.streams[0]
    assert len(trace.streams) == 1 and trace.tokens == 7 + 4 + 1 + 5 + 4
    assert stream["seq_id"].tolist() == [0] * 7 + [1] * 4 + [2] + [3] * 5 + [4] * 4
    assert stream["domain"].tolist() == [0] * 7 + [1] * 4 + [2] + [0] * 5 + [1] * 4
    assert stream["position"].tolist() == [*range(7), *range(4), 0, *range(5), *range(4)]
    assert np.array_equal(stream["token_ids"], torch.cat([b["input_ids"][b["attention_mask"] > 0] for b in batches]))
    if family in ("olmoe", "qwen3_moe"):
        with torch.no_grad():
            reported = [model(**b, output_router_logits=True).router_logits for b in batches]
        for n, layer in enumerate(trace.layers):
            own = torch.cat([r[n][keep] for r, keep in zip(reported, kept, strict=True)])
            assert np.array_equal(layer.logits_NE, own.half())
    assert all(torch.isfinite(out.logits).all() for out in outputs)


def test_conventions_are_read() -> None:
    said = Adapter(tiny("deepseek_v3")).layers[0].conventions
    assert (said["k"], said["groups"], said["groups_used"], said["renorm"]) == (2, 2, 1, True)
    assert said["scale"] == 2.5 and said["select_bias"].shape == (8,)
    said = Adapter(tiny("olmoe")).layers[0].conventions
    assert (said["k"], said["renorm"], said["scale"], said["select_bias"]) == (2, False, None, None)
    assert Adapter(tiny("deepseek_v3")).layers[0].shared is not None and Adapter(tiny("olmoe")).layers[0].shared is None


def test_a_gate_of_logits_alone_beside_fused_experts(tmp_path: Path) -> None:
    """DBRX: the block chooses between its gate and its experts, which are not in transformers' interface."""
    config = AutoConfig.for_model(
        "dbrx", d_model=16, n_heads=2, n_layers=2, max_seq_len=32, vocab_size=48,
        ffn_config={"ffn_hidden_size": 12, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    adapter, batch = Adapter(model), padded(2)
    said = []
    for layer in adapter.layers:
        layer.experts.register_forward_pre_hook(lambda _m, a: said.append(a))
    trace = adapter.trace([batch], tmp_path / "t")
    kept = batch["attention_mask"].flatten().bool()
    for layer, (_, index, weight) in zip(trace.layers, said, strict=True):
        assert np.array_equal(layer.index_NK, index[kept]) and np.array_equal(layer.weight_NK, weight[kept].detach())
    with pytest.raises(ZooError, match="DbrxExperts does not say how its experts lie"):
        adapter.layers[0].view(0)


def test_what_is_no_moe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="Linear has no block with experts and a gate"):
        Adapter(nn.Linear(2, 2))


# -- views -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
def test_views_share_memory_and_are_the_expert(family: str) -> None:
    layer = Adapter(tiny(family, "eager")).layers[0]
    module: Any = layer.experts
    own = [module.gate_up_proj, module.down_proj]
    start, stop = zip(*[(p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in own], strict=True)
    x = torch.randn(3, 16)
    for e in range(layer.num_experts):
        view = layer.view(e)
        assert view["gate"].shape == view["up"].shape == view["down"].mT.shape and view["down"].shape[0] == 16
        for name, place in (("gate", 0), ("up", 0), ("down", 1)):
            assert start[place] <= view[name].data_ptr() < stop[place], "a view, no copy"
        assert view["gate"].data_ptr() == own[0][e].data_ptr() and view["down"].data_ptr() == own[1][e].data_ptr()
        gate, up = (F.linear(x, view[n], view.get(f"{n}_bias")) for n in ("gate", "up"))
        if family == "gpt_oss":
            gate, up = gate.clamp(max=module.limit), up.clamp(-module.limit, module.limit)
            inner = (up + 1) * gate * torch.sigmoid(gate * module.alpha)
        else:
            inner = F.silu(gate) * up
        wanted = module(x, torch.full((3, 1), e), torch.ones(3, 1))
        torch.testing.assert_close(F.linear(inner, view["down"], view.get("down_bias")), wanted, atol=1e-5, rtol=1e-4)
    view["down"].zero_()
    assert not own[1][layer.num_experts - 1].any()
    with pytest.raises(ZooError, match=f"has no expert {layer.num_experts}; it has {layer.num_experts}"):
        layer.view(layer.num_experts)


def test_an_adapter_copies_nothing() -> None:
    model = tiny("olmoe")
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    adapter = Adapter(model)
    with adapter.tapped(Taps(input=lambda rows, plan: None)), torch.no_grad():
        model(**padded())
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert all(layer.experts is model.get_submodule(layer.name).experts for layer in adapter.layers)


# -- taps --------------------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> Any:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return hooks, [m.__dict__.get("forward") for m in model.modules()]


@pytest.mark.parametrize("family", [*MODELS, "modules"])
def test_taps_see_every_row_and_leave_no_trace(family: str) -> None:
    if family == "modules":
        model: Any = Modules()
        inputs: Mapping[str, Tensor] = {"hidden_states": torch.randn(2, 7, 16)}
    else:
        model, inputs = tiny(family, "zoo"), padded()
    adapter, before = Adapter(model), state(model)
    inner = adapter.layers[0].view(0)["down"].shape[1]
    seen: list[tuple[int, str, Tensor, Plan]] = []

    def taps(place: int) -> Taps | None:
        def see(point: str) -> Any:
            return lambda rows, plan: seen.append((place, point, rows, plan))

        return Taps(see("input"), see("atomic"), see("output"))

    decisions = []
    with torch.no_grad():
        wanted = first(model(**inputs))
        with adapter.watching(lambda layer, decision: decisions.append(decision)), adapter.tapped(taps):
            assert state(model) != before
            torch.testing.assert_close(first(model(**inputs)), wanted, atol=1e-5, rtol=1e-5)
        count = len(seen)
        assert torch.equal(first(model(**inputs)), wanted) and len(seen) == count
    assert state(model) == before
    if family != "modules":
        assert model.get_experts_implementation()[""] == "zoo"
    for place, decision in enumerate(decisions):
        for e in range(adapter.layers[place].num_experts):
            token, _ = (decision.index_TK == e).nonzero(as_tuple=True)
            for point, width in (("input", 16), ("atomic", inner), ("output", 16)):
                here = [
                    (
                        rows[plan.offset_E1[e] : plan.offset_E1[e + 1]],
                        plan.token_N[plan.offset_E1[e] : plan.offset_E1[e + 1]],
                    )
                    for where, what, rows, plan in seen
                    if (where, what) == (place, point)
                ]
                rows, tokens = (torch.cat(parts) for parts in zip(*here, strict=True))
                assert rows.shape == (len(token), width)
                assert tokens.sort().values.equal(token.sort().values)
                if point == "input":
                    assert torch.equal(rows, decision.x_TD[tokens])


def first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "modules"])
def test_taps_replace_and_carry_gradients(family: str) -> None:
    model: Any = Modules() if family == "modules" else tiny(family)
    inputs: Mapping[str, Tensor] = {"hidden_states": torch.randn(2, 7, 16)} if family == "modules" else padded()
    adapter = Adapter(model)
    with torch.no_grad():
        with adapter.tapped(Taps(output=lambda rows, plan: 2 * rows)):
            doubled = first(model(**inputs))
        for layer in adapter.layers:
            for e in range(layer.num_experts):
                view = layer.view(e)
                for name in ("down", "down_bias"):
                    if name in view:
                        view[name].mul_(2)
        torch.testing.assert_close(doubled, first(model(**inputs)), atol=1e-5, rtol=1e-4)
    kept: list[Tensor] = []

    def keep(rows: Tensor, plan: Plan) -> None:
        rows.retain_grad()
        kept.append(rows)

    with adapter.tapped(Taps(output=keep)):
        first(model(**inputs)).square().sum().backward()
    assert kept and all(rows.grad is not None and rows.grad.any() for rows in kept)


def test_an_error_inside_restores_too() -> None:
    model = tiny("olmoe")
    before = state(model)

    def fail(rows: Tensor, plan: Plan) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), Adapter(model).tapped(Taps(atomic=fail)):
        model(**padded())
    assert state(model) == before


# -- one module an expert ----------------------------------------------------------------------------------------------


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3, self.w2 = nn.Linear(16, 12, False), nn.Linear(16, 12, False), nn.Linear(12, 16, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class MixtralSparseMoeBlock(nn.Module):
    """The shape that transformers 4 gave Mixtral: a linear gate, a list of experts, rows slot by slot."""

    top_k = 2

    def __init__(self, slot_by_slot: bool = True) -> None:
        super().__init__()
        self.gate, self.slot_by_slot = nn.Linear(16, 5, bias=False), slot_by_slot
        self.experts = nn.ModuleList(Expert() for _ in range(5))
        self.chosen: tuple[Tensor, Tensor] | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, 16)
        weight, index = self.gate(x).float().softmax(-1).topk(self.top_k, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        self.chosen = weight.detach(), index
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            if self.slot_by_slot:
                slot, token = (index == e).T.nonzero(as_tuple=True)
            else:
                token, slot = (index == e).nonzero(as_tuple=True)
            y.index_add_(0, token, expert(x[token]) * weight[token, slot, None])
        return hidden_states + y.view_as(hidden_states)


class Other(MixtralSparseMoeBlock):
    """Of a family that is not known."""


class Modules(nn.Module):
    def __init__(self, block: type[MixtralSparseMoeBlock] = MixtralSparseMoeBlock) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block(True), block(False)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


def test_experts_in_modules_are_traced_and_seen(tmp_path: Path) -> None:
    model = Modules()
    adapter = Adapter(model)
    trace = adapter.trace([{"hidden_states": torch.randn(2, 6, 16)}], tmp_path / "t")
    for block, layer in zip(model.layers, trace.layers, strict=True):
        weight, index = block.chosen  # type: ignore[misc]
        assert np.array_equal(layer.index_NK, index) and np.array_equal(layer.weight_NK, weight)
    expert: Any = model.layers[1].experts[3]  # type: ignore[index]
    view = adapter.layers[1].view(3)
    assert {name: tensor.data_ptr() for name, tensor in view.items()} == {
        "gate": expert.w1.weight.data_ptr(), "up": expert.w3.weight.data_ptr(), "down": expert.w2.weight.data_ptr()
    }  # fmt: skip


def test_a_family_whose_choice_is_not_known_is_told_how(tmp_path: Path) -> None:
    model, batches = Modules(Other), [{"hidden_states": torch.randn(2, 6, 16)}]
    with pytest.raises(ZooError, match=r"the gate of Other gives logits alone, .*; give Adapter a choose"):
        Adapter(model).trace(batches, tmp_path / "t")
    assert list(tmp_path.iterdir()) == [] and state(model) == state(Modules(Other))
    trace = Adapter(model, choose=lambda block, logits: logits.softmax(-1).topk(2)).trace(batches, tmp_path / "t")
    assert np.array_equal(trace.layers[0].index_NK, model.layers[0].chosen[1])  # type: ignore[index]


def test_rows_in_an_unknown_order_are_refused() -> None:
    class Backwards(MixtralSparseMoeBlock):
        def forward(self, hidden_states: Tensor) -> Tensor:
            x = hidden_states.reshape(-1, 16)
            self.gate(x)
            self.experts[0](x.flip(0))
            return hidden_states

    model = Modules(Backwards)
    with (
        pytest.raises(ZooError, match="called with 6 rows in an order that is not known"),
        Adapter(model, lambda block, logits: logits.topk(2)).tapped(Taps()),
    ):
        model(torch.randn(1, 6, 16))


# -- the command line --------------------------------------------------------------------------------------------------


def test_zoo_trace_of_a_folder_of_transformers(zoo: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: n for n, w in enumerate(["[UNK]", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained("olmoe")
    tiny("olmoe").save_pretrained("olmoe")
    Path("one.txt").write_text("abc" * 30)
    Path("two.txt").write_text("xyz" * 11)

    code, out, err = zoo("trace", "hf:olmoe", "data=[one.txt,two.txt]", "length=32", "batch_size=2")
    assert code == 0, err
    document = json.loads(Path("runs/trace/olmoe/metrics.json").read_text())
    assert document["tokens"] == 123 and document["trace"]["names"] == {"domain": ["one", "two"]}
    assert len(document["metrics"]["domain"]["nmi"]) == 3 and "NMI domain" in out
    assert zoo("trace", "hf:olmoe", "data=one.txt", "length=32", "limit=1", "--out", "o")[0] == 0
    assert json.loads(Path("o/metrics.json").read_text())["tokens"] == 32
    for line, message in {
        ("hf:olmoe",): "'hf:olmoe' brings no data of its own; name text files",
        ("hf:olmoe", "data=gone.txt"): "data 'gone.txt' cannot be read as text",
        ("hf:gone", "data=one.txt"): "'hf:gone' cannot be loaded",
        ("hf:olmoe", "data=one.txt", "lenght=3"): "unknown setting 'lenght' of zoo trace hf:olmoe; did you mean length",
        ("hf:olmoe", "data=one.txt", "length=0"): "length=0 must be at least 1",
    }.items():
        code, out, err = zoo("trace", *line)
        assert code == 2 and out == "" and f"error: {message}" in err, err

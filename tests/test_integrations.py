"""experts_implementation="zoo" against transformers' own eager experts: outputs, every gradient, refusals, graphs."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from zoo.integrations.transformers import register
from zoo.spec import ZooError

register()

TINY = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SPARSE = dict(moe_intermediate_size=12, num_experts_per_tok=2)
MLA = dict(
    q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, n_routed_experts=8,
    n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1,
)  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": dict(num_local_experts=5, num_experts_per_tok=2),
    "olmoe": dict(num_experts=5, num_experts_per_tok=2),
    "qwen2_moe": SPARSE | dict(num_experts=5, shared_expert_intermediate_size=12),
    "qwen3_moe": SPARSE | dict(num_experts=5, decoder_sparse_step=1),
    "deepseek_v2": SPARSE | MLA,
    "deepseek_v3": SPARSE | MLA,
    "gpt_oss": dict(num_local_experts=5, num_experts_per_tok=2),
    "granitemoe": dict(num_local_experts=5, num_experts_per_tok=2),
    "phimoe": dict(num_local_experts=5, num_experts_per_tok=2),
    "flex_olmo": dict(num_experts=5, num_experts_per_tok=2),
    "dots1": SPARSE | dict(n_routed_experts=8, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1),
    "glm4_moe": SPARSE | dict(n_routed_experts=8, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1),
    "ernie4_5_moe": SPARSE | dict(moe_num_experts=5, moe_k=2, moe_num_shared_experts=1),
    "hunyuan_v1_moe": dict(num_experts=5, moe_topk=2),
    "minimax_m2": dict(num_local_experts=5, num_experts_per_tok=2),
    "gemma4_text": dict(
        num_experts=5,
        top_k_experts=2,
        moe_intermediate_size=12,
        enable_moe_block=True,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "nemotron_h": SPARSE
    | dict(
        n_routed_experts=8,
        n_shared_experts=1,
        moe_shared_expert_intermediate_size=12,
        use_mamba_kernels=False,
        layers_block_type=["mamba", "moe", "attention", "moe"],
        num_hidden_layers=4,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=1,
        ssm_state_size=8,
        chunk_size=8,
    ),
}


def error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def tiny(family: str, implementation: str) -> Any:
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **TINY | MODELS[family])
    return AutoModelForCausalLM.from_config(config, experts_implementation=implementation).eval()


def outcome(model: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> float:
    assert a[1].keys() == b[1].keys()
    # a gradient that is zero but for rounding (a key's bias) is measured against the largest one
    floor = 1e-4 * max(grad.norm().item() for grad in b[1].values())
    grads = [((a[1][n] - g).norm() / max(g.norm().item(), floor)).item() for n, g in b[1].items()]
    return max(error(a[0], b[0]), *grads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry a call of our experts."""
    seen: list[str] = []
    ours = ALL_EXPERTS_FUNCTIONS["zoo"]

    def counted(module: nn.Module, *args: Any) -> Tensor:
        seen.append(type(module).__name__)
        return ours(module, *args)

    monkeypatch.setitem(type(ALL_EXPERTS_FUNCTIONS)._global_mapping, "zoo", counted)
    return seen


@pytest.mark.parametrize("family", MODELS)
def test_model_equals_eager_also_after_reload(
    family: str, tmp_path: Path, calls: list[str], record_property: Any
) -> None:
    ids = torch.randint(3, 48, (2, 11))
    model = tiny(family, "eager")
    wanted = outcome(model, ids)
    assert not calls
    model.set_experts_implementation("zoo")
    here = worst(outcome(model, ids), wanted)
    assert calls
    model.save_pretrained(tmp_path)
    calls.clear()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="zoo")
    there = worst(outcome(again.eval(), ids), wanted)
    assert calls
    record_property("error", max(here, there))
    assert max(here, there) <= 1e-5


def test_diffusion_gemma_equals_eager_also_after_reload(tmp_path: Path, calls: list[str]) -> None:
    """Block diffusion: a prompt through the encoder, a canvas through the decoder; no causal language model."""
    from transformers import DiffusionGemmaConfig
    from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion as Model

    text = TINY | dict(
        num_experts=5, top_k_experts=2, moe_intermediate_size=12, layer_types=["sliding_attention", "full_attention"],
        global_head_dim=8, num_global_key_value_heads=2,
    )  # fmt: skip
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    vision = {"model_type": "gemma4_vision", "head_dim": 8} | {name: TINY[name] for name in sizes}
    torch.manual_seed(1)
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=4)
    model = Model._from_config(config, experts_implementation="eager").eval()
    ids = torch.randint(3, 48, (2, 11))

    def result(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = model(input_ids=ids[:, 4:], decoder_input_ids=ids[:, :4]).logits
        nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, :4].flatten()).backward()
        return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = result(model)
    assert not calls and any("experts.gate_up_proj" in name for name in wanted[1])
    model.set_experts_implementation("zoo")
    assert worst(result(model), wanted) <= 1e-5 and calls
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path, experts_implementation="zoo")
    assert worst(result(again.eval()), wanted) <= 1e-5


def decorated() -> dict[str, str]:
    """Class name -> module of every Experts class that transformers lets us switch."""
    found = {}
    for path in sorted(Path(inspect.getfile(transformers)).parent.glob("models/*/modeling_*.py")):
        for name in re.findall(r"@use_experts_implementation(?:\([^)]*\))?\s*\nclass (\w+)", path.read_text()):
            found[name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return found


FAMILIES = decorated()
REFUSED = {
    "Inkling2Experts": "_apply_gate",
    "MuseSparkExperts": "has_post_expert_norm",
}


def experts(name: str) -> Any:
    sizes = SimpleNamespace(
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 5),
        **dict.fromkeys(("hidden_size", "moe_hidden_size"), 16),
        **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 12),
        hidden_act="silu", hidden_activation="gelu_pytorch_tanh", mlp_hidden_act="relu2", moe_latent_size=None,
        swiglu_limit=0.3, swiglu_alpha=1.702, post_norm_eps=1e-6, mlp_gate_softcap=5.0, mlp_up_softcap=5.0,
        num_experts_per_tok=3, hidden_dim=16, _experts_implementation="zoo",
    )  # fmt: skip
    module = getattr(importlib.import_module(FAMILIES[name]), name)(sizes)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def run(module: Any, implementation: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output and gradients of the experts for the same inputs."""
    torch.manual_seed(2)
    module.config._experts_implementation = implementation
    x = torch.randn(9, 16, dtype=dtype, requires_grad=True)
    weight, index = torch.randn(9, 5).softmax(-1).topk(3)
    weight = weight.detach().to(dtype).requires_grad_()
    y = module(x, index, weight)
    return [y, *torch.autograd.grad(y, [x, weight, *module.parameters()], torch.randn(9, 16, dtype=dtype))]


def test_every_decorated_family_is_known() -> None:
    assert len(FAMILIES) >= 60 and FAMILIES.keys() >= REFUSED.keys()


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - REFUSED.keys()))
def test_experts_of_every_family_equal_eager(name: str) -> None:
    module = experts(name)
    for ours, eager in zip(run(module, "zoo"), run(module, "eager"), strict=True):
        assert error(ours, eager) <= 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernels_do_not_compute_is_refused(name: str) -> None:
    with pytest.raises(ZooError, match=f"{name} has .*{REFUSED[name]}.*use experts_implementation='grouped_mm'"):
        run(experts(name), "zoo")


def test_flags_that_do_not_fit_are_refused() -> None:
    module = experts("MixtralExperts")
    module._apply_gate = lambda gate_up: gate_up[:, :12]
    with pytest.raises(ZooError, match="_apply_gate"):
        run(module, "zoo")
    module = experts("GptOssExperts")
    module.alpha = 1.5
    with pytest.raises(ZooError, match=r"alpha=1\.5"):
        run(module, "zoo")
    module = experts("MixtralExperts")
    module.is_concatenated = False
    with pytest.raises(ZooError, match="is_concatenated=False"):
        run(module, "zoo")
    module = experts("MixtralExperts")
    module.act_fn = experts("NemotronHExperts").act_fn
    with pytest.raises(ZooError, match="a gate of ReLUSquaredActivation"):
        run(module, "zoo")


def test_expert_parallel_sentinel_is_an_unused_slot() -> None:
    module = experts("MixtralExperts")
    x, index = torch.randn(6, 16, requires_grad=True), torch.tensor([[0, 5], [5, 5], [4, 1], [2, 5], [5, 3], [1, 0]])
    weight = torch.rand(6, 2, requires_grad=True)

    def outcome_of(implementation: str) -> list[Tensor]:
        module.config._experts_implementation = implementation
        y = module(x, index, weight)
        return [y, *torch.autograd.grad(y.square().sum(), [x, weight, *module.parameters()])]

    with pytest.raises(ValueError, match=r"not in 0\.\.4"):
        outcome_of("zoo")
    module._is_expert_parallel = True
    for ours, eager in zip(outcome_of("zoo"), outcome_of("eager"), strict=True):
        assert error(ours, eager) <= 1e-5


@pytest.mark.parametrize("name", ["MixtralExperts", "GptOssExperts"])
def test_bfloat16(name: str) -> None:
    module = experts(name)
    exact = run(module, "eager")
    for ours, wanted in zip(run(module.bfloat16(), "zoo", torch.bfloat16), exact, strict=True):
        assert ours.dtype == torch.bfloat16 and error(ours.float(), wanted) <= 0.03


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_compile_and_export_keep_all_experts(family: str) -> None:
    model, ids = tiny(family, "zoo"), torch.randint(3, 48, (2, 7))
    wanted = outcome(model, ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits, grads = outcome(compiled, ids)
    assert worst((logits, {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()}), wanted) <= 1e-5
    program = torch.export.export(model, (ids,), kwargs={"use_cache": False}, strict=False)
    ours = [node for node in program.graph.nodes if "zoo.expert_ffn" in str(node.target)]
    assert len(ours) == 2
    assert all(5 in {a.meta["val"].shape[0] for a in n.args if isinstance(a, torch.fx.Node)} for n in ours)
    assert error(program.module()(ids, use_cache=False).logits, wanted[0]) <= 1e-5


def test_decoding_token_by_token_equals_the_whole_sequence() -> None:
    model, ids = tiny("qwen3_moe", "zoo"), torch.randint(3, 48, (1, 6))
    with torch.no_grad():
        whole = model(ids).logits
        step = model(ids[:, :5], use_cache=True)
        last = model(ids[:, 5:], past_key_values=step.past_key_values).logits
    assert error(last[:, -1], whole[:, -1]) <= 1e-5


@pytest.mark.parametrize("family", ["dbrx", "jetmoe"])
def test_undecorated_families_give_transformers_own_error(family: str) -> None:
    config = AutoConfig.for_model(family)
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert not model_class._can_set_experts_implementation()

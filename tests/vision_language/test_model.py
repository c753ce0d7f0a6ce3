"""The model: images do not leak into other rows, whatever their number; dialogues see the image and themselves;
tokens reach the experts they may reach; text is untouched by what visual experts learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import create_model, registry
from zoo.moe import MoE
from zoo.nn import Cache
from zoo.spec import ZooError
from zoo_vision_language.models.vision_language import IMAGE, TEXT

SIZE = {"language.stack.hidden_size": 16, "language.stack.num_layers": 2, "language.stack.mixer.num_heads": 2,
        "language.vocab_size": 40, "image_size": [16, 16]}  # fmt: skip
TOWER = {"name": "vision_language/conv", "channels": [4, 8], "groups": 2}
SYSTEMS = ["llava_tiny", "moe_llava_tiny", "moiie_tiny", "mono_internvl_tiny", "mote_tiny"]


def build(name: str = "moe_llava_tiny", **settings: Any) -> Any:
    torch.manual_seed(1)
    tower = (
        {}
        if name == "mono_internvl_tiny"
        else {"tower": {"name": "vision_language/conv", "channels": [4, 8], "groups": 2}}
    )
    model = create_model(f"vision_language/{name}", **SIZE, **tower, **{"language.stack.init_std": 0.3}, **settings)
    return model.eval()


def row(model: Any, images: int, words: int, seed: int = 0) -> dict[str, Tensor]:
    """One row: its images first, then words."""
    g = torch.Generator().manual_seed(seed)
    length = images * model.image_tokens + words
    modality_1L = torch.full((1, length), TEXT)
    modality_1L[:, : length - words] = IMAGE
    return {
        "tokens_BL": torch.randint(model.vocab_size, (1, length), generator=g),
        "modality_BL": modality_1L,
        "pixels_BNHWC": torch.randint(256, (1, images, 16, 16, 3), generator=g, dtype=torch.uint8),
    }


def batch(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of any length and number of images, padded."""
    length = max(r["tokens_BL"].shape[1] for r in rows)
    images = max(r["pixels_BNHWC"].shape[1] for r in rows)
    out = {
        "tokens_BL": torch.zeros(len(rows), length, dtype=torch.int64),
        "modality_BL": torch.full((len(rows), length), TEXT),
        "valid_BL": torch.zeros(len(rows), length, dtype=torch.bool),
        "pixels_BNHWC": torch.randint(256, (len(rows), images, 16, 16, 3), dtype=torch.uint8),
    }
    for b, r in enumerate(rows):
        own = r["tokens_BL"].shape[1]
        out["tokens_BL"][b, :own], out["modality_BL"][b, :own] = r["tokens_BL"][0], r["modality_BL"][0]
        out["valid_BL"][b, :own] = True
        out["pixels_BNHWC"][b, : r["pixels_BNHWC"].shape[1]] = r["pixels_BNHWC"][0]
    return out


@pytest.mark.parametrize("name", SYSTEMS)
def test_other_rows_their_images_and_padding_change_nothing(name: str) -> None:
    model = build(name)
    rows = [row(model, images, words, seed) for seed, (images, words) in enumerate([(1, 5), (0, 4), (2, 7), (1, 2)])]
    with torch.no_grad():
        together = model(**batch(rows)).logits
        for b, r in enumerate(rows):
            alone = model(**r).logits
            torch.testing.assert_close(together[b : b + 1, : alone.shape[1]], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_dialogues_of_a_row_see_the_image_and_themselves(name: str) -> None:
    model = build(name)
    r = row(model, 1, 7)
    P = model.image_tokens
    document = torch.tensor([[-1] * P + [0] * 3 + [1] * 4])
    with torch.no_grad():
        both = model(**r, document_BL=document).logits
        for first, last in ((P, P + 3), (P + 3, P + 7)):
            keep = [*range(P), *range(first, last)]
            alone = {k: v if k == "pixels_BNHWC" else v[:, keep] for k, v in r.items()}
            torch.testing.assert_close(both[:, first:last], model(**alone).logits[:, P:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_cache_and_wanted_places_change_nothing(name: str) -> None:
    model = build(name)
    r = row(model, 1, 6)
    P = model.image_tokens
    with torch.no_grad():
        whole = model(**r).logits
        cache = Cache()
        start = {"tokens_BL": r["tokens_BL"][:, : P + 3], "modality_BL": r["modality_BL"][:, : P + 3]}
        parts = [model(**start, pixels_BNHWC=r["pixels_BNHWC"], cache=cache).logits]
        parts += [model(r["tokens_BL"][:, n : n + 1], cache=cache, last_only=True).logits for n in range(P + 3, P + 6)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
        wanted = torch.arange(P + 6)[None] % 3 == 0
        torch.testing.assert_close(model(**r, wanted_BL=wanted).logits, whole[wanted], rtol=0, atol=1e-6)


def test_images_matter_and_stand_in_their_order() -> None:
    model = build()
    r = row(model, 2, 4)
    swapped = {**r, "pixels_BNHWC": r["pixels_BNHWC"].flip(1)}
    with torch.no_grad():
        first, second = model.see(r["pixels_BNHWC"]).split(model.image_tokens, 1)
        assert torch.equal(torch.cat([second, first], 1), model.see(swapped["pixels_BNHWC"]))
        assert not torch.allclose(model(**r).logits[:, -1], model(**swapped).logits[:, -1])


def test_tokens_reach_the_pools_of_their_modality_alone() -> None:
    model = build("moiie_tiny")
    # Routers that send much to the experts that both may use.
    for moe in (m for m in model.modules() if isinstance(m, MoE)):
        with torch.no_grad():
            moe.router.scorer.weight[0][2], moe.router.scorer.weight[1][0] = 50.0, 50.0
    r = row(model, 1, 9)
    for out in model(**r).routing:
        image_T = r["modality_BL"].flatten() == IMAGE
        assert set(out.index_TK[image_T].flatten().tolist()) <= {0, 1, 2}
        assert set(out.index_TK[~image_T].flatten().tolist()) <= {1, 2, 3}
        assert out.used_TK.all()


def test_each_modality_has_a_router_of_its_own() -> None:
    model = build("moiie_tiny")
    r = row(model, 1, 9)
    image_T = r["modality_BL"].flatten() == IMAGE
    before = model(**r).routing[0].logits_TE
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, MoE)).router.scorer.weight[0].mul_(2)
    after = model(**r).routing[0].logits_TE
    inside = before > -torch.inf
    torch.testing.assert_close(after[image_T][inside[image_T]], 2 * before[image_T][inside[image_T]])
    assert torch.equal(after[~image_T], before[~image_T])


def test_text_is_the_same_bit_for_bit_after_only_visual_experts_were_trained() -> None:
    model = build("mono_internvl_tiny").train()
    text = {"tokens_BL": torch.randint(40, (3, 8))}
    seen = row(model, 1, 6)
    with torch.no_grad():
        words, answer = model(**text).logits, model(**seen).logits
    visual = [p for name, p in model.named_parameters() if ".experts." in name]
    optimizer = torch.optim.AdamW([*visual, *model.tower.parameters(), *model.connector.parameters()], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**seen).logits.square().mean().backward()
        for p in visual:
            p.grad[1] = 0  # expert 1 is the text's; decay is off for what has none
        optimizer.param_groups[0]["weight_decay"] = 0.0
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(**text).logits, words)
        assert not torch.allclose(model(**seen).logits, answer, atol=1e-3)


def test_further_heads_and_media_have_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    sound = torch.randn(1, 3, 16)
    modality = torch.tensor([[2, 2, TEXT, 2, TEXT]])
    x = model.embed(torch.zeros(1, 5, dtype=torch.int64), {2: sound}, modality)
    assert torch.equal(x[:, [0, 1, 3]], sound)
    model.heads["codes"] = torch.nn.Linear(16, 7)
    assert model(**row(model, 0, 5)).heads["codes"].shape == (1, 5, 7)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image_size": [64]}, r"must be \[height, width\]"),
        ({"image_size": [60, 64]}, "must be divisible by 16"),
        ({"connector.shuffle": 3}, "do not divide by connector.shuffle=3"),
        ({"tower": {"name": "vision_language/timm", "model": "resnet180"}}, "timm has no model 'resnet180'"),
        (
            {"tower": {"name": "vision_language/transformers", "layer": -9, "num_layers": 4}},
            "layer=-9 must lie between",
        ),
        ({"language": {"name": "vision_language/transformers", "config": {"model_type": "lama"}}}, "of transformers"),
        ({"tower": "vision_language/konv"}, "did you mean vision_language/conv"),
    ],
)
def test_settings_that_cannot_be_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ZooError, match=told):
        create_model("vision_language/moe_llava_tiny", **settings)


LLAMA = {"model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": None}  # fmt: skip
GPT = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0,
       "eos_token_id": 0}  # fmt: skip
MOE = {"num_experts": 4, "router": {"k": 2, "renorm": True}, "experts": {"intermediate_size": 24},
       "balance": {"switch": {}}}  # fmt: skip


@pytest.mark.parametrize(("config", "layers"), [(LLAMA, "none"), (LLAMA, "even"), (LLAMA, "all"), (GPT, "none")])
def test_any_language_model_of_transformers(config: dict[str, Any], layers: str) -> None:
    node = {"name": "vision_language/transformers", "config": config, "layers": layers, "moe": MOE}
    if layers == "none":
        node = {k: v for k, v in node.items() if k != "moe"}
    torch.manual_seed(0)
    model = create_model("vision_language/llava_tiny", image_size=[16, 16], tower=TOWER, language=node).eval()
    r = row(model, 1, 6)
    P = model.image_tokens
    with torch.no_grad():
        whole = model(**r)
        assert len(whole.routing) == {"none": 0, "even": 1, "all": 2}[layers]
        padded = batch([r, row(model, 1, 9, seed=1)])
        torch.testing.assert_close(model(**padded).logits[:1, : P + 6], whole.logits, rtol=0, atol=1e-5)
        cache = Cache()
        start = {"tokens_BL": r["tokens_BL"][:, : P + 3], "modality_BL": r["modality_BL"][:, : P + 3]}
        parts = [model(**start, pixels_BNHWC=r["pixels_BNHWC"], cache=cache).logits]
        parts += [model(r["tokens_BL"][:, n : n + 1], cache=cache).logits for n in range(P + 3, P + 6)]
        torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=0, atol=1e-5)
        document = torch.tensor([[-1] * P + [0] * 3 + [1] * 3])
        both = model(**r, document_BL=document).logits
        keep = [*range(P), *range(P + 3, P + 6)]
        alone = {k: v if k == "pixels_BNHWC" else v[:, keep] for k, v in r.items()}
        torch.testing.assert_close(both[:, P + 3 :], model(**alone).logits[:, P:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
def test_towers_of_timm(name: str) -> None:
    from zoo import config as zc

    tower = zc.build("tower", {"name": "vision_language/timm", "model": name}, (64, 64)).train()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        both, one = tower(pixels), tower(pixels[1:])
    assert both.shape == (2, tower.grid[0] * tower.grid[1], tower.width)
    torch.testing.assert_close(both[1:], one, rtol=0, atol=1e-4)


def test_layers_of_a_vision_transformer_are_counted_from_its_end() -> None:
    from zoo import config as zc

    torch.manual_seed(0)
    tower = zc.build("tower", {"name": "vision_language/timm", "model": "vit_tiny_patch16_224", "layer": -2}, (32, 32))
    last = {}
    tower.model.blocks[-2].register_forward_hook(lambda _m, _a, out: last.update(out=out))
    with torch.no_grad():
        found = tower.eval()(torch.rand(1, 3, 32, 32))
    assert torch.equal(found, last["out"][:, 1:])


def test_every_system_is_listed() -> None:
    assert {f"vision_language/{name}" for name in SYSTEMS} <= set(registry.list_models("vision_language/*"))

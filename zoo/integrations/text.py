"""Text files as batches for a language model of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.spec import ZooError


def load(source: str, device: str = "cpu") -> tuple[Any, Any]:
    """Model and tokenizer from a local folder or the Hugging Face hub: safetensors only, no code of theirs. Raises
    `ZooError` that says what is missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ZooError(
            f"'hf:{source}' cannot be loaded: {why}; name a folder of save_pretrained, or ORG/NAME"
        ) from error
    return model.to(device).eval(), tokenizer


def batches(
    tokenizer: Any, files: Sequence[Path], length: int, batch_size: int, limit: int | None = None, device: str = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Every file in pieces of ``length`` tokens, ``limit`` of them at most from each; the last may be shorter, and is
    padded. Which file a piece is from is its ``domain``. Raises `ZooError` for a file that cannot be read as text."""
    pieces: list[tuple[int, list[int]]] = []
    for domain, path in enumerate(files):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ZooError(f"data '{path}' cannot be read as text: {error}; name a UTF-8 text file") from error
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise ZooError(f"data '{path}' has no token; name a file with text in it")
        pieces += [(domain, ids[start : start + length]) for start in range(0, len(ids), length)][:limit]
    for start in range(0, len(pieces), batch_size):
        some = pieces[start : start + batch_size]
        longest = max(len(ids) for _, ids in some)
        padded = [(ids + [0] * (longest - len(ids)), [1] * len(ids) + [0] * (longest - len(ids))) for _, ids in some]
        yield {
            "input_ids": torch.tensor([ids for ids, _ in padded], device=device),
            "attention_mask": torch.tensor([mask for _, mask in padded], device=device),
            "domain": torch.tensor([domain for domain, _ in some], device=device),
        }

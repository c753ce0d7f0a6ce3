"""What travels with a model of speech and music: the symbols of its prompts, and the codec.

Shapes: B prompts, P symbols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.hub import create_model
from zoo.spec import ZooError
from zoo_audio.data.tokens import ANYONE, DOMAINS, UNKNOWN, prompt


def prompts(preprocessing: Mapping[str, Any], whats: list[tuple[str, str, str]]) -> tuple[Tensor, Tensor]:
    """Ids (B, P) of prompts, each (domain, speaker, text), padded on their left, and which of them count."""
    place = {symbol: i for i, symbol in enumerate(preprocessing["symbols"])}
    rows = [[place.get(symbol, 0) for symbol in prompt(*what)] for what in whats]
    most = max(map(len, rows))
    ids_BP = torch.tensor([[0] * (most - len(row)) + row for row in rows])
    return ids_BP, torch.tensor([[False] * (most - len(row)) + [True] * len(row) for row in rows])


def speakers_of(preprocessing: Mapping[str, Any]) -> list[str]:
    """The speakers among the symbols."""
    fixed = {UNKNOWN, ANYONE, *(f"<{domain}>" for domain in DOMAINS)}
    return [s[1:-1] for s in preprocessing["symbols"] if len(s) > 2 and s[0] == "<" and s not in fixed]


def codec_of(section: Mapping[str, Any]) -> Any:
    """The codec that travels with a model. Raises `ZooError` where it does not fit."""
    saved = section["codec"]
    codec = create_model(saved["name"], **saved["config"])
    try:
        codec.load_state_dict(saved["weights"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ZooError(
            f"the codec saved with the model does not fit its config: {error}; save the model again"
        ) from error
    return codec.eval()

"""Sampling from a model of tokens, one at a time.

Shapes: B sequences, L tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.nn import Cache
from zoo.spec import ZooError
from zoo.vocabulary import UNKNOWN, Vocabulary


@torch.no_grad()
def generate(
    model: Any,
    tokens_BL: Tensor,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    prompt: Mapping[str, Any] | None = None,
) -> Iterator[Tensor]:
    """The next tokens (B,) of each sequence, as they are drawn.

    A sequence that has reached the model's ``max_length`` goes on from the last half of its tokens.

    Args:
        tokens_BL: prompts of one length, at least 1.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draw from the fewest tokens that hold this share of the probability (nucleus sampling, Holtzman et al.,
            arXiv:1904.09751).
        use_cache: keep keys and values; the tokens are the same without, and slower.
        prompt: what else the model is given with the prompt, and with it alone (its images, say). Such a sequence keeps
            its start, so it ends at ``max_length``. Needs the cache.

    Raises:
        ZooError: a prompt that is empty or longer than ``max_length``, or settings out of range.
    """
    limit = model.config.max_length
    if not 1 <= tokens_BL.shape[1] <= limit:
        raise ZooError(f"the prompt has {tokens_BL.shape[1]} tokens and the model takes 1 to {limit}; mend the prompt")
    if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 1:
        raise ZooError(
            f"temperature={temperature} must be at least 0, top_p={top_p} above 0 and at most 1, "
            f"max_tokens={max_tokens} at least 1"
        )
    if prompt and not use_cache:
        raise ZooError("what comes with a prompt is kept in the cache; leave use_cache on")
    cache, new_BL, beside = Cache() if use_cache else None, tokens_BL, dict(prompt or {})
    for _ in range(max_tokens):
        if prompt and tokens_BL.shape[1] > limit:
            return
        if tokens_BL.shape[1] > limit:
            tokens_BL = tokens_BL[:, -max(1, limit // 2) :]
            cache, new_BL = Cache() if use_cache else None, tokens_BL
        out = model(new_BL if use_cache else tokens_BL, cache=cache, last_only=True, **beside)
        beside = {}
        next_B1 = choose(out.logits_BLV[:, -1].float(), temperature, top_p, generator)
        yield next_B1[:, 0]
        tokens_BL, new_BL = torch.cat([tokens_BL, next_B1], dim=1), next_B1


def choose(logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """(B, 1): one token a row."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    share_BV, order_BV = (logits_BV / temperature).softmax(-1).sort(-1, descending=True)
    # A token stays as long as those before it do not reach the share: the likeliest always does.
    kept_BV = torch.where(share_BV.cumsum(-1) - share_BV < top_p, share_BV, 0.0)
    return order_BV.gather(1, torch.multinomial(kept_BV, 1, generator=generator))


def spell(vocabulary: Vocabulary, tokens: Iterable[int], stop: str | None = None) -> Iterator[str]:
    """Text of a stream of tokens, in pieces, each as soon as it is certain; ends before ``stop``, or at the
    vocabulary's end token."""
    ids: list[int] = []
    text = shown = ""
    for token in tokens:
        if token == vocabulary.end:
            break
        ids.append(token)
        text = vocabulary.decode(ids)
        if stop and stop in text:
            text = text[: text.index(stop)]
            break
        certain = text.rstrip(UNKNOWN)  # the start of a character whose further bytes are still to come
        held = next((n for n in range(min(len(stop or ""), len(certain)), 0, -1) if certain.endswith(stop[:n])), 0)  # type: ignore[index]
        certain = certain[: len(certain) - held]
        if len(certain) > len(shown) and certain.startswith(shown):
            yield certain[len(shown) :]
            shown = certain
    if text[len(shown) :]:
        yield text[len(shown) :]

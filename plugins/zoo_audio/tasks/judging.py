"""What a recogniser makes of generated speech, and where a model uses how many experts.

Shapes: B sequences, S steps, T frames, L positions, K slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zoo import hub
from zoo.spec import ZooError
from zoo_audio.data.tokens import Piece, Sequences, Tokens
from zoo_audio.generation import asked, generate, null_experts
from zoo_audio.tasks.recognition import recognise
from zoo_audio.travelling import codec_of, prompts

SILENT, VOICED = -40.0, -20.0  # dB below the loudest frame of a clip
BATCH = 60


def judged(
    model: Any, data: Any, judge: str, takes: int, draws: Mapping[str, float], most: int | None
) -> dict[str, float]:
    """``takes`` of every text by every speaker of the training data, each heard by the judge; ``draws`` is how they are
    drawn (see `generate`).

    Returns the shares whose text and whose speaker it recognises, and of those that ended by themselves.
    """
    jury = hub.load(judge)
    if not hasattr(jury.model, "word_head"):
        raise ZooError(f"task.judge={judge} is no recogniser; choose one, such as audio/recogniser.digits")
    codec = codec_of(data.preprocessing["speech"]).to(model.device)
    if codec.config.sample_rate != jury.model.config.sample_rate:
        raise ZooError(
            f"the judge hears {jury.model.config.sample_rate} Hz, the codec speaks {codec.config.sample_rate}"
        )
    spoken = sorted({(p.domain, p.speaker, p.text) for p in data.pieces["train"] if p.domain == "speech"})
    wanted = (spoken * takes)[:most]
    generator = torch.Generator(model.device).manual_seed(0)
    words = speakers = ended = 0
    for low in range(0, len(wanted), BATCH):
        part = wanted[low : low + BATCH]
        text_BP, valid_BP = (x.to(model.device) for x in prompts(data.preprocessing, part))
        drawn = generate(
            model,
            text_BP,
            valid_BP,
            max_frames=round(2.5 * codec.frame_rate),
            generator=generator,
            **draws,
        )
        for (_, speaker, text), codes_TC, over in zip(part, drawn.codes, drawn.ended, strict=True):
            word, who, *_ = recognise(jury.model, jury.preprocessing, codec.decode(codes_TC).cpu())
            words, speakers, ended = words + (word == text), speakers + (who == speaker), ended + over
    count = len(wanted)
    return {"words_recognised": words / count, "speakers_recognised": speakers / count, "ended": ended / count}


def experts_by_level(model: Any, data: Any, pieces: Sequence[Piece]) -> dict[str, float]:
    """Mean number of real experts of the positions that hold a silent frame, and of those that hold a voiced one, by
    the level of what the codec makes of the frame. The position of a frame is that of its first channel's code."""
    codec = codec_of(data.preprocessing["speech"]).to(model.device)
    nulls, counts = null_experts(model), {"silent": [0.0, 0], "voiced": [0.0, 0]}
    dataset = Sequences(pieces, data.symbols, 0, data.context, False)
    for low in range(0, len(dataset), BATCH):
        batch = Tokens.collate([dataset[i] for i in range(low, min(low + BATCH, len(dataset)))])
        out, _, _ = asked(model, {key: value.to(model.device) for key, value in batch.items()})
        if not out.routing:
            return {}
        layers = []
        for routed in out.routing:
            real_TK = routed.used_TK & (routed.index_TK < routed.num_experts - nulls)
            layers.append(real_TK.sum(-1).float().view(len(batch["text"]), -1))
        active_BL = torch.stack(layers).mean(0)[:, batch["text"].shape[1] + 1 :]
        for row, frames in enumerate(batch["frames"].tolist()):
            level_T = codec.level(batch["codes"][row, :frames].to(model.device))
            for name, here_T in (("silent", level_T < SILENT), ("voiced", level_T > VOICED)):
                counts[name][0] += float(active_BL[row, :frames][here_T].sum())
                counts[name][1] += int(here_T.sum())
    return {f"experts_{name}": total / number for name, (total, number) in counts.items() if number}

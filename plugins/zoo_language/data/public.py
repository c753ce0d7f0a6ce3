"""Public texts: tinyshakespeare, GSM8K and WikiText-2."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo import config as zc
from zoo.download import fetch
from zoo.spec import ZooError
from zoo_language.data.files import GSM8K, SHAKESPEARE, WIKITEXT
from zoo_language.data.text import TextConfig, Texts, read_text


class Shakespeare(Texts):
    """tinyshakespeare, 1,115,394 characters: train on the first 90%; the last 10% are val, and test is the same.

    Two parts are what everybody reports on this text (nanoGPT: 1.4697 nats a character on the last tenth). So a model
    whose checkpoint was chosen by val has seen test in that sense.
    """

    @dataclass
    class Config(TextConfig):
        vocabulary: Any = zc.part("vocabulary", "language/char")

    def __init__(self, config: Config) -> None:
        text = read_text(fetch(SHAKESPEARE))
        cut = int(0.9 * len(text))
        held_out = [text[cut:]]
        super().__init__(
            config,
            {"train": [text[:cut]], "val": held_out, "test": held_out},
            ["tinyshakespeare: val and test are both the last tenth"],
            "tinyshakespeare",
        )


class Gsm8k(Texts):
    """GSM8K, grade-school mathematics (Cobbe et al., arXiv:2110.14168): a document a problem, with its worked answer.

    7,473 problems of the train file, of which the last twentieth is val; 1,319 of test.
    """

    @dataclass
    class Config(TextConfig):
        pass

    def __init__(self, config: Config) -> None:
        train, test = (_problems(fetch(GSM8K[name])) for name in ("train", "test"))
        cut = len(train) - len(train) // 20
        super().__init__(config, {"train": train[:cut], "val": train[cut:], "test": test}, [], "GSM8K")


def _problems(path: Path) -> list[str]:
    try:
        lines = [json.loads(line) for line in read_text(path).strip().split("\n")]
        return [f"Question: {line['question']}\nAnswer: {line['answer']}\n" for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"'{path}' is not GSM8K as it was published ({error}); delete it, to fetch it again") from error


class WikiText2(Texts):
    """WikiText-2 (Merity et al., arXiv:1609.07843): a document an article; its tokens as published, ``<unk>`` and all.

    The train file is the user's to put in place. ``train: valid`` does without: the validation file's first nine tenths
    of articles are train and the rest val; such numbers compare with no published ones.
    """

    @dataclass
    class Config(TextConfig):
        train: Literal["train", "valid"] = "train"

    def __init__(self, config: Config) -> None:
        valid, test = (_articles(fetch(WIKITEXT[name])) for name in ("valid", "test"))
        if config.train == "valid":
            cut = round(0.9 * len(valid))
            train, valid = valid[:cut], valid[cut:]
            notes = ["WikiText-2 without its train file: the numbers compare with no published ones"]
        else:
            try:
                train, notes = _articles(fetch(WIKITEXT["train"])), []
            except ZooError as error:
                raise ZooError(f"{error}; data.train=valid trains on a part of the validation file instead") from error
        super().__init__(config, {"train": train, "val": valid, "test": test}, notes, "WikiText-2")


def _articles(path: Path) -> list[str]:
    """Articles start with a line `` = Title = `` between empty ones; deeper headings have more signs."""
    pieces = re.split(r"(?m)^(?= = [^=\n][^\n]*[^=\n] = \n)", read_text(path))
    return [piece for piece in pieces if piece.strip()]

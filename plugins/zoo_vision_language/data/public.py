"""Public questions about images: easy-VQA, VQA-RAD, NLVR."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.download import fetch, unpack
from zoo.spec import ZooError
from zoo_vision_language.data.dialogues import DialogueConfig, Dialogues, Split
from zoo_vision_language.data.files import NLVR, VQA_RAD
from zoo_vision_language.data.layout import Example, Turn

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


class EasyVqa(Dialogues):
    """easy-VQA (V. Zhou, 2019), out of the package of that name: 4,000 and 1,000 pictures of one coloured shape, 38,575
    and 9,673 questions with 13 answers. Val are the last tenth of the train pictures by number.

    The kinds of questions: ``yes_no``, ``shape``, ``colour``.
    """

    @dataclass
    class Config(DialogueConfig):
        pass

    def __init__(self, config: Config) -> None:
        import easy_vqa

        train = _by_image(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths())
        test = _by_image(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths())
        cut = len(train) - len(train) // 10
        splits = {"train": train[:cut], "val": train[cut:], "test": test}
        super().__init__(config, {name: _of_images(pairs) for name, pairs in splits.items()}, [], "easy-VQA")


def _by_image(questions: Sequence[Sequence[Any]], paths: Mapping[int, str]) -> list[tuple[str, list[Turn]]]:
    turns: dict[int, list[Turn]] = {number: [] for number in sorted(paths)}
    for question, answer, number in zip(*questions, strict=True):
        kind = "yes_no" if answer in ("yes", "no") else "colour" if answer in COLOURS else "shape"
        turns[number].append(Turn(question, answer, kind))
    return [(paths[number], found) for number, found in turns.items()]


def _of_images(pairs: Sequence[tuple[str | Path, Sequence[Turn]]]) -> Split:
    """Files, and every question a dialogue of its own."""
    examples = [Example((place,), (turn,)) for place, (_, turns) in enumerate(pairs) for turn in turns]
    return Split([Path(path) for path, _ in pairs], examples)


class VqaRad(Dialogues):
    """VQA-RAD (Lau et al., 2018), 315 radiology images, 3,064 and 451 questions in the split of MEVF; val is every
    tenth of the train questions. Train and test ask about the same images. For research, not for diagnosis.

    The kinds of questions: ``closed`` (mostly yes or no) and ``open``. Answers are in lower case.
    """

    @dataclass
    class Config(DialogueConfig):
        pass

    def __init__(self, config: Config) -> None:
        folder = unpack(fetch(VQA_RAD["images"])) / "data_RAD" / "images"
        train, test = (_records(fetch(VQA_RAD[name])) for name in ("train", "test"))
        parts = {
            "train": [r for n, r in enumerate(train) if n % 10],
            "val": train[::10],
            "test": test,
        }
        splits = {}
        for name, records in parts.items():
            turns: dict[str, list[Turn]] = {}
            for r in records:
                answer, kind = str(r["answer"]).strip().lower(), r["answer_type"].strip().lower()
                turns.setdefault(r["image_name"], []).append(Turn(r["question"].strip(), answer, kind))
            splits[name] = _of_images([(folder / image, found) for image, found in sorted(turns.items())])
        super().__init__(config, splits, ["train and test of VQA-RAD ask about the same images"], "VQA-RAD")


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all({"image_name", "question", "answer", "answer_type"} <= set(record) for record in found):
            raise KeyError("a record without image_name, question, answer or answer_type")
        return found  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError) as error:
        raise ZooError(f"'{path}' is not VQA-RAD as published ({error}); delete it, to fetch it again") from error


class Nlvr(Dialogues):
    """NLVR (Suhr et al., 2017): is a sentence true of three boxes of shapes? Its train part is not at hand, so train is
    the dev part (989 sentences, six pictures each), val the hidden part (985, one each), test the public test (990, six
    each). Numbers compare with no published ones, and the majority of test is 0.562.
    """

    @dataclass
    class Config(DialogueConfig):
        context: int = 128

    def __init__(self, config: Config) -> None:
        root = unpack(fetch(NLVR)) / "nlvr"
        splits = {
            "train": _sentences(root, "dev", 6),
            "val": _sentences(root, "hidden", 1),
            "test": _sentences(root, "test", 6),
        }
        super().__init__(
            config, splits, ["NLVR: train is its dev part, val the hidden one, test the public one"], "NLVR"
        )


def _sentences(root: Path, part: str, pictures: int) -> Split:
    pairs: list[tuple[str | Path, list[Turn]]] = []
    path = root / part / f"{part}.json"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        images = root / part / "images"
        file_of = {file.name: file for file in images.rglob("*.png")}  # the hidden part says no folders
        for r in records:
            turn = Turn(r["sentence"].strip(), r["label"], "true_false")
            names = [f"{part}-{r['identifier']}-{n}.png" for n in range(pictures)]
            pairs += [(file_of.get(name, images / name), [turn]) for name in names]
    except (OSError, ValueError, KeyError) as error:
        raise ZooError(f"'{path}' is not NLVR as it was published ({error}); fetch the archive again") from error
    return _of_images(pairs)

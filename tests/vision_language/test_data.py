"""Dialogues as rows, the blind control, one's own files, and everything that can be wrong with them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.spec import ZooError
from zoo_vision_language.data.blind import Blind
from zoo_vision_language.data.layout import Example, Layout, Turn
from zoo_vision_language.data.vocabulary import Words
from zoo_vision_language.templates import Template

_spec = importlib.util.spec_from_file_location("helpers", Path(__file__).with_name("helpers.py"))
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
COLOURS, build, dialogues, pictures = helpers.COLOURS, helpers.build_data, helpers.dialogues, helpers.pictures


def words(*texts: str, **settings: Any) -> Words:
    vocabulary = Words(Words.Config(**settings))
    vocabulary.fit(texts)
    return vocabulary


def test_words_come_back_and_unknown_ones_are_spelled() -> None:
    vocabulary = words("is it a Red circle?", "no, not red.")
    assert vocabulary.decode(vocabulary.encode("No, a RED circle?").tokens_N.tolist()) == "no, a red circle?"
    for text in ("zebra quagga is it", "not ü 漢字 red", "a(b) 'c'"):
        encoded = vocabulary.encode(text)
        assert vocabulary.decode(encoded.tokens_N.tolist()).replace(" ", "") == text.lower().replace(" ", "")
    assert vocabulary.decode(vocabulary.encode("zebra quagga").tokens_N.tolist()) == "zebra quagga"
    assert vocabulary.encode("<|end|>").tokens_N.tolist() == [vocabulary.end]
    assert len(vocabulary.encode("say <|end|>").tokens_N) > 2, "what a user types is no special token"
    assert max(vocabulary.encode("what ever ~").tokens_N) < vocabulary.size
    assert words("a b c", "b c", "c", most=2).config.words == "b\nc"


def test_questions_about_one_image_share_its_tokens() -> None:
    vocabulary = words("what is it? red blue")
    layout = Layout(vocabulary, Template(), image_tokens=3, context=99)
    examples = [
        Example((4,), (Turn("what is it?", "red", "a"),)),
        Example((7,), (Turn("it?", "blue", "b"),)),
        Example((4,), (Turn("it?", "red", "b"), Turn("is it?", "blue", "a"))),
        Example((), (Turn("what?", "it", "a"),)),
    ]
    rows = layout.rows(examples, [])
    assert [row.images for row in rows] == [(4,), (7,), ()]
    first = rows[0]
    assert first.document_L == [-1] * 3 + [0] * 8 + [1] * (6 + 7)
    assert first.modality_L == [0] * 3 + [1] * 21
    said = {q: [t for t, of in zip(first.tokens_L, first.question_L, strict=True) if of == q] for q in (1, 2, 3)}
    red, blue = (vocabulary.encode(w).tokens_N.tolist() for w in ("red", "blue"))
    assert said == {1: [*red, vocabulary.end], 2: [*red, vocabulary.end], 3: [*blue, vocabulary.end]}
    assert rows[2].document_L == [0] * len(rows[2].tokens_L)


def test_images_stand_where_they_are_marked() -> None:
    vocabulary = words("left of right same no")
    layout = Layout(vocabulary, Template(user="", assistant="", images_first=False), image_tokens=2, context=99)
    row = layout.dialogue(Example((0, 1), (Turn("left <image> right <image> same", "no"),)))
    assert row.modality_L == [1, 0, 0, 1, 0, 0, 1, 1, 1]
    unmarked = layout.dialogue(Example((0,), (Turn("same", "no"),)))
    assert unmarked.modality_L[:2] == [0, 0]


def test_rows_hold_what_fits_and_tell_what_does_not() -> None:
    vocabulary = words("a b")
    layout = Layout(vocabulary, Template(), image_tokens=4, context=16)
    notes: list[str] = []
    examples = [Example((0,), (Turn("a a", "b"),)) for _ in range(5)]
    examples += [Example((1,), (Turn("a", "b"), Turn("a " * 9, "b"))), Example((2,), (Turn("a " * 40, "b"),))]
    rows = layout.rows(examples, notes)
    assert [len(row.turns) for row in rows] == [2, 2, 1, 1] and max(len(row.tokens_L) for row in rows) <= 16
    assert notes == [
        "1 turns at the end of dialogues do not fit into context=16",
        "1 dialogues are longer than context=16 and are left out",
    ]


def test_the_blind_control_says_the_likeliest_answer_to_a_question() -> None:
    train = [("is it red?", "no")] * 7 + [("Is it red", "yes")] * 3 + [("is it a cube?", "yes")] * 6 + [("why?", "no")]
    blind = Blind(train)
    assert blind.answer(["is it RED?", "is it a cube", "cube?"]) == ["no", "yes", "yes"]
    assert Blind([("a", "b")]).answer(["c"]) == ["b"]
    ordered = Blind([("is it red", "yes"), ("is it red", "no")])
    assert list(ordered.features) == ["is", "it", "red", "^ is", "is it", "it red"], "the same in every process"


def test_dialogues_of_ones_own(tmp_path: Path) -> None:
    data = build("llava", path=str(dialogues(tmp_path)), images=str(tmp_path / "pictures"))
    with pytest.raises(ZooError, match="does not know its model yet"):
        data.split("train")
    data.use([16, 16], 4)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [24, 3, 3]
    item = data.split("train")[1]
    assert item["pixels"].shape == (1, 16, 16, 3) and item["yes"].tolist() == [-1, 0]
    assert item["pixels"][0, 8, 8].tolist() == list(COLOURS["green"])
    batch = data.collate([data.split("train")[n] for n in range(3)])
    assert batch["tokens"].shape == batch["valid"].shape and batch["kind"].shape == (3, 2)
    assert any("the blind control (question only) answers" in note for note in data.notes)


def test_a_list_and_short_records_are_read_too(tmp_path: Path) -> None:
    pictures(tmp_path, 6)
    pair = {"question": "same?", "answer": "no", "kind": "pair"}
    records: list[Any] = [{"image": [f"{n:03}.png", "000.png"], **pair} for n in range(6)]
    records.append({"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "ho"}]})
    (tmp_path / "all.json").write_text(json.dumps(records))
    data = build("llava", path=str(tmp_path / "all.json"), split=[0.4, 0.3, 0.3])
    data.use([8, 8], 1)
    assert data.kinds == ["all", "pair"] and data.split("train")[1]["pixels"].shape == (2, 8, 8, 3)
    assert data.split("test")[1]["pixels"].shape == (0, 8, 8, 3)


BAD = {
    "{": "is no JSON",
    "[1]": "is a list, not an object",
    '{"image": 3, "question": "a", "answer": "b"}': "'image' must be the name of a file",
    '{"image": "000.png"}': "has neither 'conversations' of two turns nor 'question' and 'answer'",
    '{"image": "000.png", "question": "<image><image>", "answer": "b"}': "says <image> 2 times and names 1 images",
    '{"image": "000.png", "question": "a", "answer": " "}': "has an empty answer",
    '{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}': "'from' must be one of",
    '{"question": "a", "answer": "b", "kind": "x/y"}': "'kind' must be a name",
}


@pytest.mark.parametrize("line", BAD)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = dialogues(tmp_path, 4)
    path.write_text(path.read_text() + "\n\n" + line)
    with pytest.raises(ZooError, match=r"line 6 of '.*talk\.jsonl'") as told:
        build("llava", path=str(path), images=str(tmp_path / "pictures"))
    assert BAD[line] in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"path": "no.jsonl"}, "'no.jsonl' does not exist; set data.path"),
        ({"path": "talk.jsonl", "images": "nowhere"}, "image folder 'nowhere' does not exist"),
        ({"path": "empty.jsonl"}, "holds no dialogue"),
        ({"path": "binary.jsonl"}, "is not UTF-8 text"),
        ({"path": "talk.jsonl", "images": "pictures", "split": [0.5, 0.5]}, "must be three positive fractions"),
        ({"path": "talk.jsonl", "images": "pictures", "template": "chatlm"}, "did you mean chatml"),
        ({"path": "two.jsonl", "images": "pictures"}, "too few for train, val and test"),
    ],
)
def test_files_that_cannot_be_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], told: str
) -> None:
    path = dialogues(tmp_path, 6)
    (tmp_path / "two.jsonl").write_text("\n".join(path.read_text().split("\n")[:2]))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=told):
        build("llava", **settings)


def test_broken_images_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dialogues(tmp_path, 40)
    folder = tmp_path / "pictures"
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:60])
    (folder / "004.png").write_bytes(b"")
    (folder / "005.png").unlink()
    data = build("llava", path=str(path), images=str(folder))
    data.use([8, 8], 1)
    assert len(data.split("train")) == 32 - 3
    told = capsys.readouterr().err
    assert "3 of 32 images cannot be read and are left out" in told and "005.png" in told
    assert "3 of 32 dialogues go with the images that are left out" in told
    for file in folder.iterdir():
        file.write_bytes(b"no picture")
    data.use([8, 8], 1)
    with pytest.raises(ZooError, match="none of 4 images can be read"):
        data.split("val")


def test_images_beyond_memory_are_read_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dialogues(tmp_path, 30)
    data = build("llava", path=str(path), images=str(tmp_path / "pictures"))
    data.use([8, 8], 1)
    kept = [data.split("train")[n] for n in range(24)]
    monkeypatch.setattr("zoo_vision_language.data.dialogues.IN_MEMORY", 8 * 8 * 3 * 5)
    data.use([8, 8], 1)
    lazy = data.split("train")
    assert lazy.pixels_NHWC is None
    assert all(torch.equal(kept[n]["pixels"], lazy[n]["pixels"]) for n in range(24))


def test_a_folder_with_captions(tmp_path: Path) -> None:
    for name, colour in pictures(tmp_path, 8):
        if name != "007.png":
            (tmp_path / name).with_suffix(".txt").write_text(f"a {colour}\npicture ")
    data = build("captions", path=str(tmp_path))
    assert any("1 of 8 images have no caption" in note for note in data.notes)
    data.use([8, 8], 1)
    assert data.split("train").rows[0].turns[0].answer == "a red picture"
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    (tmp_path / "captions.csv").write_text('000.png,"red, all of it"\n001.png,green\n002.png,blue\n999.png,none\n')
    data = build("captions", path=str(tmp_path))
    assert any("1 captions are of images that are not there: 999.png" in note for note in data.notes)
    (tmp_path / "captions.csv").write_text("000.png,red,green\n")
    with pytest.raises(ZooError, match=r"line 1 of '.*captions\.csv' has 3 fields"):
        build("captions", path=str(tmp_path))
    (tmp_path / "captions.csv").unlink()
    with pytest.raises(ZooError, match=r"has a caption; write cat\.txt beside cat\.png"):
        build("captions", path=str(tmp_path))


def test_public_questions() -> None:
    pytest.importorskip("easy_vqa")
    data = build("easy_vqa")
    counts = {name: sum(len(e.turns) for e in split.examples) for name, split in data.splits.items()}
    assert counts["train"] + counts["val"] == 38_575 and counts["test"] == 9_673
    assert data.kinds == ["colour", "shape", "yes_no"]
    assert 0.6 < np.mean([t.blind for e in data.splits["test"].examples for t in e.turns]) < 0.7


@pytest.mark.parametrize(
    ("name", "counts", "majority"),
    [("vqa_rad", (2757, 307, 451), 0.489), ("nlvr", (5934, 985, 5940), 0.562)],
)
def test_public_files(name: str, counts: tuple[int, ...], majority: float) -> None:
    try:
        data = build(name)
    except ZooError as error:
        pytest.skip(f"its files are not here: {error}")
    turns = {split: [t for e in s.examples for t in e.turns] for split, s in data.splits.items()}
    assert tuple(len(turns[split]) for split in ("train", "val", "test")) == counts
    assert all(file.is_file() for split in data.splits.values() for file in split.files)
    answers = [t.answer for t in turns["test"] if t.kind in ("closed", "true_false")]
    share = max(answers.count(answer) for answer in set(answers)) / len(answers)
    assert share == pytest.approx(majority, abs=5e-4)

"""Data sets of pictures: what is in them, and what a user's folder may look like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo import config as zc
from zoo.spec import ZooError
from zoo_diffusion.data.emoji import name
from zoo_diffusion.data.pictures import divide, pieces


def build(data_set: str, **settings: object):
    node = zc.resolve_part("data set", {"name": f"diffusion/{data_set}", **settings}, "data")
    return zc.build("data set", node)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures in two sub-folders."""
    for n in range(12):
        where = tmp_path / "pictures" / ("cats" if n % 2 else "dogs")
        where.mkdir(parents=True, exist_ok=True)
        colour = (20 * n, 0, 255 - 20 * n)
        Image.new("RGB", (20 + n, 30), colour).save(where / f"a_good-{n:02}.png")
    return tmp_path / "pictures"


def test_digits() -> None:
    data = build("digits")
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [1258, 180, 359]
    assert data.preprocessing == {"size": 8, "channels": 1, "classes": list("0123456789")}
    item = data.split("train")[5]
    assert item["image"].shape == (1, 8, 8) and item["image"].min() == -1 and item["image"].max() == 1
    assert item["label"].dtype == torch.int64 and item["index"] == 5
    assert torch.equal(build("digits").split("test")[7]["image"], data.split("test")[7]["image"]), "the same each time"


def test_emoji(zoo_data) -> None:
    zoo_data("images/noto_emoji/noto_emoji_png72.zip")
    data = build("emoji", size=12)
    assert sum(len(data.split(s)) for s in ("train", "val", "test")) == 3545
    assert data.notes[0] == "38 emoji are left out: Python's Unicode table has no name for them"
    everything = [caption for split in data.captions.values() for caption in split]
    assert "red heart" in everything and "runner, medium skin tone, man, facing right" in everything
    split = next(s for s, captions in data.captions.items() if "red heart" in captions)
    place = data.captions[split].index("red heart")
    heart = data.split(split)[place]["image"]
    assert heart.shape == (3, 12, 12) and heart[0, 6, 6] > 0.5 > 0 > heart[1, 6, 6], "red in the middle"
    assert heart[:, 0, 0].min() > 0.95, "on white"


def test_omniglot(zoo_data) -> None:
    zoo_data("images/omniglot/images_background_small1.zip")
    data = build("omniglot", part="small1", label="character", size=14)
    assert (
        sum(len(data.split(s)) for s in ("train", "val", "test")) == 2720 and len(data.preprocessing["classes"]) == 136
    )
    image = data.split("val")[0]["image"]
    assert image.shape == (1, 14, 14) and image.mean() < -0.5, "light strokes on black"


def test_names_of_emoji() -> None:
    assert name("\u2764") == "red heart" and name("\U0001f600") == "grinning face"
    assert name("\U0001f469\U0001f3fd\u200d\U0001f9b0") == "woman, medium skin tone, red hair"
    assert name("\U0001f1e9") == "letter d" and name("3\ufe0f\u20e3") == "digit three, keycap"
    assert name("\U000e0fff") is None


def test_pieces_of_captions() -> None:
    found = pieces("Red heart", 2048, 32)
    assert len(found) == 32 and found == pieces("red   HEART!", 2048, 32) and all(0 <= p < 2048 for p in found)
    assert set(pieces("red", 2048, 8)[:1]) <= set(found), "a word is the same in any caption"
    assert pieces("red heart", 2048, 2) == found[:2], "words come first"
    assert pieces("!?", 2048, 4) == [0] * 4


def test_splits_hold_everything_once() -> None:
    rows = divide(10, [0.8, 0.1, 0.1])
    assert sorted(np.concatenate(list(rows.values()))) == list(range(10)) and len(rows["train"]) == 8
    assert {split: len(r) for split, r in divide(3, [0.98, 0.01, 0.01]).items()} == {"train": 1, "val": 1, "test": 1}
    for fractions, told in (([0.5, 0.6, 0.1], "sum to 1"), ([0.9, 0.1, 0.0], "positive")):
        with pytest.raises(ZooError, match=told):
            divide(9, fractions)
    with pytest.raises(ZooError, match=r"2 pictures cannot be split.*give more"):
        divide(2, [0.8, 0.1, 0.1])


def test_a_folder_of_classes(folder: Path) -> None:
    data = build("folder", path=str(folder), size=8, known="folder", channels=1)
    assert data.preprocessing == {"size": 8, "channels": 1, "classes": ["cats", "dogs"]}
    assert [len(data.split(s)) for s in ("train", "val", "test")] == [9, 2, 1]
    Image.new("RGB", (4, 4)).save(folder / "loose.png")
    with pytest.raises(ZooError, match=r"loose.png' lies in no sub-folder"):
        build("folder", path=str(folder), known="folder")


def test_file_names_are_captions_when_there_are_no_others(folder: Path) -> None:
    data = build("folder", path=str(folder), size=8)
    assert "a good 03" in {caption for split in data.captions.values() for caption in split}
    assert any("names of the files are their captions" in note for note in data.notes)


@pytest.mark.parametrize("kind", ["captions.csv", "mine.tsv", "metadata.jsonl", "txt"])
def test_captions_from_files(folder: Path, kind: str) -> None:
    named = {f"cats/a_good-{n:02}.png": f"cat number {n}" for n in (1, 3, 5, 7)}
    if kind == "txt":
        for file, text in named.items():
            (folder / file).with_suffix(".txt").write_text(text)
    elif kind == "metadata.jsonl":
        rows = [json.dumps({"file_name": file, "text": text}) for file, text in named.items()]
        (folder / kind).write_text("\n".join([*rows, json.dumps({"file_name": "gone.png", "text": "x"})]))
    else:
        tab = "\t" if kind.endswith("tsv") else ","
        rows = [f"{file}{tab}{text}" for file, text in [*named.items(), ("gone.png", "x"), ("cats/a_good-09.png", "")]]
        (folder / kind).write_text("\n".join([f"file{tab}caption", *rows]), encoding="utf-8-sig")
    data = build("folder", path=str(folder), size=8, captions="mine.tsv" if kind == "mine.tsv" else None)
    assert sorted(caption for split in data.captions.values() for caption in split) == sorted(named.values())
    assert any("8 pictures have no caption and are left out" in note for note in data.notes)
    assert kind == "txt" or any("1 captions have no picture: gone.png" in note for note in data.notes)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("captions.csv", "a,b\n1,2\n", "needs columns file and caption, and has a, b"),
        ("captions.csv", "", "and has nothing"),
        ("captions.csv", b"file,caption\na.png,\xe9\n", "is not UTF-8"),
        ("metadata.jsonl", "{", "line 1 of .* is no JSON"),
        ("metadata.jsonl", "[1]", "no JSON object"),
        ("captions.csv", "file,caption\nx.png,y\n", "no picture of .* has a caption"),
    ],
)
def test_tables_that_cannot_be_read(folder: Path, file: str, content: str | bytes, told: str) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ZooError, match=told):
        build("folder", path=str(folder))
    with pytest.raises(ZooError, match=r"'no.csv' does not exist"):
        build("folder", path=str(folder), captions="no.csv")


def test_a_folder_with_one_percent_of_broken_pictures_trains_and_reports_them(tmp_path: Path, capsys) -> None:
    from zoo import hub
    from zoo.train.recipe import read_recipe
    from zoo.train.run import train

    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(100):
        Image.new("RGB", (16, 16), (2 * n, 100, 50)).save(folder / f"shade_{n:03}.png")
    (folder / "shade_007.png").write_bytes((folder / "shade_008.png").read_bytes()[:45])
    Image.new("CMYK", (16, 16), (90, 9, 9, 9)).save(folder / "shade_100.jpg")
    small = [
        "model.image_size=8",
        "model.stack.num_layers=1",
        "train.steps=2",
        "train.batch_size=4",
        "train.val_every=2",
    ]
    small += ["task.sampler.steps=2", "train.val_batches=1", "device=cpu"]
    tree = read_recipe("diffusion/dit_moe_emoji", ["data=folder", f"data.path={folder}", "data.size=8", *small])
    train(tree, tmp_path / "run", quiet=True)
    told = capsys.readouterr().err
    assert "1 of 101 images cannot be read and are left out: '" in told and "shade_007.png' is damaged" in told
    assert "1 of 101 images: CMYK converted to RGB" in told and "70 train, 20 val, 10 test pictures" in told
    assert (tmp_path / "run" / "plots" / "samples.png").is_file()
    assert hub.load(tmp_path / "run").predict(prompt="shade", n=2).pixels_NHWC.shape == (2, 8, 8, 3)

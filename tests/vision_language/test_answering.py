"""The task: scores by hand, learning to see, the three stages, a user's questions, and what is told of wrong ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from zoo import cli
from zoo.images import write_image
from zoo.spec import ZooError
from zoo.train.recipe import read_recipe
from zoo.train.run import train
from zoo_vision_language.chat import Chat
from zoo_vision_language.models.vision_language import Output
from zoo_vision_language.tasks.answering import Answering, Blind

_spec = importlib.util.spec_from_file_location("helpers", Path(__file__).with_name("helpers.py"))
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)
COLOURS, build_data, dialogues = helpers.COLOURS, helpers.build_data, helpers.dialogues

SMALL = (
    "model.language.stack.hidden_size=16",
    "model.language.stack.num_layers=2",
    "model.language.stack.mixer.num_heads=2",
    "model.image_size=[8,8]",
    "model.tower={name: vision_language/conv, channels: [8, 8]}",
    "device=cpu",
    "train.log_every=1",
    "train.val_every=100",
    "train.batch_size=8",
    "optim.lr=1e-2",
    "optim.warmup=0",
)


def recipe(folder: Path, *overrides: str, name: str = "moiie_easy_vqa") -> Any:
    data = f"data=llava data.path={dialogues(folder)} data.images={folder / 'pictures'} data.context=64".split()
    return read_recipe(f"vision_language/{name}", [*SMALL, *data, *overrides])


class Told:
    """A model that says, at the places that are wanted, what it is told."""

    def __init__(self, likeliest_N: list[int]) -> None:
        self.likeliest_N = torch.tensor(likeliest_N)

    def __call__(self, wanted_BL: Tensor, **_: Any) -> Output:
        assert int(wanted_BL.sum()) == len(self.likeliest_N)
        return Output(torch.nn.functional.one_hot(self.likeliest_N, 300).float() * 9, (), {})


def test_scores_by_hand(tmp_path: Path) -> None:
    data = build_data("llava", path=str(dialogues(tmp_path)), images=str(tmp_path / "pictures"))
    data.use([8, 8], 1)
    task = Answering(Answering.Config())
    task.kinds, encode = data.kinds, data.vocabulary.encode
    task.no_N = torch.tensor([int(encode("no").tokens_N[0])])
    rows = data.split("val")
    batch = data.collate([rows[n] for n in range(3)])  # red, green, blue: "what colour is it", "is it red"
    red, green, yes, no = (int(encode(w).tokens_N[0]) for w in ("red", "green", "yes", "no"))
    end = data.vocabulary.end
    said = [red, end, yes, end, red, end, no, end, green, end, yes, no]
    metrics = task.metrics()
    task.update(metrics, Told(said), batch)
    found = {key: float(value) for key, value in metrics.compute().items()}
    blind = batch["blind"].tolist()
    right = [[True, True], [False, True], [False, False]]
    missed = [r for row, known in zip(right, blind, strict=True) for r, b in zip(row, known, strict=True) if not b]
    assert found.pop("loss") > 0 and found["accuracy"] == 0.5
    assert found["accuracy_seen"] == pytest.approx(sum(missed) / len(missed))
    assert found["yes_precision"] == 0.5 and found["yes_recall"] == 1 and found["yes_share"] == pytest.approx(2 / 3)
    assert found["yes_f1"] == pytest.approx(2 / 3) and "accuracy_all" not in found
    assert task.right(Told(said), batch).tolist() == right
    control = task.metrics()
    task.update(control, Blind(), batch)
    values = control.compute()
    assert float(values["accuracy"]) == pytest.approx(np.mean(blind)) and float(values["accuracy_seen"]) == 0
    assert set(found) - set(values) == set() and "loss" not in values, "it says answers, and no odds of tokens"


def test_it_learns_to_see(tmp_path: Path) -> None:
    plain = "model.tower={name: vision_language/patches, patch: 4, width: 16, colours: half}"
    tree = recipe(tmp_path, plain, "train.steps=80", "train.val_every=80", "optim.lr=5e-3")
    folder = train(tree, tmp_path / "run", quiet=True)
    predictor = zoo.load(folder)
    for colour, value in COLOURS.items():
        write_image(np.full((33, 20, 3), value, np.uint8), tmp_path / f"{colour}.png")
        answer = predictor.predict(image=str(tmp_path / f"{colour}.png"), prompt="what colour is it?")
        assert answer.text == colour
        assert predictor.predict(np.full((8, 8, 3), value, np.uint8), "What colour is it?").text == colour
    choices = answer.choices
    assert len(choices.layers) == 1 and choices.layers[0].share_LE.shape == (len(choices.words), 4)
    np.testing.assert_allclose(choices.layers[0].share_LE.sum(1), 1, rtol=1e-5)
    chat = Chat(predictor)
    chat.ask("what colour is it?", image=str(tmp_path / "red.png"))
    said = chat.ask("is it red?")
    assert said in ("yes", "no") and len(chat.turns) == 2 and chat.turns[1].answer == said
    assert "".join(chat.stream("is it red?")) and len(chat.images) == 1
    chat.clear()
    assert isinstance(chat.ask("is it red?"), str), "without any image, too"
    with pytest.raises(ZooError, match="prompt is empty"):
        chat.ask(" ")
    again = Chat(predictor)
    for turn in chat.turns:
        again.turns.append(turn)
    again.turns = again.turns * 200
    with pytest.raises(ZooError, match=r"the prompt has .* tokens and the model takes"):
        again.ask("is it red?")


def test_three_stages_train_what_they_say(tmp_path: Path) -> None:
    short = [f"stages.{name}.steps=2" for name in ("connector", "language", "moe")]
    tree = recipe(tmp_path, *short, "stages.connector.data=null", "train.val_every=2", name="moe_llava_easy_vqa")
    folder = train(tree, tmp_path / "run", quiet=True)
    states = [zoo.load(folder / "stages" / name).model.state_dict() for name in ("connector", "language", "moe")]
    second, third = set[str](), set[str]()
    for changed, (before, after) in ((second, states[:2]), (third, states[1:])):
        changed |= {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert any(key.startswith("language.stack.layers.1.mixer") for key in second)
    assert third and all(".feed_forward.experts." in key or ".router." in key for key in third)
    bank = "language.stack.layers.0.feed_forward.experts.down_proj"
    assert not torch.equal(states[1][bank][0], states[1][bank][1]), "one expert is the dense layer until the last stage"
    assert torch.allclose(states[2][bank][0], states[2][bank][3], atol=0.1), "clones of it, two steps later"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    return train(recipe(folder), folder / "run", quiet=True, fast_dev_run=True)


BROKEN = {
    "nowhere.png": (None, "does not exist"),
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "text.png": (b"hello", "is no picture that can be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_images_are_told(untrained: Path, tmp_path: Path, name: str) -> None:
    content, told = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ZooError, match=told) as error:
        zoo.load(untrained).predict(image=str(tmp_path / name), prompt="what is it?")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "what?", "image": 3}, "is neither a path nor an"),
        ({"prompt": "what?", "max_tokens": "many"}, "max_tokens='many' must be a whole number"),
        ({"prompt": "what?", "max_tokens": 0}, "max_tokens=0 at least 1"),
        ({"prompt": "<image> or <image>?"}, "says <image> 2 times and there are 1 images"),
        ({"prompt": "what " * 600}, "the prompt has .* tokens and the model takes"),
    ],
)
def test_bad_questions_are_told(untrained: Path, inputs: dict[str, Any], told: str) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ZooError, match=told):
        zoo.load(untrained).predict(**{"image": image, **inputs})
    with pytest.raises(ZooError, match="needs image="):
        zoo.load(untrained).predict(prompt="what?")


def test_odd_images_are_read(untrained: Path, tmp_path: Path) -> None:
    from PIL import Image

    predictor = zoo.load(untrained)
    Image.new("CMYK", (9, 9)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((9, 9), 60_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    frames = [Image.new("RGB", (9, 9), c) for c in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    for name, told in (
        ("cmyk.jpg", "CMYK"),
        ("deep.png", "16-bit"),
        ("clear.png", "transparency"),
        ("film.gif", "first frame"),
    ):
        assert any(told in note for note in predictor.predict(tmp_path / name, "what is it?").notes), name


def test_predict_from_the_command_line(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(np.zeros((9, 9, 3), np.uint8), tmp_path / "x.png")
    out = ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(
        sys, "argv", ["zoo", "predict", str(untrained), f"image={tmp_path / 'x.png'}", "prompt=is it: red?", *out]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert (tmp_path / "out" / "answer.txt").read_text().startswith("is it: red?\n")
    assert (tmp_path / "out" / "experts.png").is_file()
    assert "experts.png" in capsys.readouterr().out


def test_data_that_do_not_fit_are_told(tmp_path: Path) -> None:
    for override, told in (
        ("model.language.vocab_size=100", "set model.language.vocab_size=2"),
        ("data.context=600", "the model takes 512"),
        ("data.train_kinds=[al]", "did you mean all"),
    ):
        with pytest.raises(ZooError, match=told):
            train(recipe(tmp_path, override), tmp_path / "run", quiet=True, fast_dev_run=True)

"""The user's side of language models: their own text in, text out, and every mistake is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo import hub

TEXT = "To be, or not to be: that is the question.\n" * 60
SMALL = (
    "model.stack.num_layers=1", "model.stack.hidden_size=16", "model.stack.mixer.num_heads=2", "model.max_length=64",
    "train.steps=2", "train.batch_size=2", "train.val_batches=1", "data.context=16", "device=cpu",
)  # fmt: skip
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def zoo(zoo: Run, tmp_path: Path) -> Run:
    """The command line, with a text of one's own in the folder."""
    (tmp_path / "own.txt").write_text(TEXT)
    return zoo


def test_from_ones_own_text_to_text(zoo: Run, tmp_path: Path) -> None:
    own = ("data=language/text", "data.path=own.txt", "data.vocabulary=language/char", "model.vocab_size=18")
    code, _, err = zoo("train", "language/mixtral_tiny", *SMALL, *own)
    assert code == 0 and "data: vocabulary char of 18 tokens" in err
    run = "runs/language/mixtral_tiny"
    code, out, err = zoo("eval", run, "batch_size=8", "--json")
    report = json.loads(out)
    assert code == 0 and set(report["rivals"]) == {"1-gram", "2-gram", "5-gram"}
    assert set(report["metrics"]) == {"loss", "perplexity", "bits_per_byte", "accuracy"}
    (tmp_path / "other.txt").write_text("to be that is the question\n" * 60)
    code, out, err = zoo("eval", run, "data=language/text", "data.path=other.txt", "data.context=16", "--json")
    assert code == 0 and "vocabulary char of 18 tokens" in err, "the model's, not that of the other text"
    code, out, err = zoo("predict", run, "prompt=To be: ", "max_tokens=20", "--out", "o")
    assert code == 0 and out.endswith("wrote o/generation.txt\n")
    written = (tmp_path / "o" / "generation.txt").read_text()
    assert written.startswith("To be: ") and written.removeprefix("To be: ") in out and len(written) == 27
    same = hub.load(run).predict(prompt="To be: ", max_tokens=20)
    assert same.prompt + same.text == written, "Python gives what the command line gives"
    code, out, _ = zoo("predict", run, "prompt=be", "max_tokens=3", "--json", "--out", "o")
    assert code == 0 and json.loads(out)["files"] == ["o/generation.txt"]
    assert line(zoo("predict", run, "prompt=Über", "--out", "o")).startswith("character 'Ü' is not in the vocabulary")
    assert line(zoo("predict", run, "prompt=" + "be" * 40)).startswith("the prompt has 80 tokens and the model takes")
    assert "prompt is empty" in line(zoo("predict", run, "prompt="))
    assert "needs prompt=... (text to go on from)" in line(zoo("predict", run))


def line(done: tuple[object, str, str]) -> str:
    """The one line of a mistake."""
    code, out, err = done
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, done
    return err.removeprefix("error: ")


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"x.txt": b" \n"}, (), "'x.txt' is empty; give a file with text in it"),
        ({"x.txt": b"\x89PNG\r\n\0\0"}, (), "'x.txt' is binary (NUL at byte 6), not text"),
        ({"x.txt": b"na\xefve " * 99}, (), "'x.txt' is not UTF-8 text (byte 0xef at 2); convert it"),
        ({}, (), "'x.txt' does not exist; set data.path to a text file, a folder or a .jsonl file"),
        ({"d/.x": b"a"}, ("data.path=d",), "folder 'd' holds no text file; put files in UTF-8 there"),
        ({"x.jsonl": b'{"text": "a"}\n{"text": '}, ("data.path=x.jsonl",), "line 2 of 'x.jsonl' is no JSON"),
        ({"x.jsonl": b'{"body": "a"}'}, ("data.path=x.jsonl",), "has no text 'text' (found: body); set data.key=..."),
        ({"x.jsonl": b"\n"}, ("data.path=x.jsonl",), "'x.jsonl' is empty"),
        ({"x.txt": b"abc " * 99}, ("data.context=400",), "context=400 leaves no window in the 356 training tokens"),
        ({"x.txt": b"abc " * 99}, ("data.context=65",), "context=65 and the model takes 64 tokens at most"),
        ({"x.txt": b"abc"}, (), "'x.txt' has no text in its val split; give more text"),
        ({"x.txt": b"abc " * 99}, ("data.vocabulary=language/bite",), "unknown vocabulary 'language/bite'; did you"),
        ({"x.txt": b"abc " * 99}, ("data.vocabulary=char",), "unknown vocabulary 'char'; did you mean language/char?"),
        ({"x.txt": b"abc " * 99}, ("data.vocabulary=language/tokenizer",), "set data.vocabulary.path=tokenizer.json"),
        (
            {"x.txt": b"abc " * 99, "t.json": b"{}"},
            ("data.vocabulary=language/tokenizer", "data.vocabulary.path=t.json"),
            "'t.json' is no tokenizer.json of the tokenizers library",
        ),
        ({"x.txt": b"abc " * 99}, ("data.vocabulary=language/bpe", "data.vocabulary.vocab_size=300"), "model.vocab_"),
        ({"x.txt": b"abc " * 99 + b"xyz" * 9}, ("data.vocabulary=language/char",), "character 'x' is not in the voca"),
        ({"x.txt": b"abc " * 99}, ("data.split=[0.5,0.5,0.5]",), "must be three positive fractions that sum to 1"),
    ],
)
def test_what_is_no_text(zoo: Run, tmp_path: Path, files: dict[str, bytes], settings: tuple[str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    small = ["model.vocab_size=256", *(s for s in SMALL if s.partition("=")[0] not in "".join(settings))]
    done = zoo("train", "language/mixtral_tiny", *small, "data=language/text", "data.path=x.txt", *settings)
    assert message in line(done)

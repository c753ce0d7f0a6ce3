"""Vocabularies and packed windows: nothing is lost, nothing is predicted twice, documents keep apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.config import make
from zoo.spec import ZooError
from zoo.vocabulary import Bpe, Byte, Char, Tokenizer, Vocabulary, restore, saved
from zoo_language.data.bytes import Bytes
from zoo_language.data.public import Gsm8k, Shakespeare, WikiText2
from zoo_language.data.text import Text, TextConfig, Texts, split_documents
from zoo_language.data.windows import pack

WORDS = "the quick brown fox jumps over the lazy dog; déjà vu, 東京 and a 😀 for good measure.\n" * 20


def fitted(kind: type, **settings: Any) -> Vocabulary:
    vocabulary: Vocabulary = kind(make(kind.Config, **settings))  # type: ignore[attr-defined]
    vocabulary.fit([WORDS, WORDS])
    return vocabulary


@pytest.mark.parametrize("kind", [Byte, Char, Bpe])
def test_text_comes_back_and_every_byte_is_counted_once(kind: type) -> None:
    vocabulary = fitted(kind, **({"vocab_size": 300} if kind is Bpe else {}))
    tokens_N, bytes_N = vocabulary.encode(WORDS)
    assert vocabulary.decode(tokens_N.tolist()) == WORDS
    assert bytes_N.sum() == len(WORDS.encode()) and len(bytes_N) == len(tokens_N)
    assert tokens_N.min() >= 0 and tokens_N.max() < vocabulary.size
    assert vocabulary.end == 0 and 0 not in tokens_N, "the end token stands for no text"
    again = restore(json.loads(json.dumps(saved(vocabulary))))
    assert np.array_equal(again.encode(WORDS).tokens_N, tokens_N) and saved(again) == saved(vocabulary)
    assert (again.size, again.end) == (vocabulary.size, vocabulary.end)


def test_bytes_of_a_token_are_those_it_stands_for() -> None:
    assert fitted(Char).encode("a東😀é").bytes_N.tolist() == [1, 3, 4, 2]
    assert fitted(Byte).encode("é").bytes_N.tolist() == [1, 1]
    learned = fitted(Bpe, vocab_size=300)
    pieces = [(learned.decode([int(t)]), int(b)) for t, b in zip(*learned.encode("the quick fox"), strict=True)]
    assert all(len(text.encode()) == width for text, width in pieces) and len(pieces) < len("the quick fox")


def test_byte_pairs_are_learned_alike_each_time() -> None:
    assert saved(fitted(Bpe, vocab_size=280)) == saved(fitted(Bpe, vocab_size=280))
    assert fitted(Bpe, vocab_size=280).size == 280


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(fitted(Bpe, vocab_size=280).config.text)
    own = fitted(Tokenizer, path=str(path))
    assert own.decode(own.encode(WORDS).tokens_N.tolist()) == WORDS and own.end == 0
    path.unlink()
    assert restore(saved(own)).size == 280, "the file travels with the weights"
    assert str(tmp_path) not in json.dumps(saved(own))
    assert fitted(Bpe, text=own.config.text).size == 280
    with pytest.raises(ZooError, match=r"has no token '</doc>'; set data.vocabulary.end"):
        fitted(Tokenizer, text=own.config.text, end="</doc>").end  # noqa: B018


def test_a_character_that_is_not_in_the_vocabulary() -> None:
    with pytest.raises(ZooError, match="character 'ß' is not in the vocabulary of 37 characters"):
        fitted(Char).encode("aß")
    lenient = fitted(Char, unknown=True)
    assert lenient.decode(lenient.encode("fuß").tokens_N.tolist()) == "fu\ufffd"


def test_windows_predict_every_token_once() -> None:
    columns = {"tokens": np.arange(100, 123), "bytes": np.ones(23, np.int32)}
    scored = pack(columns, 5, every=False)
    targets = [int(t) for item in scored for t in item["tokens"][1:][item["valid"][1:]]]
    assert targets == list(range(101, 123))
    assert all(item["tokens"].shape == (6,) for item in scored)
    drawn = pack(columns, 5, every=True)
    assert len(drawn) == 18 and "valid" not in drawn[0]
    assert drawn[17]["tokens"].tolist() == list(range(117, 123))


class Three(Texts):
    Config = TextConfig


def test_documents_are_packed_and_marked() -> None:
    documents = ["abc", "de", "f" * 9]
    data = Three(make(TextConfig, context=4), {"train": documents, "val": documents, "test": ["xy"]}, [], "these")
    window = data.split("train")[1]
    assert bytes(window["tokens"].tolist()) == b"bc\0de"
    assert window["document"].tolist() == [0, 0, 0, 1, 1] and window["bytes"].tolist() == [1, 1, 0, 1, 1]
    assert "document" not in data.split("test")[0]
    assert "train: 3 documents, 14 characters, 17 tokens" in data.notes
    assert data.notes[0] == "vocabulary byte of 256 tokens"


def test_whole_documents_where_there_are_many_and_cuts_where_few() -> None:
    many = [f"{i:02d}" * 3 for i in range(40)]
    parts = split_documents(many, [0.8, 0.1, 0.1])
    assert [len(parts[s]) for s in ("train", "val", "test")] == [32, 4, 4]
    assert [d for s in ("train", "val", "test") for d in parts[s]] == many
    few = split_documents(["a" * 60, "b" * 40], [0.5, 0.2, 0.3])
    assert few == {"train": ["a" * 50], "val": ["a" * 10, "b" * 10], "test": ["b" * 30]}


def test_a_folder_and_json_lines(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"file {i}\r\n" * 40)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".hidden").write_text("no")
    data = Text(make(Text.Config, path=str(tmp_path), context=8))
    assert any("skipped 1 files" in note and "photo.png" in note for note in data.notes)
    assert sum(map(len, data.documents["train"])) == 0.9 * 3 * 40 * len("file 0\n")
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps({"body": f"line {i} \u2028"}) + "\n" for i in range(40)) + '\n{"body": ""}\n')
    data = Text(make(Text.Config, path=str(lines), context=8, key="body"))
    assert len(data.documents["train"]) == 36 and any("skipped 1 lines" in note for note in data.notes)


def test_parquet_and_a_folder_of_shards(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    (tmp_path / "d").mkdir()
    rows = [f"row {i}" for i in range(40)]
    parquet.write_table(table({"body": [*rows, None, " "], "n": list(range(42))}), tmp_path / "d" / "b.parquet")
    (tmp_path / "d" / "a.jsonl").write_text("".join(json.dumps({"body": f"line {i}"}) + "\n" for i in range(40)))
    (tmp_path / "d" / "c.txt").write_text("a file")
    data = Text(make(Text.Config, path=str(tmp_path / "d" / "b.parquet"), context=8, key="body"))
    assert list(chain.from_iterable(data.documents.values())) == rows and any(
        "skipped 2 lines" in note for note in data.notes
    )
    data = Text(make(Text.Config, path=str(tmp_path / "d"), context=8, key="body"))
    assert list(chain.from_iterable(data.documents.values())) == [*(f"line {i}" for i in range(40)), *rows, "a file"]
    for key, said in (
        ("text", r"no column 'text' \(found: body, n\); set data.key"),
        ("n", "column 'n' of .* is no text"),
    ):
        with pytest.raises(ZooError, match=said):
            Text(make(Text.Config, path=str(tmp_path / "d" / "b.parquet"), key=key))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ZooError, match="cannot be read as Parquet"):
        Text(make(Text.Config, path=str(tmp_path / "x.parquet")))
    (tmp_path / "x.txt").write_bytes("wide".encode("utf-16"))
    with pytest.raises(ZooError, match="is UTF-16, not UTF-8; convert it: iconv"):
        Text(make(Text.Config, path=str(tmp_path / "x.txt")))


def test_the_byte_corpus_keeps_its_domains_apart() -> None:
    data = Bytes(make(Bytes.Config, context=32, bytes_per_domain=20_000))
    windows = data.split("val")
    domains = torch.stack([item["domain"] for item in windows])
    assert (domains == domains[:, :1]).all() and domains.unique().tolist() == [0, 1, 2, 3]
    assert torch.stack([item["bytes"] for item in windows]).eq(1).all()


def test_public_texts(zoo_data: Callable[[str], Path]) -> None:
    zoo_data("language/tinyshakespeare/input.txt")
    data = Shakespeare(make(Shakespeare.Config))
    assert (len(data.columns["train"]["tokens"]), len(data.columns["val"]["tokens"])) == (1_003_854, 111_540)
    assert data.vocabulary.size == 65 and data.split("test")[0]["tokens"].shape == (257,)
    zoo_data("language/gsm8k/train.jsonl")
    problems = Gsm8k(make(Gsm8k.Config))
    assert [len(problems.documents[s]) for s in ("train", "val", "test")] == [7100, 373, 1319]
    assert problems.documents["test"][0].startswith("Question: Janet") and "#### 18" in problems.documents["test"][0]
    valid = zoo_data("language/wikitext-2/valid.txt")
    articles = WikiText2(make(WikiText2.Config, train="valid"))
    whole = "".join(articles.documents["train"] + articles.documents["val"])
    assert len(whole.split()) + whole.count("\n") + 1 == 217_646, "as the field counts; one empty line comes first"
    if not (valid.parent / "train.txt").exists():
        with pytest.raises(ZooError, match=r"train.txt.*put it at.*data.train=valid"):
            WikiText2(make(WikiText2.Config))

"""Metrics by hand, n-grams by hand, and generation that does not depend on the cache."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo import create_model
from zoo.nn.generation import choose, generate, spell
from zoo.spec import ZooError
from zoo.vocabulary import Byte, Char, saved
from zoo_language.data.windows import pack
from zoo_language.models.decoder import Output
from zoo_language.tasks.modeling import LARGEST, Modeling

TINY = {"hidden_size": 32, "num_layers": 2, "mixer": {"num_heads": 2}}
INPUTS = {"prompt": "ab", "max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "stop": None, "seed": 0}


def task(**settings: Any) -> Modeling:
    return Modeling(Modeling.Config(**settings))


class Table(torch.nn.Module):
    """A bigram model over three tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.share = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])

    def forward(self, tokens_BL: Tensor, **_: Any) -> Output:
        return Output(self.share[tokens_BL].log(), ())


def test_metrics_count_tokens_that_are_valid_and_of_one_document() -> None:
    batch = {
        "tokens": torch.tensor([[0, 1, 1, 2, 0], [2, 2, 0, 0, 0]]),
        "bytes": torch.tensor([[1, 2, 3, 4, 5], [1, 7, 9, 9, 9]]),
        "document": torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]),
        "valid": torch.tensor([[True] * 5, [True, True, False, False, False]]),
    }
    metrics = task().metrics()
    for row in (slice(0, 1), slice(1, 2)):  # batches of different weight
        task().update(metrics, Table(), {key: value[row] for key, value in batch.items()})
    shares = [0.25, 0.8, 0.2, 0.6]  # 0>1, 1>1, 2>0 in the first row, 2>2 in the second
    nats = -sum(map(math.log, shares))
    found = {key: float(value) for key, value in metrics.compute().items()}
    assert found == pytest.approx(
        {
            "loss": nats / 4,
            "perplexity": math.exp(nats / 4),
            "bits_per_byte": nats / math.log(2) / (2 + 3 + 5 + 7),
            "accuracy": 2 / 4,
        },
        rel=1e-6,
    )
    assert float(task().loss(Table(), batch).loss) == pytest.approx(nats / 4, rel=1e-6)


def columns(*documents: list[int]) -> dict[str, np.ndarray]:
    tokens = np.concatenate([np.array(d) for d in documents])
    number = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    return {"tokens": tokens, "bytes": np.ones_like(tokens), "document": number}


def test_bigram_by_hand() -> None:
    model = create_model("language/ngram", order=2, vocab_size=4)
    model.fit(pack(columns([0, 1, 0, 1, 0, 2, 0, 1], [3, 3]), 2, every=True))
    # bigrams: 01 x3, 10 x2, 02, 20, 33; seen once 3 and twice 1, so D = 3/5
    # contexts of each token: 0 in {1, 2, start}, 1 in {0}, 2 in {0}, 3 in {3, start}: counts 3, 1, 1, 2; D1 = 2/4
    lower = [(3 - 0.5) / 7, (1 - 0.5) / 7, (1 - 0.5) / 7, (2 - 0.5) / 7]
    lower = [share + 0.5 * 4 / 7 / 4 for share in lower]
    after_0 = [2 * 0.6 / 4 * share for share in lower]
    after_0[1] += (3 - 0.6) / 4
    after_0[2] += (1 - 0.6) / 4
    logits_BLV = model(torch.tensor([[0, 3]])).logits_BLV
    torch.testing.assert_close(logits_BLV[0, 0].exp(), torch.tensor(after_0))
    torch.testing.assert_close(logits_BLV.exp().sum(-1), torch.ones(1, 2))


def test_n_grams_sum_to_one_and_see_no_other_document() -> None:
    rng = np.random.default_rng(0)
    model = create_model("language/ngram", order=4, vocab_size=5)
    model.fit(pack(columns(*(rng.integers(0, 5, n).tolist() for n in (60, 3, 1, 90))), 8, every=True))
    tokens_BL = torch.from_numpy(rng.integers(0, 5, (3, 10)))
    whole = model(tokens_BL).logits_BLV
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(3, 10))
    packed = model(tokens_BL, document_BL=torch.tensor([[0] * 4 + [1] * 6]).expand(3, -1)).logits_BLV
    torch.testing.assert_close(packed[:, :4], whole[:, :4])
    torch.testing.assert_close(packed[:, 4:], model(tokens_BL[:, 4:]).logits_BLV)
    assert not torch.allclose(packed[:, 4], whole[:, 4])
    padded = model(tokens_BL, valid_BL=torch.tensor([[False] * 4 + [True] * 6]).expand(3, -1)).logits_BLV
    torch.testing.assert_close(padded[:, 4:], packed[:, 4:])


def test_a_higher_order_predicts_a_pattern_and_is_saved_with_its_tables(tmp_path: Any) -> None:
    text = pack(columns([0, 0, 1, 2] * 50), 8, every=True)
    scores = {}
    for order in (1, 3):
        model = create_model("language/ngram", order=order, vocab_size=3)
        model.fit(text)
        metrics = task().metrics()
        task().update(metrics, model, {key: value[None] for key, value in text[0].items()})
        scores[order] = float(metrics.compute()["loss"])
    assert scores[3] < 0.2 < scores[1]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(torch.tensor([[0, 0, 1]])).logits_BLV, model(torch.tensor([[0, 0, 1]])).logits_BLV)


def test_rivals_are_as_large_as_the_vocabulary_allows() -> None:
    at = lambda size: {"vocabulary": saved(Char(Char.Config(characters="".join(map(chr, range(1, size + 1))))))}  # noqa: E731
    assert set(task().rivals(at(LARGEST))) == {"1-gram", "2-gram", "5-gram"}
    assert task().rivals(at(LARGEST + 1)) == {}
    with pytest.raises(ZooError, match=r"order=5 is too high for vocab_size=7000"):
        create_model("language/ngram", order=5, vocab_size=7000)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_cache_changes_no_token(temperature: float) -> None:
    model = create_model("language/mixtral_tiny", stack=TINY, max_length=24).eval()
    prompts = torch.randint(256, (3, 5))
    drawn = [
        torch.stack(list(generate(
            model, prompts, max_tokens=40, temperature=temperature, top_p=0.9, use_cache=use_cache,
            generator=torch.Generator().manual_seed(1),
        )))
        for use_cache in (True, False)
    ]  # fmt: skip
    assert drawn[0].shape == (40, 3) and torch.equal(*drawn), "also past max_length, where the window slides"


def test_a_packed_row_scores_as_its_documents_alone() -> None:
    model = create_model("language/mixtral_tiny", stack=TINY).eval()
    documents = [torch.randint(1, 256, (n,)) for n in (7, 2, 11)]
    scores = []
    for rows in ([documents], [[d] for d in documents]):
        metrics = task().metrics()
        for row in rows:
            tokens = torch.cat(row)[None]
            number = torch.cat([torch.full_like(d, i) for i, d in enumerate(row)])[None]
            batch = {"tokens": tokens, "document": number, "bytes": torch.ones_like(tokens)}
            with torch.no_grad():
                task().update(metrics, model, batch)
        scores.append({key: float(value) for key, value in metrics.compute().items()})
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_choosing_a_token() -> None:
    share_BV = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    draw = lambda **k: {int(choose(share_BV.log(), generator=None, **k)) for _ in range(300)}  # noqa: E731
    assert draw(temperature=0.0, top_p=1.0) == {0}
    assert draw(temperature=1.0, top_p=1.0) == {0, 1, 2, 3}
    assert draw(temperature=1.0, top_p=0.6) == {0, 1}, "the first tokens that hold the share"
    assert draw(temperature=1.0, top_p=0.01) == {0}
    counts = choose(share_BV.log().expand(2000, -1), 0.5, 1.0, None)[:, 0].bincount(minlength=4) / 2000
    torch.testing.assert_close(counts, (share_BV[0] ** 2 / share_BV.square().sum()), rtol=0, atol=0.05)


def test_spelling_waits_for_whole_characters_and_stops() -> None:
    byte = Byte(Byte.Config())
    assert list(spell(byte, "aé".encode())) == ["a", "é"]
    assert "".join(spell(byte, b"to be\0 or not")) == "to be", "the end token ends it"
    assert "".join(spell(byte, b"one\ntw\n\nthree", stop="\n\n")) == "one\ntw"
    assert "".join(spell(byte, b"one\n", stop="\n\n")) == "one\n", "what was held back is shown at the end"
    assert list(spell(byte, b"a\xff")) == ["a", "\ufffd"]


def test_predict_streams_what_it_returns() -> None:
    model = create_model("language/mixtral_tiny", stack=TINY).eval()
    preprocessing = {"vocabulary": saved(Byte(Byte.Config()))}
    pieces = list(task().stream(model, preprocessing, INPUTS))
    result = task().predict(model, preprocessing, INPUTS)
    assert "".join(pieces) == result.text and result.prompt == "ab"
    assert task().predict(model, preprocessing, INPUTS | {"seed": 1}) != result
    assert task().predict(model, preprocessing, INPUTS | {"prompt": ""}).prompt == "", "starts from the end token"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"prompt": "x" * 40}, "the prompt has 40 tokens and the model takes 1 to 32"),
        ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 above 0"),
        ({"max_tokens": 0}, "max_tokens=0 at least 1"),
        ({"max_tokens": "many"}, "max_tokens='many' is not a int"),
        ({"prompt": 5}, "prompt=5 is not a text"),
        ({"prompt": "\udce9"}, "is no character"),
    ],
)
def test_inputs_that_cannot_be(inputs: dict[str, Any], message: str) -> None:
    model = create_model("language/mixtral_tiny", stack=TINY, max_length=32).eval()
    with pytest.raises(ZooError, match=message):
        task().predict(model, {"vocabulary": saved(Byte(Byte.Config()))}, INPUTS | inputs)


def test_a_model_keeps_its_vocabulary() -> None:
    char = Char(Char.Config(characters="abc"))
    theirs, used = saved(Byte(Byte.Config())), []
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=3, max_length=8))

    class Data:
        def __init__(self) -> None:
            self.preprocessing = {"vocabulary": theirs}

        def use(self, vocabulary: Any) -> None:
            self.preprocessing = {"vocabulary": saved(vocabulary)}
            used.append(vocabulary.config.characters)

    task().match(model, Data(), {"vocabulary": saved(char)})
    assert used == ["abc"]
    with pytest.raises(ZooError, match=r"has 256 tokens and the model 3; set model.vocab_size=256"):
        task().match(model, Data(), {})
    longer = SimpleNamespace(preprocessing={"vocabulary": saved(char), "context": 9})
    with pytest.raises(ZooError, match=r"context=9 and the model takes 8 tokens at most; set data.context=8"):
        task().match(model, longer, {})
    fixed = SimpleNamespace(preprocessing={"vocabulary": theirs})
    with pytest.raises(ZooError, match="trained with vocabulary language/char, the data have language/byte"):
        task().match(model, fixed, {"vocabulary": saved(char)})

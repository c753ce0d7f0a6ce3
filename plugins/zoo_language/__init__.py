"""Language: one decoder from which the mixture-of-experts language models of the literature are composed in YAML."""

from __future__ import annotations

from zoo.spec import DatasetSpec, Input, ModelSpec, PartSpec, Plugin, TaskSpec
from zoo_language.data.files import GSM8K, SHAKESPEARE, WIKITEXT
from zoo_language.systems import MODELS

_VOCABULARY = "zoo.vocabulary"

plugin = Plugin(
    api=1,
    doc="mixture-of-experts language models",
    models=(
        *MODELS,
        ModelSpec("ngram", "zoo_language.models.ngram:Ngram", "modeling", "interpolated Kneser-Ney: the baseline"),
    ),
    datasets=(
        DatasetSpec(
            "bytes",
            "zoo_language.data.bytes:Bytes",
            "four domains of bytes that every PyTorch installation contains: Python, C++, prose, records",
            "BSD-3-Clause and the licences of the installed packages",
        ),
        DatasetSpec(
            "shakespeare",
            "zoo_language.data.public:Shakespeare",
            "tinyshakespeare, 1.1 million characters, the last tenth held out",
            "public domain",
            files=(SHAKESPEARE,),
        ),
        DatasetSpec(
            "gsm8k",
            "zoo_language.data.public:Gsm8k",
            "GSM8K: problems of grade-school mathematics and their answers in words",
            "MIT",
            files=tuple(GSM8K.values()),
        ),
        DatasetSpec(
            "wikitext2",
            "zoo_language.data.public:WikiText2",
            "WikiText-2: articles of Wikipedia (the train file is yours to put in place)",
            "CC BY-SA 3.0",
            files=tuple(WIKITEXT.values()),
        ),
        DatasetSpec("text", "zoo_language.data.text:Text", "your own text: a file, a folder or JSON lines"),
    ),
    parts=(
        PartSpec("vocabulary", "byte", f"{_VOCABULARY}:Byte", "the 256 bytes of UTF-8"),
        PartSpec("vocabulary", "char", f"{_VOCABULARY}:Char", "the characters of the train split"),
        PartSpec("vocabulary", "bpe", f"{_VOCABULARY}:Bpe", "byte pairs, learned from the train split"),
        PartSpec(
            "vocabulary", "tokenizer", f"{_VOCABULARY}:Tokenizer", "your tokenizer.json", requires=("tokenizers",)
        ),
    ),
    tasks=(
        TaskSpec(
            "modeling",
            "zoo_language.tasks.modeling:Modeling",
            "next-token prediction",
            inputs=(
                Input("prompt", "text to go on from", required=True, text=True),
                Input("max_tokens", "tokens to add", default=200),
                Input("temperature", "1 draws from the model's distribution, 0 takes the likeliest", default=1.0),
                Input("top_p", "draw from the likeliest tokens that hold this share", default=1.0),
                Input("stop", "text before which to stop", text=True),
                Input("seed", "of the draws", default=0),
            ),
        ),
    ),
)

"""Files of public texts: where they lie under ``ZOO_DATA``, where they come from, and what they must hash to."""

from zoo.spec import DataFile

_GITHUB = "https://raw.githubusercontent.com"
_SHAKESPEARE = f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare"
_GSM8K = f"{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
_WIKITEXT = f"{_GITHUB}/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2"

SHAKESPEARE = DataFile(
    "language/tinyshakespeare/input.txt",
    (f"{_SHAKESPEARE}/input.txt",),
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
GSM8K = {
    name: DataFile(f"language/gsm8k/{name}.jsonl", (f"{_GSM8K}/{name}.jsonl",), digest)
    for name, digest in {
        "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    }.items()
}
WIKITEXT = {
    name: DataFile(f"language/wikitext-2/{name}.txt", (f"{_WIKITEXT}/{name}.txt",), digest)
    for name, digest in {
        "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    }.items()
}
# It was not at hand to take a checksum from, so it is not fetched: its user puts it there.
WIKITEXT |= {"train": DataFile("language/wikitext-2/train.txt")}

"""Files of public picture sets: where they lie under ``ZOO_DATA``, and what they must hash to."""

from zoo.spec import DataFile

_RAW = "https://raw.githubusercontent.com"
_OMNIGLOT = f"{_RAW}/brendenlake/omniglot/057f034baf2ecb8530bc5710e5a23584d2a519cc/python"

# A zip of png/72 of googlefonts/noto-emoji at b3e3051a0880, which has no archive of its own.
EMOJI = DataFile(
    "images/noto_emoji/noto_emoji_png72.zip",
    sha256="92d8d32ed4a4a135aab3a96dfa829ff75757ac3cd5d79400912ec544b0675684",
)

OMNIGLOT = {
    "small1": DataFile(
        "images/omniglot/images_background_small1.zip",
        (f"{_OMNIGLOT}/images_background_small1.zip",),
        sha256="f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
    ),
    "small2": DataFile(
        "images/omniglot/images_background_small2.zip",
        (f"{_OMNIGLOT}/images_background_small2.zip",),
        sha256="3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
    ),
}

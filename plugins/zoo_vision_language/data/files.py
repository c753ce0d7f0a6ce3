"""Files of public data: where they lie under ``ZOO_DATA``, where they come from, and what they must hash to."""

from zoo.spec import DataFile

_RAD = "https://raw.githubusercontent.com/longle0702/med-v2qa/4ae21bc19dd20cb5e76fa89f3e77c07230b526c3/data_RAD"

VQA_RAD = {
    "images": DataFile(
        "vision_language/VQA-RAD/images.tar",
        sha256="888d280446e90268b965de59da68797806390ee12df647fa6ea7ad00ae827e86",
    ),
    "train": DataFile(
        "vision_language/VQA-RAD/trainset.json",
        (f"{_RAD}/trainset.json",),
        "dc0e09c6750bd593bfe566c20b875b6485f80b712ff9ac6fdf4f19ca3c263923",
    ),
    "test": DataFile(
        "vision_language/VQA-RAD/testset.json",
        (f"{_RAD}/testset.json",),
        "533388b3242ca5ad7e6436093fb4d11adb928ba8def501054f722c7cedff13a5",
    ),
}
# The archive is made of the repository's dev, hidden (permutation 0) and public test parts; its user puts it there.
NLVR = DataFile(
    "vision_language/NLVR/nlvr_dev_hiddenk0_test.zip",
    sha256="4809e7962a47e73795914817f25569986e55558bc5ff4dc63b0c983f228e078c",
)

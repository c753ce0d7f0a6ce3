"""Files of public data sets: where they lie under ``ZOO_DATA``, where they come from, and what they must hash to."""

from zoo.spec import DataFile

_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small"
_ETT_SHA256 = {
    "ETTh1": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "ETTh2": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
}

ETT = {
    name: DataFile(f"time_series/ETT-small/{name}.csv", (f"{_ETT}/{name}.csv",), digest)
    for name, digest in _ETT_SHA256.items()
}
# The minute sets were not at hand to take a checksum from, so they are not fetched: their user puts them there.
ETT |= {name: DataFile(f"time_series/ETT-small/{name}.csv") for name in ("ETTm1", "ETTm2")}

"""Files of public data sets: where they lie under ``ZOO_DATA``, where they come from, and what they must hash to.

Who says what a file must hash to: git blob ids are those of the listing of the commit that its address names; clones of
the repositories of ETT, electricity, traffic and exchange rates show the same, and their own copies of ETTh1, ETTh2
and the exchange rates have the SHA-256 below. That of the weather table is what ten public projects state for the file
(7,235,425 bytes) of that revision, beside those of ETTh1 and ETTh2 as they are here; nobody here has downloaded it.
"""

from zoo.spec import DataFile

_RAW = "https://raw.githubusercontent.com"
_ETT = f"{_RAW}/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small"
_M4 = f"{_RAW}/Mcompetitions/M4-methods/6c1067e5a57161249b17289a565178dc7a3fb3ca/Dataset"
_LSTNET = f"{_RAW}/laiguokun/multivariate-time-series-data/7f402f185cc2435b5e66aed13a3b560ed142e023"
_TSLIB = "2b66e59ee19dac8f6f19fb5d4997f289fdfea357"


def _file(folder: str, source: str, **check: str) -> DataFile:
    return DataFile(f"time_series/{folder}/{source.rpartition('/')[2]}", (source,), **check)


ETT = {
    name: _file("ETT-small", f"{_ETT}/{name}.csv", **check)
    for name, check in {
        "ETTh1": {"sha256": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"},
        "ETTh2": {"sha256": "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"},
        "ETTm1": {"git_blob": "62c9f979e2dc5b05d9cc5b38891e60e6baf77417"},
        "ETTm2": {"git_blob": "f9d46027c987d442d2d8f81308d1d8c4d1d35db8"},
    }.items()
}

# The sources of the benchmark's electricity (ECL), traffic and exchange tables.
LONG_HORIZON = {
    "electricity": _file(
        "multivariate",
        f"{_LSTNET}/electricity/electricity.txt.gz",
        git_blob="df158a9fff65428ece107200432a72c992d5e4e9",
    ),
    "traffic": _file(
        "multivariate", f"{_LSTNET}/traffic/traffic.txt.gz", git_blob="63ddb74bf7602568f36056a0b1a47aa407f0a6fe"
    ),
    "exchange_rate": _file(
        "multivariate",
        f"{_LSTNET}/exchange_rate/exchange_rate.txt.gz",
        sha256="6a4fbb561dcdee43f071a83badbeec9223a335552278348656738b556f1c2e9d",
    ),
    "weather": _file(
        "weather",
        f"https://huggingface.co/datasets/thuml/Time-Series-Library/resolve/{_TSLIB}/weather/weather.csv",
        sha256="34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
    ),
}

_M4_CHECKS = {
    "Yearly": ("639f4aa455f07fe83776ba2459be782730b45ed6", "b569724085746120559790ebe26ce05b83b698a1"),
    "Quarterly": ("94ce474ab74463e3db3edb616b5948be6af5079c", "841cd91e32a95756e1d8a639997eafa448de9150"),
    "Monthly": ("d956904cd5991422f70598453571572f5e6ba7f3", "c27ca44ca20b15a40da9e96ca1867f1fff7aeecb"),
    "Weekly": ("8760c8b31bba7da2d2e495ccb06909267a4b900a", "36cdf6284b397ecef9a054838630f51ffdf5cc1f"),
    "Daily": ("2393f4c26e7e002b3df8d173d83902ab26596928", "141594f92a932b99000c0566d94f0130ee3ec635"),
    "Hourly": ("8c30294d79ac2b2f4c71b2769b74057d86143fbf", "34fa4fbedbba8263e12d52f321a01235c23404d3"),
}
M4_FILES = {
    group: (
        _file("M4", f"{_M4}/Train/{group}-train.csv", git_blob=train),
        _file("M4", f"{_M4}/Test/{group}-test.csv", git_blob=test),
    )
    for group, (train, test) in _M4_CHECKS.items()
}

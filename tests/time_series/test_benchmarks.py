"""Public benchmarks: M4 by the competition's own numbers, and the long-horizon tables by what a server sends."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from zoo import download
from zoo.spec import ZooError
from zoo_time_series.data import long_horizon
from zoo_time_series.data.files import ETT, LONG_HORIZON, M4_FILES
from zoo_time_series.data.long_horizon import LongHorizon
from zoo_time_series.data.m4 import M4, naive2, score, seasonal


def test_every_file_with_an_address_has_a_checksum() -> None:
    files = [*ETT.values(), *LONG_HORIZON.values(), *(file for pair in M4_FILES.values() for file in pair)]
    assert len({file.path for file in files}) == len(files) == 20
    assert all(file.urls and (len(file.sha256) == 64 or len(file.git_blob) == 40) for file in files)


# -- M4 --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def m4(zoo_data: Callable[[str], Path]) -> M4:
    zoo_data("time_series/M4/Hourly-train.csv")
    return M4(M4.Config())


def test_the_files_of_m4_have_the_ids_that_its_repository_gives_them(zoo_data: Callable[[str], Path]) -> None:
    for file in M4_FILES["Hourly"]:
        assert download.git_blob(zoo_data(file.path)) == file.git_blob


def test_m4_hourly_is_the_competitions(m4: M4) -> None:
    assert len(m4.preprocessing["columns"]) == len(m4.split("val")) == len(m4.split("test")) == 414
    assert m4.preprocessing["season"] == 24 and m4.preprocessing["horizon"] == 48
    # Naive2 on Hourly, as the competition's report has it: sMAPE 18.383, MASE 2.395.
    assert m4.preprocessing["reference"]["smape"] == pytest.approx(18.383, abs=5e-4)
    assert m4.preprocessing["reference"]["mase"] == pytest.approx(2.395, abs=5e-4)


def test_seasonal_naive_on_m4_hourly(m4: M4) -> None:
    item = m4.split("test").batch(torch.arange(414))
    mean, std = item["mean"][:, None].double(), item["std"][:, None].double()
    future = item["future"] * std + mean
    for lag, smape in ((24, 13.912), (168, 12.70)):
        said = item["past"][:, -lag:].repeat(1, 2)[:, :48] * std + mean
        found = 200 * ((said - future).abs() / (said.abs() + future.abs())).mean()
        assert float(found) == pytest.approx(smape, abs=5e-3)
    error = (item["past"][:, -24:].repeat(1, 2) - item["future"]).abs() / item["mase_scale"][:, None]
    assert float(error.mean()) == pytest.approx(1.193, abs=5e-4), "the competition's MASE of the seasonal naive"


def test_m4_files_that_do_not_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    folder = tmp_path / "time_series" / "M4"
    folder.mkdir(parents=True)
    (folder / "Yearly-train.csv").write_text('"V1","V2","V3"\n"Y1",1,2\n"Y2",1,\n')
    (folder / "Yearly-test.csv").write_text('"V1","V2"\n"Y1",3\n"Y2",1\n')
    with pytest.raises(ZooError, match="do not belong together"):
        M4(M4.Config(group="Yearly"))


def test_series_of_different_length_that_are_too_short_to_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    folder = tmp_path / "time_series" / "M4"
    folder.mkdir(parents=True)
    rows = {"Y1": np.arange(1.0, 31), "Y2": np.arange(1.0, 11), "Y3": np.arange(2.0, 22)}
    header = ",".join(f'"V{i}"' for i in range(1, 32))
    lines = [",".join([name, *map(str, x), *[""] * (30 - len(x))]) for name, x in rows.items()]
    (folder / "Yearly-train.csv").write_text("\n".join([header, *lines]))
    test = [f"{name}," + ",".join("123456") for name in rows]
    (folder / "Yearly-test.csv").write_text("\n".join([",".join(f"V{i}" for i in range(1, 8)), *test]))
    data = M4(M4.Config(group="Yearly", context=12))
    assert [len(data.split(name)) for name in ("val", "test")] == [3, 3]
    assert any("1 series are too short to be trained on" in note for note in data.notes)
    train = data.split("train").batch(torch.arange(len(data.split("train"))))
    assert set(train["series"].tolist()) == {0, 2}
    back = data.split("test")[1]
    assert (back["past"][back["past_valid"]] * back["std"] + back["mean"]).tolist() == pytest.approx(rows["Y2"])


def test_naive2_by_hand() -> None:
    time = np.arange(48)
    pattern = np.array([0.5, 1.0, 1.5, 1.0])
    history = (10 + np.zeros(48)) * pattern[time % 4]
    assert seasonal(history, 4) and not seasonal(np.random.default_rng(0).normal(size=200), 12)
    np.testing.assert_allclose(naive2(history, 4, 6), 10 * pattern[np.arange(48, 54) % 4])
    assert naive2(history[:11], 4, 2).tolist() == [15, 15], "less than three seasons are not tested"
    np.testing.assert_allclose(naive2(np.tile([1.0, 2.0, 3.0], 9), 3, 3), [1, 2, 3])
    smape, mase = score(np.array([2.0]), np.array([1.0, 2.0, 4.0]), np.array([4.0]), 1)
    assert (smape, mase) == (pytest.approx(200 * 2 / 6), pytest.approx(2 / 1.5))


# -- the long-horizon benchmark --------------------------------------------------------------------------------------


@pytest.fixture
def exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A generated table in the form of the source, smaller."""
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setitem(long_horizon.TABLES, "exchange_rate", (1000, 3, "1990-01-01", "D"))
    path = tmp_path / LONG_HORIZON["exchange_rate"].path
    path.parent.mkdir(parents=True)
    values = np.arange(3000.0).reshape(1000, 3)
    with gzip.open(path, "wt") as stream:
        np.savetxt(stream, values, delimiter=",", fmt="%g")
    return path


def test_a_table_of_the_long_horizon_benchmark(exchange: Path) -> None:
    data = LongHorizon(LongHorizon.Config(set="exchange_rate", context=96, horizon=48, calendar=True))
    assert data.preprocessing["frequency"] == "D" and data.preprocessing["columns"] == ["0", "1", "2"]
    assert len(data.split("test")) == 3 * (200 - 48 + 1) and len(data.split("val")) == 3 * (100 - 48 + 1)
    first = data.split("test")[0]
    assert float(first["future"][0] * first["std"] + first["mean"]) == pytest.approx(2400, rel=1e-5)
    assert first["covariates"].shape == (144, 4)


def test_weather_is_taken_row_by_row(exchange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dates repeat a step and leave some out, and its header is in no encoding."""
    monkeypatch.setitem(long_horizon.TABLES, "weather", (1000, 2, "2020-01-01 00:10", "10min"))
    path = exchange.parents[1] / "weather" / "weather.csv"
    path.parent.mkdir()
    times = pd.date_range("2020-01-01 00:10", periods=1009, freq="10min").delete(range(500, 510)).insert(700, None)
    times = times.where(times.notna(), times[699])
    table = pd.DataFrame({"date": times, "SWDR (W/m2)": np.arange(1000.0), "OT": np.arange(1000.0) % 144})
    path.write_bytes(table.to_csv(index=False).encode().replace(b"m2", b"m\xef\xbf\xbd"))
    data = LongHorizon(LongHorizon.Config(set="weather", context=96, horizon=48))
    assert data.preprocessing["season"] == 144 and data.notes == []
    assert len(data.split("test")) == 2 * (200 - 48 + 1)
    last = data.split("test")[200 - 48]
    assert float(last["future"][-1] * last["std"] + last["mean"]) == pytest.approx(999, rel=1e-5)


def test_a_table_that_is_cut_off_or_absent(exchange: Path) -> None:
    with gzip.open(exchange, "wt") as stream:
        stream.write("1,2,3\n4,5,6\n")
    with pytest.raises(ZooError, match="has 2 rows and 3 variates, exchange_rate has 1000 and 3"):
        LongHorizon(LongHorizon.Config(set="exchange_rate"))
    with pytest.raises(ZooError, match=r"cannot download 'time_series/multivariate/traffic\.txt\.gz'"):
        LongHorizon(LongHorizon.Config(set="traffic"))

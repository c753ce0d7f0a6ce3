"""Windows against slices by hand, and tables as users have them: odd, gappy, long, irregular and broken."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.spec import ZooError
from zoo_time_series.data.context import frame_to_context
from zoo_time_series.data.csv import Csv
from zoo_time_series.data.ett import Ett
from zoo_time_series.data.frame import to_panel
from zoo_time_series.data.statsmodels import Statsmodels
from zoo_time_series.data.windows import SeriesDataset, split_rows

CONTEXT, HORIZON = 24, 8


def table(times, columns=3, seed=0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(len(times), columns)).cumsum(0) + 50
    return pd.DataFrame({"When (UTC)": times, **{f"Ünit {i} [kW/%]": values[:, i] for i in range(columns)}})


def hourly(rows=400, columns=3) -> pd.DataFrame:
    return table(pd.date_range("2021-03-01", periods=rows, freq="h"), columns)


def long_table(series=12) -> pd.DataFrame:
    """Weekly series of different length that start on different weekdays."""
    rng, parts = np.random.default_rng(1), []
    for i in range(series):
        rows = 20 + 9 * i
        ds = pd.date_range("2020-01-05", periods=rows, freq="7D") + pd.Timedelta(days=i % 3)
        parts.append(pd.DataFrame({"unique_id": f"s{i}", "ds": ds, "y": rng.normal(size=rows).cumsum()}))
    return pd.concat(parts, ignore_index=True)


def open_csv(folder: Path, content: pd.DataFrame | str | bytes, **settings) -> Csv:
    path = folder / "my data.csv"
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Csv(Csv.Config(**({"path": str(path), "context": CONTEXT, "horizon": HORIZON} | settings)))


def noted(data, *words: str) -> bool:
    return any(all(word in note for word in words) for note in data.notes)


# -- windows ---------------------------------------------------------------------------------------------------------


def expected_item(x: np.ndarray, train_end: int, origin: int, mean: float, std: float) -> dict[str, np.ndarray]:
    """One window cut by hand from a series in original units."""
    known = np.flatnonzero(np.isfinite(x[:origin]))
    z = np.interp(np.arange(origin), known, (x[known] - mean) / std)  # sees nothing from the origin on
    valid = np.arange(origin - CONTEXT, origin) >= known[0]
    past = np.where(valid, z[np.clip(np.arange(origin - CONTEXT, origin), 0, None)], 0)
    future = (x[origin : origin + HORIZON] - mean) / std
    return {
        "past": past,
        "past_valid": valid,
        "future": np.nan_to_num(future),
        "future_valid": np.isfinite(future),
    }


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("stride", [1, 5])
def test_windows_equal_slices_by_hand(missing, stride):
    frame = long_table()
    frame.loc[np.random.default_rng(2).random(len(frame)) < missing, "y"] = np.nan
    panel = to_panel(frame)
    panel, bounds_S3 = split_rows(panel, [0.6, 0.2, 0.2], HORIZON, "test")
    data = SeriesDataset(panel, bounds_S3, context=CONTEXT, horizon=HORIZON, stride=stride)
    for name, part in (("train", 0), ("val", 1), ("test", 2)):
        windows, seen = data.split(name), 0
        for s in range(len(panel.names)):
            x, (train_end, *_) = panel.series(s), bounds_S3[s]
            train = x[:train_end][np.isfinite(x[:train_end])]
            first = int(np.flatnonzero(np.isfinite(x))[0])
            stop = int(bounds_S3[s, part]) - HORIZON
            start = int(bounds_S3[s, part - 1]) if part else first + min(CONTEXT, max(1, (stop - first) // 2))
            for origin in range(max(start, first + 1), stop + 1, stride if part == 0 else 1):
                item = windows[seen]
                assert item["series"] == s
                np.testing.assert_allclose(item["mean"], train.mean(), rtol=1e-5)
                np.testing.assert_allclose(item["std"], train.std(), rtol=1e-5)
                for key, value in expected_item(x, train_end, origin, train.mean(), train.std()).items():
                    np.testing.assert_allclose(item[key], value, atol=2e-5, err_msg=f"{name} {s} {origin} {key}")
                seen += 1
        assert len(windows) == seen > 0


def test_the_past_knows_nothing_of_the_future():
    frame = hourly(columns=1)
    frame.iloc[330:341, 1] = np.nan  # a gap across the origin of the window that is looked at
    changed = frame.copy()
    changed.iloc[341:, 1] += 1000.0
    for origin in (333, 337, 340):
        pasts = []
        for version in (frame, changed):
            panel, bounds_S3 = split_rows(to_panel(version), [0.7, 0.1, 0.2], HORIZON, "test")
            windows = SeriesDataset(panel, bounds_S3, context=CONTEXT, horizon=HORIZON).split("test")
            pasts.append(windows[origin - int(bounds_S3[0, 1])]["past"])
        assert torch.equal(*pasts)
        assert (pasts[0][-(origin - 330) :] == pasts[0][-(origin - 330) - 1]).all()  # the last value seen goes on


def test_items_have_the_agreed_types_and_collate(tmp_path):
    data = open_csv(tmp_path, hourly())
    windows = data.split("val")
    loaded = list(DataLoader(windows, batch_size=7))
    whole = windows.batch(torch.arange(len(windows)))
    for key, shape, dtype in [
        ("past", (CONTEXT,), torch.float32),
        ("past_valid", (CONTEXT,), torch.bool),
        ("future", (HORIZON,), torch.float32),
        ("future_valid", (HORIZON,), torch.bool),
        ("mean", (), torch.float32),
        ("std", (), torch.float32),
        ("mase_scale", (), torch.float32),
        ("season", (), torch.int64),
        ("series", (), torch.int64),
    ]:
        assert windows[0][key].shape == shape and windows[0][key].dtype == dtype, key
        assert torch.equal(torch.cat([batch[key] for batch in loaded]), whole[key]), key
    assert torch.equal(windows[-1]["past"], windows[len(windows) - 1]["past"])
    for index in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[index]


def test_memory_is_that_of_the_series_however_many_windows():
    length, count = 300, 200
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(np.arange(count), length),
            "ds": np.tile(np.arange(length), count),
            "y": np.random.default_rng(0).normal(size=length * count),
        }
    )
    panel, bounds_S3 = split_rows(to_panel(frame), [0.7, 0.1, 0.2], HORIZON, "test")
    data = SeriesDataset(panel, bounds_S3, context=128, horizon=HORIZON)
    held = sum(value.nbytes for value in vars(data.store).values() if isinstance(value, torch.Tensor))
    assert held < 10 * length * count  # 4 bytes a value, 1 a mask, some per series
    assert len(data.split("train")) * 128 > 20 * length * count  # what copies of the windows would hold


def test_mase_scale_is_the_seasonal_error_of_the_train_part(tmp_path):
    frame = hourly(columns=1)
    frame["const"] = 7.0
    data = open_csv(tmp_path, frame, season=24)
    train = frame.iloc[:280, 1].to_numpy()
    item = data.split("test")[0]
    assert item["mase_scale"] == pytest.approx(np.abs(train[24:] - train[:-24]).mean() / train.std(), rel=1e-5)
    constant = data.split("test")[len(data.split("test")) - 1]
    assert constant["std"] == 1 and constant["mase_scale"] == 1 and not constant["past"].any()
    assert noted(data, "constant", "const")
    too_long = open_csv(tmp_path, frame, season=300)  # longer than the train part: lag 1
    scale = too_long.split("test")[0]["mase_scale"]
    assert scale == pytest.approx(np.abs(np.diff(train)).mean() / train.std(), rel=1e-5)


# -- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def generated_ett(tmp_path, monkeypatch):
    """A file in the form of ETTh1, of random walks."""
    folder = tmp_path / "time_series" / "ETT-small"
    folder.mkdir(parents=True)
    frame = table(pd.date_range("2016-07-01", periods=14500, freq="h"), 7)
    frame.columns = ["date", "HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    frame.to_csv(folder / "ETTh1.csv", index=False)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    return frame


def test_ett_split_is_the_standard_one(generated_ett):
    data = Ett(Ett.Config(context=512, horizon=96))
    sizes = {name: len(data.split(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 7 * (8640 - 512 - 96 + 1), "val": 7 * 2785, "test": 7 * 2785}
    assert data.preprocessing["season"] == 24 and data.preprocessing["columns"][-1] == "OT"
    x = generated_ett["OT"].to_numpy()
    mean, std = x[:8640].mean(), x[:8640].std()
    last = data.split("test")[-1]
    np.testing.assert_allclose(last["future"], (x[14400 - 96 : 14400] - mean) / std, atol=1e-5)
    first = data.split("test")[6 * 2785]  # looks back into val
    np.testing.assert_allclose(first["past"], (x[11520 - 512 : 11520] - mean) / std, atol=1e-5)


def test_ett_that_is_absent_or_cut_off(generated_ett, tmp_path):
    with pytest.raises(ZooError, match=r"cannot download 'time_series/ETT-small/ETTm2\.csv'.*put the file at"):
        Ett(Ett.Config(set="ETTm2"))
    path = tmp_path / "time_series" / "ETT-small" / "ETTh1.csv"
    generated_ett[:9000].to_csv(path, index=False)
    with pytest.raises(ZooError, match=r"9000 rows.*download it again"):
        Ett(Ett.Config())


@pytest.mark.parametrize(("series", "season", "columns"), [("co2", 52, 1), ("elnino", 12, 1), ("sunspots", 11, 1)])
def test_statsmodels_series(series, season, columns):
    data = Statsmodels(Statsmodels.Config(series=series))
    assert data.preprocessing["season"] == season and len(data.preprocessing["columns"]) == columns
    assert all(len(data.split(name)) > 0 for name in ("train", "val", "test"))
    train = data.split("train").batch(torch.arange(len(data.split("train"))))
    assert noted(data, "59 missing values", "never scored") == (series == "co2")
    assert train["future_valid"].all() == (series != "co2")


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "name", "season", "following"),
    [
        ("h", "h", 24, "2001-01-09 08:00"),
        ("15min", "15min", 96, "2001-01-03 02:00"),
        ("30s", "30s", 120, "2001-01-01 01:40"),
        ("D", "D", 7, "2001-07-20"),
        ("2D", "2D", 183, "2002-02-05"),
        ("B", "B", 5, "2001-10-08"),
        ("W-WED", "W", 52, "2004-11-03"),
        ("28D", "28D", 13, "2016-05-02"),
        ("MS", "M", 12, "2017-09-01"),
        ("ME", "M", 12, "2017-09-30"),
        ("QS", "Q", 4, "2051-01-01"),
        ("YE", "Y", 1, "2201-12-31"),
    ],
)
def test_frequency_and_what_comes_next(tmp_path, rule, name, season, following):
    data = open_csv(tmp_path, table(pd.date_range("2001-01-01", periods=200, freq=rule)))
    assert (data.preprocessing["frequency"], data.preprocessing["season"]) == (name, season)
    assert data.notes == [] and data.split("val")[0]["season"] == season
    context = frame_to_context(tmp_path / "my data.csv", data.preprocessing, 3)
    assert context.future_time[0][0] == pd.Timestamp(following)
    assert len(context.past_time[0]) == CONTEXT and len(context.future_time[0]) == 3


def test_a_messy_table_is_mended_and_all_of_it_said(tmp_path):
    clean = hourly()
    messy = clean.assign(label="abc", empty=np.nan)
    messy["mostly"] = ["n/v", *map(str, range(399))]
    messy = messy.drop(index=[50, 51, 52, 200])
    messy = pd.concat([messy[::-1], messy[3:5].assign(**{"Ünit 0 [kW/%]": -1.0})])
    data = open_csv(tmp_path, messy)
    assert data.preprocessing["columns"] == [*clean.columns[1:], "mostly"]
    assert noted(data, "'mostly'", "1 entries are not numbers")
    assert noted(data, "no value at all: empty") and noted(data, "no numbers: label")
    assert noted(data, "sorted") and noted(data, "2 duplicate times") and noted(data, "4 of 400 time slots")
    assert noted(data, "missing values", "Ünit 0 [kW/%] 1.0%")
    x = clean.iloc[:, 2].to_numpy(copy=True)
    x[[50, 51, 52, 200]] = np.nan
    np.testing.assert_allclose(data.preprocessing["mean"][1], np.nanmean(x[:280]), rtol=1e-5)
    assert to_panel(messy).series(0)[[3, 4]].tolist() == [-1, -1]  # of two rows with one time the last counts


def test_times_that_fit_no_grid_are_ordered_rows(tmp_path):
    gaps = np.random.default_rng(0).exponential(3600, 300)
    data = open_csv(tmp_path, table(pd.Timestamp("2020-01-01") + pd.to_timedelta(np.cumsum(gaps), unit="s")))
    assert data.preprocessing["frequency"] == "row" and noted(data, "irregular")
    assert data.split("test").batch(torch.arange(5))["future_valid"].all()
    context = frame_to_context(tmp_path / "my data.csv", data.preprocessing, 2)
    assert context.future_time[0][0] > context.past_time[0][-1]


def test_no_time_numbers_as_time_and_epochs(tmp_path):
    values = hourly().iloc[:, 1:]
    none = open_csv(tmp_path, values)
    assert none.preprocessing["frequency"] == "row" and noted(none, "no time column")
    assert list(frame_to_context(values, none.preprocessing, 2).future_time[0]) == [400, 401]
    numbers = values.assign(t=np.arange(0, 800, 2))
    assert open_csv(tmp_path, numbers).preprocessing["columns"] == list(values.columns)
    assert list(frame_to_context(numbers, none.preprocessing, 2).future_time[0]) == [800, 802]
    epochs = values.assign(timestamp=1_600_000_000 + 3600 * np.arange(400))
    assert open_csv(tmp_path, epochs).preprocessing["frequency"] == "h"
    headless = "\n".join(f"{i % 5},{i}" for i in range(100))
    assert open_csv(tmp_path, headless).preprocessing["columns"] == ["0", "1"]


def test_european_csv(tmp_path):
    days = pd.date_range("2020-01-01", periods=200)
    text = "Datum;Größe\n" + "\n".join(f"{day:%d.%m.%Y};{i % 7},5" for i, day in enumerate(days))
    data = open_csv(tmp_path, text.encode("latin-1"))
    assert data.preprocessing["columns"] == ["Größe"] and data.preprocessing["frequency"] == "D"
    assert data.preprocessing["mean"] == [pytest.approx(np.mean([i % 7 + 0.5 for i in range(140)]), rel=1e-5)]


def test_long_table_of_series_of_different_length(tmp_path):
    frame = long_table()
    data = open_csv(tmp_path, frame.sample(frac=1, random_state=0))
    assert set(data.preprocessing["columns"]) == {f"s{i}" for i in range(1, 12)}  # s0 has 20 rows, 25 are needed
    assert noted(data, "dropped 1 series shorter than 25 rows", "s0") and noted(data, "left-padded")
    assert data.preprocessing["season"] == 52
    context = frame_to_context(frame, data.preprocessing, 2)
    by_name = dict(zip(context.names, range(12), strict=True))
    for i in (0, 11):
        s, own = by_name[f"s{i}"], frame[frame["unique_id"] == f"s{i}"]
        assert context.past_valid[s].sum() == min(CONTEXT, len(own)) == len(context.past_time[s])
        assert context.future_time[s][0] == own["ds"].iloc[-1] + pd.Timedelta(days=7)
        back = context.past[s] * context.std[s] + context.mean[s]
        np.testing.assert_allclose(back[context.past_valid[s]], own["y"].to_numpy()[-CONTEXT:], atol=1e-5)
    assert any("own history" in note and "s0" in note for note in context.notes)


def test_columns_that_start_late(tmp_path):
    rows = np.arange(400)
    frame = hourly().assign(late=np.where(rows < 100, np.nan, rows), too_late=np.where(rows < 350, np.nan, rows))
    data = open_csv(tmp_path, frame)
    assert "late" in data.preprocessing["columns"] and noted(data, "no value in the train part: too_late")
    train = data.split("train")
    late = train.batch(torch.arange(len(train)))
    late = {key: value[late["series"] == 3] for key, value in late.items()}
    assert late["past_valid"].any(dim=1).all() and late["future_valid"].all()


def test_parquet_is_read_too(tmp_path):
    pytest.importorskip("pyarrow")
    frame = hourly().set_index("When (UTC)")
    frame.to_parquet(tmp_path / "x.parquet")
    data = Csv(Csv.Config(path=str(tmp_path / "x.parquet"), context=CONTEXT, horizon=HORIZON))
    assert data.preprocessing["frequency"] == "h" and len(data.preprocessing["columns"]) == 3


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"\x89PNG\r\n\0\0\0", {}, "is binary, not a CSV; export"),
        (b"", {}, "is empty"),
        (b"a,b\n1,2\n1,2,3,4,5\n", {}, "cannot be read as a table.*export"),
        (pd.DataFrame({"a": ["x"] * 50, "b": ["y"] * 50}), {}, r"no numeric column with values \(found: a, b\)"),
        (hourly().iloc[:, :1], {}, "no numeric column"),
        (hourly(20), {}, "20 rows are too few for horizon=8, which needs 25; lower horizon to at most 6"),
        (hourly(3), {}, "3 rows are too few.*give a longer file"),
        (hourly().assign(gone=np.nan), {"columns": ["gone"]}, "column 'gone' holds no value at all; leave it out"),
        (hourly().assign(text="x"), {"columns": ["text"]}, "column 'text' holds no numbers"),
        (hourly(), {"columns": ["Ünit 9 [kW/%]"]}, r"no column 'Ünit 9 \[kW/%\]'; did you mean"),
        (hourly(), {"time": "when"}, "no time column 'when'"),
        (hourly().assign(text="x"), {"time": "text"}, "cannot be read: 'x' is no date"),
        (long_table(), {"columns": ["s99"]}, "no series 's99' in unique_id"),
        (long_table().assign(y="x"), {}, "column 'y' is not numeric"),
        (hourly(), {"split": [0.5, 0.5, 0.5]}, "three positive fractions that sum to 1"),
        (hourly(), {"context": 0}, "context=0 must be at least 1"),
        (hourly(), {"horizon": 0}, "horizon=0 must be at least 1"),
    ],
)
def test_errors_name_the_fault_and_the_remedy(tmp_path, content, settings, message):
    with pytest.raises(ZooError, match=message) as caught:
        open_csv(tmp_path, content, **settings)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(ZooError, match="does not exist; check the path"):
        Csv(Csv.Config(path=str(tmp_path / "none.csv")))
    with pytest.raises(ZooError, match="is a folder"):
        Csv(Csv.Config(path=str(tmp_path)))


def test_a_known_series_is_standardised_by_the_train_part(tmp_path):
    frame = hourly()
    data = open_csv(tmp_path, frame)
    renamed = frame.rename(columns={"Ünit 1 [kW/%]": "other"})
    context = frame_to_context(renamed[300:], data.preprocessing, HORIZON)
    assert context.mean[0] == pytest.approx(data.preprocessing["mean"][0])
    assert context.mean[1] == pytest.approx(renamed["other"][300:].mean(), rel=1e-5)
    assert any("own history" in note and "other" in note for note in context.notes)
    daily = frame_to_context(table(pd.date_range("2020-01-01", periods=60)), data.preprocessing, HORIZON)
    assert daily.season.tolist() == [7, 7, 7] and any("frequency is D" in note for note in daily.notes)


def test_a_gap_in_the_context_has_its_times_worked_out(tmp_path):
    frame = table(pd.date_range("2001-01-31", periods=60, freq="ME")).drop(index=[50, 51])
    context = frame_to_context(frame, open_csv(tmp_path, frame).preprocessing, 1)
    assert list(context.past_time[0]) == list(pd.date_range("2001-01-31", periods=60, freq="ME")[-CONTEXT:])
    assert context.past_valid.all()


def test_scored_windows_may_lie_apart(tmp_path):
    every, some = (open_csv(tmp_path, hourly(), score_every=n).split("test") for n in (1, HORIZON))
    assert len(every) == 3 * (80 - HORIZON + 1) and len(some) == 3 * (80 // HORIZON)
    assert torch.equal(some[1]["future"], every[HORIZON]["future"])
    assert len(open_csv(tmp_path, hourly(), score_every=HORIZON).split("train")) == len(
        open_csv(tmp_path, hourly()).split("train")
    )

"""Tables as spreadsheets and other programs write them: one panel of all, or a line that says what to do."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import zoo
from zoo.spec import ZooError
from zoo.train.recipe import read_recipe
from zoo.train.run import train
from zoo_time_series.data.frame import read_table, to_panel

ROWS = 130
WEEKS = pd.date_range("2019-01-07", periods=ROWS, freq="7D")
VALUES = np.random.default_rng(0).uniform(900, 5000, (ROWS, 3)).round(2)
NAMES = ["Umsatz, netto (EUR)", "Größe [m³]", "7"]


def weekly(form: str = "%Y-%m-%d") -> pd.DataFrame:
    return pd.DataFrame({"Woche ab": WEEKS.strftime(form), **dict(zip(NAMES, VALUES.T, strict=True))})


def grouped(value: float, mark: str, point: str) -> str:
    """1234.5 as ``1,234.50``, with these two marks."""
    return f"{value:,.2f}".replace(",", "\0").replace(".", point).replace("\0", mark)


def read(folder: Path, text: str, encoding: str = "utf-8", **settings):
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return to_panel(read_table(path), **settings)


@pytest.mark.parametrize(
    ("options", "encoding"),
    [
        ({}, "utf-8"),
        ({"sep": ";"}, "utf-8"),  # the header holds a comma, the numbers points
        ({"sep": ";", "decimal": ","}, "utf-8-sig"),
        ({"sep": ";", "decimal": ","}, "cp1252"),
        ({"sep": "\t", "decimal": ","}, "utf-8"),
        ({"sep": "|"}, "utf-8"),
    ],
)
def test_separators_decimal_marks_and_encodings(tmp_path, options, encoding):
    frame = weekly().rename(columns={"7": "Preis €"})  # which Windows-1252 has, and Latin-1 has not
    panel = read(tmp_path, frame.to_csv(index=False, **options), encoding)
    assert panel.names == [*NAMES[:2], "Preis €"] and panel.frequency.name == "W" and panel.notes == []
    np.testing.assert_allclose(panel.values_N.reshape(3, ROWS), VALUES.T)


def test_a_comma_between_semicolons_is_no_mark_of_thousands(tmp_path):
    frame = weekly().assign(**{name: VALUES[:, 0] / 1000 for name in NAMES})  # 1,234: alone it could be either
    panel = read(tmp_path, frame.to_csv(index=False, sep=";", decimal=",", float_format="%.3f"))
    np.testing.assert_allclose(panel.series(0), VALUES[:, 0] / 1000, atol=5.1e-4)
    head, _, rows = frame.to_csv(index=False, sep=";", decimal=",", float_format="%.3f").partition("\n")
    panel = read(tmp_path, f"{head}\n;kEUR;m³;\n{rows}")  # a line of units, which makes texts of the numbers
    np.testing.assert_allclose(panel.series(1), VALUES[:, 0] / 1000, atol=5.1e-4)
    assert panel.frequency.name == "W" and any("unreadable time" in note for note in panel.notes)


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%G-W%V", "%GW%V", "%Y%m%d", "%d %b %Y", "%s"])
def test_weeks_in_the_forms_that_people_write(tmp_path, form):
    frame = weekly(form) if form != "%s" else weekly().assign(**{"Woche ab": WEEKS.astype("int64")})
    panel = read(tmp_path, frame.sample(frac=1, random_state=0).to_csv(index=False))
    assert panel.frequency.name == "W" and panel.names == NAMES
    assert list(panel.times) == list(WEEKS)
    np.testing.assert_allclose(panel.values_N.reshape(3, ROWS), VALUES.T)


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y-%m", "%YM%m", "%m/%Y", "%b %Y"])
def test_months_of_which_every_date_could_be_read_the_other_way_round(tmp_path, form):
    months = pd.date_range("2010-01-01", periods=ROWS, freq="MS")
    panel = read(tmp_path, weekly().assign(**{"Woche ab": months.strftime(form)}).to_csv(index=False))
    assert panel.frequency.name == "M" and list(panel.times) == list(months)


def test_row_numbers_and_years_are_no_series(tmp_path):
    saved = read(tmp_path, weekly().to_csv())  # as pandas writes it: row numbers before all
    assert saved.names == NAMES and saved.frequency.name == "W" and "row numbers" in saved.notes[0]
    years = read(tmp_path, weekly().assign(**{"Woche ab": np.arange(1890, 1890 + ROWS)}).to_csv(index=False))
    assert years.names == NAMES and years.frequency.name == "step" and years.frequency.after(2019, 1) == [2020]
    counts = weekly().drop(columns="Woche ab").assign(sold=np.arange(ROWS) % 9)  # whole numbers alone are no time
    assert read(tmp_path, counts[["sold", *NAMES]].to_csv(index=False)).names == ["sold", *NAMES]


def test_columns_of_one_name_are_told_apart(tmp_path):
    frame = weekly()
    frame.columns = ["t", "a", "a ", "b"]
    panel = read(tmp_path, frame.to_csv(index=False))
    assert panel.names == ["a", "a.1", "b"] and "a.1" in panel.notes[0]
    frame.columns = ["t", "a", "a", "a.1"]
    assert to_panel(frame).names == ["a", "a.1", "a.1.1"]


@pytest.mark.parametrize(("mark", "point"), [(",", "."), (".", ","), ("\u00a0", ".")])
def test_marks_of_thousands_currencies_and_percents(tmp_path, mark, point):
    frame = weekly()
    for name, unit in zip(NAMES, ("", " €", "%"), strict=True):
        frame[name] = [grouped(value, mark, point) + unit for value in frame[name]]
    frame.loc[:29, NAMES[1]] = "-"
    panel = read(tmp_path, frame.to_csv(index=False, sep=";"))
    wanted = VALUES.T.copy()
    wanted[1, :30] = np.nan
    np.testing.assert_allclose(panel.values_N.reshape(3, ROWS), wanted)


def test_periods_and_indexes_of_frames():
    frame = weekly().drop(columns="Woche ab")
    months = frame.set_axis(pd.period_range("2010-01", periods=ROWS, freq="M"))
    assert to_panel(months).frequency.name == "M"
    zoned = frame.set_axis(WEEKS.tz_localize("Europe/Berlin"))
    assert to_panel(zoned).frequency.name == "W" and list(to_panel(zoned).times) == list(WEEKS)


def long(names: tuple[str, str, str]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({names[0]: 7 + i, names[1]: WEEKS[i:], names[2]: VALUES[i:, i], "price": 1.5, "region": "N"})
        for i in range(3)
    ]
    return pd.concat(parts).sample(frac=1, random_state=0)


def test_long_tables_by_other_names():
    plain = to_panel(long(("unique_id", "ds", "y")))
    gluonts = to_panel(long(("item_id", "timestamp", "target")))
    other_time = to_panel(long(("unique_id", "week", "y")))  # found, as in a wide table
    for panel in (gluonts, other_time):
        assert sorted(panel.names) == sorted(plain.names) == ["7", "8", "9"] and panel.frequency.name == "W"
        np.testing.assert_array_equal(panel.values_N, plain.values_N)
    with pytest.raises(ZooError, match=r"of 387 rows repeat a time of 'date'.*unique_id, ds and y"):
        to_panel(long(("shop", "date", "sales")))


def test_the_model_follows_the_data_unless_told_otherwise():
    settings = ["data=csv", "data.path=x.csv", "data.context=60", "data.horizon=10"]
    model = read_recipe("time_series/mole", settings)["model"]
    assert (model["context"], model["horizon"]) == (60, 10)
    model = read_recipe("time_series/seg_moe_etth1", [*settings, "model.context=48"])["model"]
    assert (model["context"], model["horizon"]) == (48, 10)
    assert "horizon" not in read_recipe("time_series/time_moe_tiny", settings)["model"]  # it has no such setting


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    weekly().to_csv(folder / "table.csv", index=False)
    settings = ["data=csv", f"data.path={folder / 'table.csv'}", "data.context=12", "data.horizon=4"]
    return zoo.load(train(read_recipe("time_series/mole", settings), folder / "run", fast_dev_run=True, quiet=True))


def test_what_a_forecaster_takes(forecaster, tmp_path):
    weekly().to_csv(tmp_path / "table.csv", index=False)
    from_file = forecaster.predict(str(tmp_path / "table.csv"), 3)
    spaced = weekly().rename(columns={"7": " 7"}).set_index("Woche ab")
    pd.testing.assert_frame_equal(pd.DataFrame(forecaster.predict(spaced, 3)), pd.DataFrame(from_file))
    one = forecaster.predict(spaced[" 7"], 3)
    assert one["y"].tolist() == pytest.approx(from_file["y"][-3:].tolist()) and set(one["unique_id"]) == {"7"}
    pd.testing.assert_frame_equal(forecaster.predict(spaced, 3, columns=7), pd.DataFrame(one))
    for given, message in (
        ([1.0, 2.0], "input must be a file or a pandas data frame, not list"),
        (spaced[:1], "one row a series does not say how far apart"),
        (spaced[:0], "no numeric column with values"),
    ):
        with pytest.raises(ZooError, match=message):
            forecaster.predict(given, 3)


def test_a_model_without_its_covariates_is_refused_before_it_is_trained(tmp_path):
    weekly().assign(price=VALUES[:, 0]).to_csv(tmp_path / "table.csv", index=False)
    settings = ["data=csv", f"data.path={tmp_path / 'table.csv'}", "data.context=32", "data.horizon=4"]
    for more, remedy in (([], r"give none; set data\.calendar=true"), (["data.known=[price]"], r"model\.covariates=1")):
        with pytest.raises(ZooError, match=remedy):
            train(read_recipe("time_series/mohets_etth1", [*settings, *more]), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

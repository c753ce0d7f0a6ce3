"""Files of the user's own, as people write them: separators, decimal commas, numbers in texts, times in many forms.

Imports pandas: import this module only where a table is read.
"""

from __future__ import annotations

import csv
import io
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from zoo.spec import ZooError

TIME_NAMES = ("ds", "date", "datetime", "time", "timestamp", "year", "month", "day", "index", "t", "step")
MISSING = ["-", "--", ".", "?"]  # beside what pandas takes for missing
THOUSANDS = {
    r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?": (",", "."),
    r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?": (".", ","),
}


# -- files -----------------------------------------------------------------------------------------------------------


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV (comma, semicolon, tab or bar; UTF-8 or Windows-1252) or parquet file. Raises `ZooError` for anything
    else."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ZooError(f"data file '{path}' {'is a folder' if file.is_dir() else 'does not exist'}; check the path")
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(file)
            return frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
        with file.open("rb") as stream:
            head = stream.read(65536)
        if b"\0" in head:
            raise ZooError(f"data file '{path}' is binary, not a CSV; export the table as CSV or parquet")
        return _read_csv(file, head)
    except ImportError as error:
        raise ZooError(f"reading '{path}' needs a parquet engine; run: pip install pyarrow") from error
    except pd.errors.EmptyDataError:
        raise ZooError(f"data file '{path}' is empty; give a table with a header and numeric columns") from None
    except (ValueError, OSError) as error:  # ParserError and pyarrow's errors are ValueErrors
        first = str(error).strip().partition("\n")[0]
        raise ZooError(f"data file '{path}' cannot be read as a table: {first}; export it as CSV or parquet") from error


def _read_csv(file: Path, head: bytes) -> pd.DataFrame:
    sep, rows = _cells(head)
    cells = pd.Series([cell.strip() for row in rows[1:] for cell in row], dtype="str")
    commas, points = (int(cells.str.fullmatch(rf"[+-]?\d+{mark}\d+").sum()) for mark in (",", r"\."))
    options: dict[str, Any] = {"sep": sep, "decimal": "," if commas > points else ".", "low_memory": False}
    options["na_values"] = MISSING
    if rows and all(_is_number(name) for name in rows[0]):
        options["header"] = None  # the first row holds values
    for encoding in ("utf-8-sig", "cp1252", "latin-1"):
        try:
            frame = pd.read_csv(file, encoding=encoding, **options)
            break
        except UnicodeDecodeError:
            if encoding == "latin-1":  # which knows every byte
                raise
    if options["decimal"] == ",":  # pandas leaves a column as it is in which a single cell is no number
        for name in frame.columns[[pd.api.types.is_string_dtype(kind) for kind in frame.dtypes]]:
            frame[name] = _with_point(frame[name])
    return frame


def _with_point(column: pd.Series) -> pd.Series:
    """Texts with every number such as ``1.234,5`` written ``1234.5``."""
    number = column.str.fullmatch(r"\s*[+-]?[\d.]*\d,\d+\s*").fillna(False).astype(bool)
    return column.mask(number, column.str.replace(".", "").str.replace(",", "."))


def _cells(head: bytes) -> tuple[str, list[list[str]]]:
    """The separator and the first rows: the one that cuts most cells, and as many from each row."""
    text = head.decode("utf-8-sig", errors="replace")
    found: dict[str, list[list[str]]] = {}
    for sep in ",;\t|":
        rows = [row for row in itertools.islice(csv.reader(io.StringIO(text), delimiter=sep), 100) if row]
        found[sep] = rows[:-1] if len(rows) > 1 and len(head) == 65536 else rows  # the last one may be cut off

    def cuts(sep: str) -> tuple[bool, int]:
        widths = [len(row) for row in found[sep]]
        return len(widths) > 0 and min(widths) == max(widths) > 1, widths[0] if widths else 0

    best = max(found, key=cuts)
    return best, found[best]


def _is_number(text: str) -> bool:
    try:
        float(text.strip().replace(",", "."))
    except ValueError:
        return False
    return True


def distinct(names: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Column names as texts without space around them, the second ``a`` called ``a.1`` as pandas does, and those of
    which there were two."""
    done: list[str] = []
    again: list[str] = []
    for name in (str(name).strip() for name in names):
        free = (new for k in itertools.count() if (new := f"{name}.{k}" if k else name) not in done)
        done.append(next(free))
        again += [done[-1]] if done[-1] != name else []
    return done, again


# -- numbers ---------------------------------------------------------------------------------------------------------


def numeric(column: pd.Series) -> tuple[np.ndarray, int] | None:
    """The column as float64 with NaN where missing or infinite, and how many texts became missing; None if not numeric.

    A column of text counts as numeric when at least nine in ten of its entries are numbers, ``1,234.5`` and
    ``1.234,5`` among them.
    """
    if pd.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, (pd.CategoricalDtype, pd.PeriodDtype)):
        return None
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    there = column.notna().to_numpy()
    if np.isnan(values[there]).mean() > 0.1 if there.any() else False:
        values = _with_thousands(column)
    lost = int((np.isnan(values) & there).sum())
    if lost > 0.1 * there.sum():
        return None
    return np.where(np.isfinite(values), values, np.nan), lost


def _with_thousands(column: pd.Series) -> np.ndarray:
    """Numbers from texts with marks of thousands, a currency or a percent sign, the form that most of them have."""
    texts = column.astype("str").str.replace(r"(?<=\d)\s(?=\d{3})", "", regex=True)
    texts = texts.str.strip("%\u20ac$\u00a3 \u00a0\u202f")
    best = max(THOUSANDS, key=lambda form: texts.str.fullmatch(form).sum())
    mark, point = THOUSANDS[best]
    plain = texts.where(texts.str.fullmatch(best)).str.replace(mark, "", regex=False).str.replace(point, ".")
    return pd.to_numeric(plain, errors="coerce").to_numpy(np.float64, na_value=np.nan)


# -- times -----------------------------------------------------------------------------------------------------------


def parse_times(column: pd.Series) -> pd.Series:
    """Times as datetimes without a zone, or as plain numbers; missing where they cannot be read.

    Numbers are dates when they look like 20240131, and parts of the epoch (s, ms, us, ns) when they are that large.
    Texts may be ``2024-W05`` (its Monday), ``2024M01``, or anything that pandas reads. ``01.02.2024`` is the first of
    February; of ``01/02/2024`` both readings are tried, and the one counts that reads more, else that is more even.
    """
    if isinstance(column.dtype, pd.PeriodDtype):
        return column.dt.to_timestamp()
    if pd.api.types.is_numeric_dtype(column):
        low, high = column.min(), column.max()
        if low >= 19000101 and high <= 21001231:
            return pd.to_datetime(column.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
        unit = next((u for u, least in (("ns", 1e17), ("us", 1e14), ("ms", 1e11), ("s", 1e8)) if low >= least), None)
        whole = column.notna().all() and (column % 1 == 0).all()
        return pd.to_datetime(column, unit=unit) if unit and high < 1e19 else column.astype(int if whole else float)
    if pd.api.types.is_datetime64_any_dtype(column):
        times = column
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas warns of formats it tries row by row, which is what is wanted
            try:
                times = _from_texts(column)
            except ValueError:  # offsets from UTC that change, as with daylight saving
                times = pd.to_datetime(column, errors="coerce", utc=True)
    return times.dt.tz_localize(None) if getattr(times.dt, "tz", None) is not None else times


def _from_texts(column: pd.Series) -> pd.Series:
    texts = column.astype("str").str.strip()
    sample = texts.dropna().head(200)

    def most(form: str) -> bool:
        return len(sample) > 0 and bool(sample.str.match(form).mean() > 0.5)

    if most(r"\d{4}-?W\d{1,2}$"):
        monday = texts.str.replace("-", "").str.replace("W", "-W") + "-1"
        return pd.to_datetime(monday, format="%G-W%V-%u", errors="coerce")
    if most(r"\d{4}M\d{1,2}$"):
        return pd.to_datetime(texts, format="%YM%m", errors="coerce")
    if most(r"\d{1,2}\.\d{1,2}\.\d{2}"):
        return pd.to_datetime(texts, errors="coerce", dayfirst=True)
    times = pd.to_datetime(column, errors="coerce")
    if times.isna().sum() > column.isna().sum() or most(r"\d{1,2}[/-]\d{1,2}[/-]\d{2}"):
        other = pd.to_datetime(column, errors="coerce", dayfirst=True)
        times = min(times, other, key=lambda read: (int(read.isna().sum()), _unevenness(read)))
    return times


def _unevenness(times: pd.Series) -> float:
    """The longest step between neighbouring times over the middle one."""
    steps = np.diff(np.unique(times.dropna().to_numpy())).astype(float)
    return float(steps.max() / np.median(steps)) if len(steps) else 1.0


def time_column(frame: pd.DataFrame) -> str | None:
    """The first column that is or reads like dates; where there is none, the first that is named like a time or stands
    at the front, and counts."""
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pd.PeriodDtype):
            return str(name)
        named = str(name).lower() in TIME_NAMES
        if pd.api.types.is_bool_dtype(column):
            continue
        if pd.api.types.is_numeric_dtype(column):
            if (named or name == frame.columns[0]) and column.is_unique and _days(column):
                return str(name)
            continue
        sample = column.dropna().head(200)
        if len(sample) and numeric(sample) is None and parse_times(sample).notna().mean() > (0.5 if named else 0.9):
            return str(name)
    return next((str(name) for name in frame.columns if _counts(frame, name)), None)


def _days(column: pd.Series) -> bool:
    """Whether numbers are days such as 20240131."""
    whole = len(column) > 1 and column.notna().all() and (column % 1 == 0).all()
    return bool(whole and column.min() >= 19000101 and column.max() <= 21001231 and parse_times(column).notna().all())


def _counts(frame: pd.DataFrame, name: Any) -> bool:
    """Whether a column of whole numbers says which row is which: one that is named like a time, or the first one, if
    nearly all of its steps are equal."""
    column = frame[name]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or not column.is_unique:
        return False
    if column.isna().any() or (column % 1 != 0).any():
        return False
    if str(name).lower() in TIME_NAMES or unnamed(name):
        return True
    steps = np.diff(np.sort(column.to_numpy()))
    return name == frame.columns[0] and len(steps) > 2 and bool((steps == np.median(steps)).mean() > 0.9)


def unnamed(name: Any) -> bool:
    """Whether pandas has made up this name, as for the row numbers that its ``to_csv`` writes."""
    return str(name).startswith("Unnamed: ")

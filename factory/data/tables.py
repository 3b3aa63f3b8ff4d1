"""Tables in files: Parquet, CSV and Arrow/Feather, on disk or behind any fsspec URL.

Everything that can be wrong with a file is told here, in one sentence each,
before anything looks at its columns.  Arrow reads all formats, since it gives
the same doubles and the same text whatever the format.
"""

from __future__ import annotations

import gzip
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from factory.data.columns import MISSING_TEXT, as_text, infer_type
from factory.errors import Detail, InvalidData, StorageFault, listing, suggest
from factory.spec import ColumnType

_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".feather": "arrow",
    ".arrow": "arrow",
    ".ipc": "arrow",
}
_MAGIC = {b"PAR1": "parquet", b"ARRO": "arrow", b"FEA1": "arrow"}
FORMAT_NAMES = {"parquet": "Parquet", "csv": "CSV", "arrow": "Arrow/Feather"}
"""Of the formats, as people call them."""
_SEPARATORS = (",", ";", "\t", "|")
_HEAD = 65536
_INDEX_COLUMN = re.compile(r"__index_level_\d+__")
"""Name under which pandas stores an unnamed row index."""


def read_table(
    path: str, *, max_rows: int, columns: Collection[str] | None = None, text_columns: Collection[str] = ()
) -> pd.DataFrame:
    """Read a table.

    Args:
        path: File path or fsspec URL of a Parquet, CSV (any of ``, ; tab |``, also gzipped) or Arrow/Feather file.
        max_rows: Most rows that are accepted.
        columns: Columns to read; all if None.
        text_columns: Columns that hold labels rather than numbers: in a CSV their leading zeros are kept (``007``).

    Returns:
        The columns as read, with a RangeIndex, (n_rows, n_columns).

    Raises:
        InvalidData: the file is absent, empty, has no rows, cannot be read in its format, has duplicate or unnamed
            columns, lacks one of ``columns``, or has more than ``max_rows`` rows.
    """
    import pyarrow as pa

    data, head = _open(path)
    with data:
        kind = kind_of(path, head)
        try:
            table = _read(data, kind, text_columns, path=path, max_rows=max_rows)
        except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
            raise InvalidData(
                f"{path!r} cannot be read as {FORMAT_NAMES[kind]}: {str(error).strip()[:300]}",
                hint="Check that the file is complete and that its suffix names its format.",
                details=[Detail("path", f"not a readable {FORMAT_NAMES[kind]} file")],
            ) from error
    table = without_index(table)
    check_names(table.column_names, path)
    if columns is not None:
        absent = [c for c in columns if c not in table.column_names]
        if absent:
            details = [Detail(c, f"There is no such column.{suggest(c, table.column_names)}") for c in absent]
            raise InvalidData(
                f"{path!r} lacks the column{'s' if len(absent) > 1 else ''} {listing(absent)}.",
                hint=f"Its columns: {listing(table.column_names)}.",
                details=details,
            )
        table = table.select(list(columns))
    if table.num_rows == 0:
        raise InvalidData(
            f"{path!r} has a header but no rows.",
            hint="Give a table with at least 20 rows.",
            details=[Detail("path", "no rows")],
        )
    _check_rows(table.num_rows, path, max_rows=max_rows)
    return to_frame(table)


def _check_rows(n_rows: int, path: str, *, max_rows: int) -> None:
    """Refuse a table of more rows than are read."""
    if n_rows > max_rows:
        raise InvalidData(
            f"{path!r} has {n_rows:,} rows; at most {max_rows:,} are read.",
            hint="Give a sample, or raise FACTORY_MAX_ROWS if the machine has the memory.",
            details=[Detail("path", "too many rows")],
        )


def check_target(path: str | Path) -> str:
    """Return the format that :func:`write_table` would write a file in; writes nothing.

    Raises:
        InvalidData: the suffix names no known format, or the folder does not exist.
    """
    target = Path(path)
    kind = suffix_kind(target.name)
    if kind is None or target.suffix == ".gz":
        raise InvalidData(
            f"{str(path)!r} has no suffix that names a format.",
            hint=f"Allowed: {listing(_SUFFIXES)}.",
            details=[Detail("path", f"{target.suffix!r} is not a known suffix")],
        )
    if not target.parent.is_dir():
        raise InvalidData(
            f"{str(path)!r} cannot be written: there is no folder {str(target.parent)!r}.",
            hint="Create the folder, or name a file in one that exists.",
            details=[Detail("path", f"{str(target.parent)!r} is not a folder")],
        )
    return kind


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a frame without its index, in the format that the path's suffix names; datetimes in microseconds.

    Raises:
        InvalidData: the suffix names no known format, or the folder does not exist.
        StorageFault: the file cannot be written.
    """
    from pyarrow import csv, feather, parquet

    target = Path(path)
    kind = check_target(target)
    table = _arrow(frame)
    try:
        if kind == "parquet":
            parquet.write_table(table, target, coerce_timestamps="us", allow_truncated_timestamps=True)
        elif kind == "csv":
            csv.write_csv(table, target, csv.WriteOptions(delimiter="\t" if target.suffix == ".tsv" else ","))
        else:
            feather.write_feather(table, target)
    except OSError as error:
        raise StorageFault(
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            hint="Free some space or name a folder that exists and may be written.",
            details=[Detail("path", str(error))],
        ) from error


def _arrow(frame: pd.DataFrame) -> Any:
    """Return a frame as a pyarrow table; intervals, periods and columns of several types become text, as in a CSV."""
    import pyarrow as pa

    plain = _each(frame, _plain)
    try:
        return pa.Table.from_pandas(plain, preserve_index=False)
    except _refusals():
        return pa.Table.from_pandas(_each(plain, _of_one_type), preserve_index=False)


def _each(frame: pd.DataFrame, act: Callable[[pd.Series], pd.Series]) -> pd.DataFrame:
    return pd.DataFrame({name: act(frame[name]) for name in frame}, index=frame.index, columns=frame.columns)


def _refusals() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for a column of several types."""
    import pyarrow as pa

    return (pa.ArrowException, OverflowError, TypeError, ValueError)


def _plain(series: pd.Series) -> pd.Series:
    """Return a column without pandas' own types that no file knows."""
    kind = series.dtype.categories.dtype if isinstance(series.dtype, pd.CategoricalDtype) else series.dtype
    if isinstance(kind, pd.SparseDtype):
        return pd.Series(np.asarray(series), index=series.index)
    return _texts(series) if isinstance(kind, pd.IntervalDtype | pd.PeriodDtype) else series


def _of_one_type(series: pd.Series) -> pd.Series:
    import pyarrow as pa

    try:
        pa.array(series, from_pandas=True)
    except _refusals():
        return _texts(series)
    return series


def _texts(series: pd.Series) -> pd.Series:
    return pd.Series(as_text(series.to_numpy(dtype=object)), index=series.index, dtype=object)


def _open(path: str) -> tuple[BinaryIO, bytes]:
    """Open a file and return it with its first bytes, or say why that is impossible."""
    try:
        if "://" in path:
            import fsspec

            data: BinaryIO = fsspec.open(path, "rb").open()
        else:
            data = Path(path).expanduser().open("rb")
        head = data.read(_HEAD)
        data.seek(0)
    except (OSError, ValueError, ImportError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be opened: {error}"
        raise InvalidData(
            f"The file {path!r} {what}.",
            hint="Check the path, and that this user may read it.",
            details=[Detail("path", what)],
        ) from error
    if not head.strip():
        data.close()
        raise InvalidData(
            f"The file {path!r} is empty.",
            hint="Give a Parquet, CSV or Arrow/Feather file with a header and rows.",
            details=[Detail("path", "empty file")],
        )
    return data, head


def suffix_kind(name: str) -> str | None:
    """Return the format that a file's name says, None where it says none."""
    suffixes = [s for s in PurePosixPath(name.lower()).suffixes if s != ".gz"]
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def kind_of(path: str, head: bytes) -> str:
    """Return the format; the content must agree with the suffix, and decides where there is none."""
    named = suffix_kind(path.split("?")[0])
    found = _MAGIC.get(head[:4])
    gzipped = head[:2] == b"\x1f\x8b"
    if found is None and not gzipped and b"\0" not in head and not head.lstrip().startswith((b"<", b"{", b"PK")):
        found = "csv"
    if gzipped and named == "csv":
        return "csv"
    if found is None or (named is not None and found != named) or (named is None and PurePosixPath(path).suffix):
        content = f"looks like {FORMAT_NAMES[found]}" if found else "is none of the known formats"
        name = f"is named as {FORMAT_NAMES[named]} but" if named else "has an unknown suffix and"
        raise InvalidData(
            f"{path!r} {name} {content}.",
            hint=f"Give Parquet, CSV or Arrow/Feather under its own suffix: {listing(_SUFFIXES)}.",
            details=[Detail("path", f"wrong format: the content {content}")],
        )
    return found


def _read(data: BinaryIO, kind: str, text_columns: Collection[str], *, path: str, max_rows: int) -> Any:
    from pyarrow import feather, parquet

    if kind == "parquet":
        file = parquet.ParquetFile(data)
        _check_rows(file.metadata.num_rows, path, max_rows=max_rows)  # before they take their memory
        return file.read()
    if kind == "arrow":
        table = feather.read_table(data)
        table.validate(full=True)  # a damaged file would else end the process where its values are read
        return table
    return _read_csv(data, text_columns)


def _read_csv(data: BinaryIO, text_columns: Collection[str]) -> Any:
    raw = data.read()
    return csv_table(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw, text_columns)


def csv_table(raw: bytes, text_columns: Collection[str]) -> Any:
    """Return a CSV as a pyarrow table, read as UTF-8, or as Latin-1 where it is not that.

    Args:
        raw: The header and rows.
        text_columns: As of :func:`read_table`.

    Raises:
        pyarrow.ArrowException: it cannot be read.
    """
    import pyarrow as pa

    try:
        table = parse_csv(raw, "utf8", text_columns)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        return parse_csv(raw, "latin-1", text_columns)
    if any(pa.types.is_binary(t) for t in table.schema.types):
        return parse_csv(raw, "latin-1", text_columns)
    return table


def delimiter_of(head: bytes) -> str:
    """Return what separates a CSV's columns: what the first line has most of."""
    line = head[:_HEAD].split(b"\n", 1)[0].decode("latin-1")
    return max(_SEPARATORS, key=line.count)


def parse_csv(raw: bytes, encoding: str, text_columns: Collection[str]) -> Any:
    """Return a CSV as a pyarrow table; of ``text_columns`` numbers with leading zeros stay as they are written."""
    import pyarrow as pa
    from pyarrow import compute, csv

    parsing = csv.ParseOptions(delimiter=delimiter_of(raw), newlines_in_values=True)
    convert: dict[str, Any] = {"null_values": sorted(MISSING_TEXT), "strings_can_be_null": True}

    def parse(**options: Any) -> Any:
        return csv.read_csv(
            io.BytesIO(raw),
            read_options=csv.ReadOptions(encoding=encoding),
            parse_options=parsing,
            convert_options=csv.ConvertOptions(**convert, **options),
        )

    table = parse()
    types = {n: t for n, t in zip(table.column_names, table.schema.types, strict=True) if n in set(text_columns)}
    whole = [name for name, kind in types.items() if pa.types.is_integer(kind)]
    if whole:
        written = parse(include_columns=whole, column_types=dict.fromkeys(whole, pa.string()))
        for name in whole:
            zeros = compute.match_substring_regex(written[name], "^[+-]?0[0-9]")
            if compute.any(zeros).as_py():
                table = table.set_column(table.column_names.index(name), name, written[name])
    return table


def without_index(table: Any) -> Any:
    """Drop what is only a stored row index: pandas' own column, or a CSV's first column without a name."""
    drop = [i for i, n in enumerate(table.column_names) if _INDEX_COLUMN.fullmatch(n) or (n == "" and i == 0)]
    if len(drop) == table.num_columns:
        return table
    for i in reversed(drop):
        table = table.remove_column(i)
    return table


def check_names(names: Sequence[str], path: str) -> None:
    """Refuse columns that cannot be told apart by their names.

    Raises:
        InvalidData: two have the same name, or one has none; all of them are told.
    """
    details = [Detail(n, f"{k} columns have this name") for n, k in Counter(names).items() if k > 1 and n]
    details += [Detail(f"column {i + 1}", "The column has no name") for i, n in enumerate(names) if not n.strip()]
    if details:
        raise InvalidData(
            f"The columns of {path!r} cannot be told apart: " + "; ".join(f"{d.field}: {d.message}" for d in details),
            hint="Give every column a name of its own.",
            details=details,
        )


def to_frame(table: Any) -> pd.DataFrame:
    """Return a plain frame: no dictionaries, decimals, dates, times or zones, which pandas would keep as objects.

    Numbers that pandas had as categories are categories again; a Parquet file tells so beside its columns only.
    """
    import pyarrow as pa
    from pyarrow import compute

    columns: dict[str, Any] = {}
    nominal = _categories_of_pandas(table)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            nominal |= set() if column.type.ordered else {name}
            column = column.cast(column.type.value_type)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        elif pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            column = compute.cast(column, pa.timestamp("us"), safe=False)
        elif pa.types.is_time(column.type):
            unit = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[column.type.unit]
            whole = pa.int32() if pa.types.is_time32(column.type) else pa.int64()
            column = compute.divide(column.cast(whole).cast(pa.float64()), unit)
        elif pa.types.is_null(column.type):
            columns[name] = np.full(len(column), np.nan)
            continue
        series = column.to_pandas(date_as_object=False)
        is_code = name in nominal and infer_type(series) is ColumnType.NUMERIC
        columns[name] = pd.Categorical(series) if is_code else series
    return pd.DataFrame(columns)


def _categories_of_pandas(table: Any) -> set[str]:
    """Return the columns that were unordered categories in pandas, as far as what it wrote beside them can be read."""
    try:
        columns = table.schema.pandas_metadata["columns"]
        categories = [column for column in columns if column["pandas_type"] == "categorical"]
        return {column["field_name"] for column in categories if not column["metadata"]["ordered"]}
    except (KeyError, TypeError, ValueError):
        return set()

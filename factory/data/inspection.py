"""What is in a table's file from anywhere: all of it is checked as far as that can be done, its beginning is shown.

Sizes that a file tells of itself are checked before memory is given by them,
rows are read in blocks, and nothing is executed or unpickled.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from factory.data.arrow_file import arrow_size
from factory.data.dataset import infer_types
from factory.data.metadata import (
    Sniffed,
    csv_head,
    open_csv,
    parquet_file,
    parse_head,
    refused,
    unreadable,
)
from factory.data.tables import check_names, delimiter_of, to_frame, without_index
from factory.spec import ColumnType, Document

TYPED_ROWS, SHOWN_ROWS, SHOWN_CHARACTERS = 1_000, 20, 200
"""Rows that types are inferred from, rows of a preview, and characters of each of its texts."""
BEGINNING_BYTES = 8 * 2**20
"""Of a CSV that are read for its first rows."""
MOST_RATIO, FREE_OF_RATIO_BYTES = 200, 64 * 2**20
"""How much larger than itself a file may become when it is unpacked, and the size up to which nobody asks. Tables
compress 3 to 30 times; gzip reaches 1,000 and zstd any number on bytes that are all the same."""
MOST_BATCH_BYTES = 256 * 2**20
"""Of a compressed batch of an Arrow file, which is unpacked as a whole."""
CSV_BLOCK_BYTES = 2 * 2**20
"""Read at a time; a row has to fit in."""

Cell = str | float | int | bool | None


class UploadColumn(Document):
    """A column of an upload, and what its first rows look like; no type where it holds lists."""

    name: str
    type: ColumnType | None


class Preview(Document):
    """The beginning of an upload: columns with the types inferred from its first rows, and some of these."""

    columns: tuple[UploadColumn, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Inspection:
    """A look into a table's file.

    Args:
        path: The file.
        sniffed: What its first bytes are.
        shown: How messages call it.
        max_rows: Most rows that a table may have.

    Raises:
        InvalidData: from here and from every method: it is not the table that it should be.
    """

    def __init__(self, path: Path, sniffed: Sniffed, *, shown: str, max_rows: int) -> None:
        self._path, self._sniffed, self._shown, self._max_rows = path, sniffed, shown, max_rows
        self._head = self._guarded(lambda: csv_head(path, sniffed)[0]) if sniffed.format == "csv" else b""
        self.delimiter = delimiter_of(self._head) if sniffed.format == "csv" else ""

    def n_rows(self) -> tuple[int, str]:
        """Return the number of rows and, of a CSV, its encoding; all of a CSV is read, the rest tells it."""
        counted = {"parquet": self._parquet_rows, "arrow": self._arrow_rows, "csv": self._csv_rows}
        n_rows, encoding = self._guarded(counted[self._sniffed.format])
        if n_rows == 0:
            raise refused(self._shown, "has a header but no rows", "Give a table with at least 20 rows.")
        self._check_rows(n_rows)
        return n_rows, encoding

    def preview(self, encoding: str = "") -> Preview:
        """Return the first rows, with the types that they look like."""
        heads = {
            "parquet": self._parquet_head,
            "arrow": self._arrow_head,
            "csv": lambda: parse_head(self._head, encoding),
        }
        table = self._guarded(heads[self._sniffed.format])
        names = table.column_names
        check_names(names, self._shown)
        if len(names) < 2:
            problem = "has one column only; a table needs a target and something to predict it by"
            raise refused(self._shown, problem, "Separate columns by a comma, a semicolon, a tab or a bar.")
        frame = self._guarded(lambda: to_frame(_flat(table.slice(0, TYPED_ROWS))))
        types = infer_types(frame)
        shown = frame.head(SHOWN_ROWS).reindex(columns=names).itertuples(index=False, name=None)
        return Preview(
            columns=tuple(UploadColumn(name=name, type=types.get(name)) for name in names),
            rows=tuple(tuple(_cell(value) for value in row) for row in shown),
        )

    def beginning(self, n_rows: int) -> tuple[pd.DataFrame, bool]:
        """Return the first rows, so many at most, and whether that is all of them."""
        heads = {"parquet": self._parquet_head, "arrow": self._arrow_head, "csv": self._csv_head}
        table = self._guarded(lambda: heads[self._sniffed.format](n_rows + 1))
        check_names(table.column_names, self._shown)
        frame = self._guarded(lambda: to_frame(_flat(table.slice(0, n_rows))))
        return frame, table.num_rows <= n_rows

    def _guarded(self, read: Callable[[], Any]) -> Any:
        import pyarrow as pa

        try:
            return read()
        except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError, StopIteration) as error:
            raise unreadable(self._shown, error, self._sniffed) from error

    def _check_rows(self, n_rows: int) -> None:
        if n_rows > self._max_rows:
            problem = f"has more than {self._max_rows:,} rows"
            raise refused(self._shown, problem, "Give a sample, or ask an operator to raise FACTORY_MAX_ROWS.")

    def _check_unpacked(self, unpacked: int) -> None:
        if unpacked > max(MOST_RATIO * self._path.stat().st_size, FREE_OF_RATIO_BYTES):
            problem = f"would become more than {MOST_RATIO} times as large when it is unpacked"
            raise refused(self._shown, problem, "Upload it with less compression, or without.")

    # --- Parquet ---------------------------------------------------------------

    def _parquet_rows(self) -> tuple[int, str]:
        with parquet_file(self._path) as file:
            known = file.metadata
            told = sum(known.row_group(i).total_byte_size for i in range(known.num_row_groups))
            self._check_rows(known.num_rows)
            # A column that is always the same takes no bytes, but a byte at least for each row once it is read.
            self._check_unpacked(max(told, known.num_rows * known.num_columns))
            return int(known.num_rows), ""

    def _parquet_head(self, n_rows: int = TYPED_ROWS) -> Any:
        with parquet_file(self._path) as file:
            return _first(file.iter_batches(batch_size=n_rows), n_rows)

    # --- Arrow -----------------------------------------------------------------

    def _arrow_rows(self) -> tuple[int, str]:
        """Return the number of rows once every batch is known to be sound.

        pyarrow reads a batch as its buffers say, and one that points outside of them ends the process that uses it.
        """
        with self._path.open("rb") as file:
            size = arrow_size(file)
        self._check_rows(size.n_rows)
        self._check_unpacked(size.unpacked_bytes)
        if size.largest_bytes > MOST_BATCH_BYTES:
            problem = f"has a compressed batch of more than {MOST_BATCH_BYTES // 2**20} MB"
            raise refused(self._shown, problem, "Write it in batches of 65,536 rows at most, or without compression.")
        n_rows = 0
        for batch in self._batches():
            batch.validate(full=True)
            n_rows += batch.num_rows
        return n_rows, ""

    def _arrow_head(self, n_rows: int = 1) -> Any:
        return _first(self._batches(), n_rows)

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import ipc

        with pa.memory_map(str(self._path)) as source, ipc.open_file(source) as reader:
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)

    # --- CSV -------------------------------------------------------------------

    def _csv_head(self, n_rows: int) -> Any:
        head, _ = csv_head(self._path, self._sniffed, n_bytes=BEGINNING_BYTES)
        return parse_head(head).slice(0, n_rows)

    def _csv_rows(self) -> tuple[int, str]:
        import pyarrow as pa

        if self._sniffed.gzipped:
            with gzip.open(self._path) as data:
                unpacked = 0
                while chunk := data.read(2**20):
                    unpacked += len(chunk)
                    self._check_unpacked(unpacked)
        try:
            return self._counted("utf8"), "utf8"
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
            return self._counted("latin-1"), "latin-1"

    def _counted(self, encoding: str) -> int:
        """Count the rows of a CSV, block by block; each has to have as many fields as the header."""
        import pyarrow as pa
        from pyarrow import csv

        def opened(data: BinaryIO, **options: Any) -> Any:
            return csv.open_csv(
                data,
                read_options=csv.ReadOptions(encoding=encoding, block_size=CSV_BLOCK_BYTES),
                parse_options=csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=csv.ConvertOptions(**options),
            )

        with open_csv(self._path, self._sniffed) as data:
            names = opened(data).schema.names
        n_rows = 0
        with open_csv(self._path, self._sniffed) as data:
            # As text: a type inferred from the first block need not hold for the others.
            for batch in opened(data, column_types=dict.fromkeys(names, pa.string())):
                n_rows += batch.num_rows
                self._check_rows(n_rows)
        return n_rows


def _first(batches: Iterable[Any], n_rows: int) -> Any:
    """Return the table of the first batches that have so many rows; each is sound."""
    import pyarrow as pa

    taken: list[Any] = []
    for batch in batches:
        batch.validate(full=True)
        taken.append(batch)
        if sum(one.num_rows for one in taken) >= n_rows:
            break
    return without_index(pa.Table.from_batches(taken))


def _flat(table: Any) -> Any:
    """Drop columns of lists and structures, which have no type of ours."""
    import pyarrow as pa

    nested = [i for i, kind in enumerate(table.schema.types) if pa.types.is_nested(kind)]
    for i in reversed(nested):
        table = table.remove_column(i)
    return table


def _cell(value: Any) -> Cell:
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"

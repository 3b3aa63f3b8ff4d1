"""The rows of files in parts that are read apart from each other, each in bounded memory.

Parquet is parted by its row groups, Arrow by its record batches, CSV at the
ends of records, which a line break within quotes is not.  A part is read as
:mod:`factory.data.tables` reads a table, so that a value means the same as when
the variant was trained.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from factory.data.tables import FORMAT_NAMES, csv_table, kind_of, suffix_kind, without_index
from factory.errors import Detail, InvalidData

Kind = Literal["parquet", "arrow", "csv"]

PART_ROWS = 250_000
"""Of a Parquet or Arrow part, at least, where the file has more."""
PART_BYTES = 32_000_000
"""Of a CSV part, about."""
BATCH_ROWS = 50_000
"""That are predicted at once."""
_HEAD = 65_536


@dataclass(frozen=True)
class Part:
    """Some rows of a file.

    Attributes:
        number: From 0 on, over all files.
        path: The file.
        kind: Its format.
        first: Its first row group, record batch or byte.
        end: The one after the last.
        n_rows: Of it; None where they are not known before they are read.
        n_bytes: About what it takes in the file.
    """

    number: int
    path: str
    kind: Kind
    first: int
    end: int
    n_rows: int | None
    n_bytes: int

    @property
    def where(self) -> str:
        """What it is, for a person."""
        units = {"parquet": "row groups", "arrow": "record batches", "csv": "bytes"}
        return f"{self.path!r}, {units[self.kind]} {self.first:,} to {self.end - 1:,}"

    def tables(self, columns: Sequence[str] | None, text_columns: Sequence[str]) -> Iterator[Any]:
        """Yield its rows as pyarrow tables of at most :data:`BATCH_ROWS` rows.

        Args:
            columns: That are wanted, as far as they are there; all if None.
            text_columns: That hold labels rather than numbers: in a CSV their leading zeros are kept.

        Raises:
            InvalidData: the file cannot be read.
        """
        import pyarrow as pa

        try:
            for table in self._read(columns, text_columns):
                named = without_index(table)
                kept = named.column_names if columns is None else [c for c in named.column_names if c in set(columns)]
                named = named.select(kept)
                for start in range(0, named.num_rows, BATCH_ROWS):
                    yield named.slice(start, BATCH_ROWS)
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise _unreadable(self.path, self.kind, error) from error

    def _read(self, columns: Sequence[str] | None, text_columns: Sequence[str]) -> Iterator[Any]:
        if self.kind == "csv":
            return self._csv(text_columns)
        return self._parquet(columns) if self.kind == "parquet" else self._arrow()

    def _parquet(self, columns: Sequence[str] | None) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import parquet

        with parquet.ParquetFile(self.path, pre_buffer=False) as file:
            there = file.schema_arrow.names
            wanted = None if columns is None else [name for name in there if name in set(columns)]
            groups = list(range(self.first, self.end))
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=wanted, use_threads=False):
                yield pa.Table.from_batches([batch])

    def _arrow(self) -> Iterator[Any]:
        import pyarrow as pa

        with pa.memory_map(self.path) as source:
            file = pa.ipc.open_file(source)
            for i in range(self.first, self.end):
                batch = file.get_batch(i)
                batch.validate(full=True)  # a damaged file would else end the process where its values are read
                yield pa.Table.from_batches([batch])

    def _csv(self, text_columns: Sequence[str]) -> Iterator[Any]:
        with Path(self.path).open("rb") as file:
            header = _header(file)
            file.seek(self.first)
            yield csv_table(header + file.read(self.end - self.first), text_columns)


def files_of(data: str) -> list[Path]:
    """Return the files that a path names: one, those of a folder, or those of a pattern; in the order of their names.

    Raises:
        InvalidData: there is none.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.is_file() and suffix_kind(one.name) is not None)
        found = [one for one in found if not any(part.startswith(".") for part in one.relative_to(path).parts)]
    elif path.is_file():
        found = [path]
    else:
        base, pattern = (Path(path.anchor), path.relative_to(path.anchor)) if path.is_absolute() else (Path(), path)
        found = sorted(one for one in base.glob(str(pattern)) if one.is_file()) if pattern.parts else []
    if not found:
        raise InvalidData(
            f"There is no table at {data!r}.",
            hint="Name a Parquet, CSV or Arrow file, a folder of them, or a pattern such as 'rows/*.parquet'.",
            details=[Detail("data", "no file of a known format")],
        )
    return [one.resolve() for one in found]


def parts_of(files: Sequence[Path], *, unpacked: Path) -> list[Part]:
    """Return the parts of files, in the order of the files and their rows.

    Args:
        files: Parquet, CSV or Arrow.
        unpacked: Folder in which compressed CSV is unpacked, since its middle cannot be reached.

    Raises:
        InvalidData: a file cannot be read, or is empty.
    """
    parts: list[Part] = []
    for path in files:
        for kind, source, first, end, n_rows, n_bytes in _ranges(path, unpacked):
            parts.append(Part(len(parts), str(source), kind, first, end, n_rows, n_bytes))
    return parts


_Range = tuple[Kind, Path, int, int, int | None, int]


def _ranges(path: Path, unpacked: Path) -> Iterator[_Range]:
    import pyarrow as pa

    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        raise InvalidData(
            f"The file {str(path)!r} is empty.",
            hint="Give a file with a header and rows, or leave it out.",
            details=[Detail("data", f"{path.name} is empty")],
        )
    kind = kind_of(str(path), head)
    try:
        if kind == "parquet":
            yield from _row_groups(path)
        elif kind == "arrow":
            yield from _record_batches(path)
        else:
            yield from _records(_plain(path, head, unpacked))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(str(path), kind, error) from error


def _row_groups(path: Path) -> Iterator[_Range]:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    for first, end in _together([group.num_rows for group in groups]):
        those = groups[first:end]
        size = sum(group.total_byte_size for group in those)
        yield "parquet", path, first, end, sum(group.num_rows for group in those), size


def _record_batches(path: Path) -> Iterator[_Range]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        rows = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
    for first, end in _together(rows):
        n_rows = sum(rows[first:end])
        yield "arrow", path, first, end, n_rows, path.stat().st_size * n_rows // max(sum(rows), 1)


def _together(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of neighbours with enough rows together."""
    first, total = 0, 0
    for i, n in enumerate(rows):
        total += n
        if total >= PART_ROWS or i == len(rows) - 1:
            yield first, i + 1
            first, total = i + 1, 0


def _plain(path: Path, head: bytes, unpacked: Path) -> Path:
    """Return a CSV's file, unpacked if it is compressed."""
    if head[:2] != b"\x1f\x8b":
        return path
    stat = path.stat()
    # Files of several folders may be called alike, and be as large and as old.
    place = sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:16]
    target = unpacked / f"{path.stem[:100]}-{place}-{stat.st_size}-{stat.st_mtime_ns}.csv"
    if not target.is_file():
        unpacked.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".draft")
        with gzip.open(path, "rb") as packed, draft.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        draft.replace(target)
    return target


def _records(path: Path) -> Iterator[_Range]:
    """Yield byte ranges of a CSV that end with a record: a line break counts after an even number of quotes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = len(_header(file))
        open_quotes, at = 0, start
        while at < size:
            file.seek(at)
            chunk = np.frombuffer(file.read(PART_BYTES), dtype=np.uint8)
            inside = (np.cumsum(chunk == ord('"')) + open_quotes) % 2
            ends = np.flatnonzero((chunk == ord("\n")) & (inside == 0))
            last = at + len(chunk) >= size
            if last or len(ends):
                end = size if last else at + int(ends[-1]) + 1
                yield "csv", path, start, end, None, end - start
                start = at = end
                open_quotes = 0
            else:  # one record of many megabytes
                at += len(chunk)
                open_quotes = int(inside[-1])


def _header(file: BinaryIO) -> bytes:
    """Return the first record of a CSV, which may have line breaks within quotes."""
    header = file.readline()
    while header.count(b'"') % 2 and (line := file.readline()):
        header += line
    return header if header.endswith(b"\n") else header + b"\n"


def _unreadable(path: str, kind: str, error: Exception) -> InvalidData:
    return InvalidData(
        f"{path!r} cannot be read as {FORMAT_NAMES[kind]}: {str(error).strip()[:300]}",
        hint="Check that the file is complete and that its suffix names its format. What is predicted already is kept.",
        details=[Detail("data", f"not a readable {FORMAT_NAMES[kind]} file")],
    )

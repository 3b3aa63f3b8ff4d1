"""What a table's file tells before its rows are read: its format, its columns, about how many rows.

The content says what a file is; the name may only agree.  Footers and headers
are bounded before anything parses them, so that a file from anywhere can be
looked at: nothing here takes more memory than :data:`MOST_FOOTER_BYTES`.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from factory.data.arrow_file import arrow_size
from factory.data.tables import FORMAT_NAMES, kind_of, parse_csv, suffix_kind, without_index
from factory.errors import Detail, InvalidData
from factory.spec import ColumnType

Format = Literal["parquet", "csv", "arrow"]

HEAD_BYTES, MOST_HEAD_BYTES = 65_536, 2**20
"""Of a CSV, looked at for its columns; more only where the first line is longer."""
MOST_FOOTER_BYTES = 32 * 2**20
"""Of a Parquet file; about 150 bytes for each column of each row group, so that 200,000 of them fit in."""
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
"""Control characters that no text has."""
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF": "a PDF",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "HTML or XML",
    b"\x80\x04": "a pickle, which is never read",
    b"\x80\x05": "a pickle, which is never read",
    b"FEA1": "a Feather file of version 1",
    b"PARE": "an encrypted Parquet file",
}
"""What is not read, by how it begins."""


@dataclass(frozen=True)
class Sniffed:
    """What a file's first bytes are.

    Attributes:
        format: The table's.
        gzipped: Whether a CSV is compressed as a whole.
    """

    format: Format
    gzipped: bool = False

    @property
    def name(self) -> str:
        """As people call it."""
        return f"gzipped {FORMAT_NAMES[self.format]}" if self.gzipped else FORMAT_NAMES[self.format]

    @property
    def suffix(self) -> str:
        """Suffix by which :func:`factory.data.tables.read_table` knows it."""
        return f".{self.format}{'.gz' if self.gzipped else ''}"


@dataclass(frozen=True)
class TableMetadata:
    """What is known of a table whose rows were not read.

    Attributes:
        sniffed: Its format.
        n_bytes: Of the file.
        n_rows: Of a CSV that is longer than its head, an estimate.
        exact: Whether ``n_rows`` is none.
        columns: Names, without a stored row index.
        types: Of the columns whose type the file tells: numeric, boolean or datetime; text may be anything.
    """

    sniffed: Sniffed
    n_bytes: int
    n_rows: int
    exact: bool
    columns: tuple[str, ...]
    types: Mapping[str, ColumnType]


def sniff(head: bytes, *, shown: str) -> Sniffed:
    """Return what a file is by its first bytes, and let its name agree.

    Args:
        head: :data:`HEAD_BYTES` of it, or all where there are fewer.
        shown: Its name; a suffix of another format is refused, one that says nothing is not.

    Raises:
        InvalidData: it is no table that is read here, or its name says another format.
    """
    found = _sniffed(head)
    if isinstance(found, str):
        raise refused(
            shown,
            f"is {found}",
            "Give Parquet, CSV (UTF-8 or Latin-1, also gzipped) or an Arrow IPC file.",
        )
    named = suffix_kind(shown)
    if named not in (None, found.format):
        raise refused(
            shown,
            f"is named as {FORMAT_NAMES[named]}, but its content is {found.name}",
            f"Name it by its content, for example table{found.suffix}.",
        )
    return found


def refused(shown: str, problem: str, hint: str) -> InvalidData:
    """Return the error for a file that cannot be used."""
    return InvalidData(f"{shown!r} {problem}.", hint=hint, details=[Detail("path", problem)])


def read_metadata(path: Path) -> TableMetadata:
    """Return what a file tells of its table without its rows being read.

    What is refused here is what :func:`factory.data.tables.read_table` would refuse as well.

    Raises:
        InvalidData: it does not exist, is empty, damaged or cut off, or is no table.
    """
    import pyarrow as pa

    shown = str(path)
    sniffed: Sniffed | None = None
    try:
        if path.exists() and not path.is_file():  # to open a pipe may take for ever
            raise refused(shown, "is no file", "Name a file with a table.")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            sniffed = sniff(head, shown=shown)
            kind_of(shown, head)
            if sniffed.format == "parquet":
                return _of_parquet(path, sniffed)
            if sniffed.format == "arrow":
                return _of_arrow(path, file, sniffed)
            return _of_csv(path, file, sniffed)
    except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable(shown, error, sniffed) from error


def unreadable(shown: str, error: Exception, sniffed: Sniffed | None) -> InvalidData:
    """Return the error for a file whose content could not be read."""
    if isinstance(error, FileNotFoundError):
        return refused(shown, "does not exist", "Check the path, and that this user may read it.")
    reason = getattr(error, "strerror", None) or str(error).strip()[:300] or "it holds less than it says"
    if sniffed is None:
        return refused(shown, f"cannot be opened: {reason}", "Check the path, and that this user may read it.")
    return refused(shown, f"cannot be read as {sniffed.name}: {reason}", "Check that the file is complete.")


def parquet_file(path: Path) -> Any:
    """Open a Parquet file once its footer is known to be whole and of bounded size.

    Raises:
        ValueError: it is not.
    """
    from pyarrow import parquet

    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(n_bytes - 8, 0))
        tail = file.read(8)
    if n_bytes < 12 or tail[4:] != b"PAR1":
        raise ValueError("its end is missing")
    (n_footer,) = struct.unpack("<I", tail[:4])
    if n_footer > min(n_bytes - 12, MOST_FOOTER_BYTES):
        raise ValueError(f"its footer would have {n_footer:,} bytes")
    limits = {"thrift_string_size_limit": max(n_footer, 1), "thrift_container_size_limit": max(n_footer, 1)}
    return parquet.ParquetFile(path, **limits)


def open_csv(path: Path, sniffed: Sniffed) -> BinaryIO:
    """Open a CSV, uncompressed as it is read."""
    return cast("BinaryIO", gzip.open(path)) if sniffed.gzipped else path.open("rb")


def csv_head(path: Path, sniffed: Sniffed, *, n_bytes: int = HEAD_BYTES) -> tuple[bytes, bool]:
    """Return a CSV's first whole records, of so many bytes, and whether that is all of it."""
    with open_csv(path, sniffed) as data:
        head = data.read(n_bytes)
        if not re.search(rb"[\r\n]", head):
            head += data.read(MOST_HEAD_BYTES - len(head))
        whole = not data.read(1)
    return (head if whole else _whole_records(head)), whole


def parse_head(head: bytes, encoding: str = "") -> Any:
    """Return the pyarrow table of a CSV's first records; UTF-8, or Latin-1 where it is not that, if none is given."""
    import pyarrow as pa

    if encoding:
        return without_index(parse_csv(head, encoding, ()))
    try:
        return without_index(parse_csv(head, "utf8", ()))
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        return without_index(parse_csv(head, "latin-1", ()))


def _sniffed(head: bytes) -> Sniffed | str:
    """Return the format, or what the bytes are instead."""
    if not head.strip():
        return "empty"
    if head.startswith(b"PAR1"):
        return Sniffed("parquet")
    if head.startswith(b"ARROW1"):
        return Sniffed("arrow")
    if head.startswith(_GZIP):
        inner = _unzipped_head(head)
        return Sniffed("csv", gzipped=True) if (found := _no_text(inner)) is None else f"gzipped, and inside {found}"
    return Sniffed("csv") if (found := _no_text(head)) is None else found


def _no_text(head: bytes) -> str | None:
    """Return what the bytes are if they are no plain text; None if they are."""
    if head.startswith(_UTF_16):
        return "text in UTF-16; save it as UTF-8"
    bare = head.removeprefix(_BOM).lstrip()
    if not bare:
        return "empty"
    other = next((what for begin, what in _OTHERS.items() if bare.startswith(begin)), None)
    if other is not None:
        return other
    return "none of the known formats: it has bytes that no text has" if _BINARY.search(head) else None


def _unzipped_head(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _whole_records(head: bytes) -> bytes:
    """Cut a CSV after the last end of a line that is not inside quotes."""
    inside = head.count(b'"') % 2
    for at in range(len(head) - 1, -1, -1):
        if head[at] == ord('"'):
            inside ^= 1
        elif head[at] in b"\r\n" and not inside:
            return head[: at + 1]
    return head


def _of_parquet(path: Path, sniffed: Sniffed) -> TableMetadata:
    with parquet_file(path) as file:
        schema, n_rows = file.schema_arrow, int(file.metadata.num_rows)
    return _told(sniffed, path, without_index(schema.empty_table()).schema, n_rows=n_rows, exact=True)


def _of_arrow(path: Path, file: BinaryIO, sniffed: Sniffed) -> TableMetadata:
    from pyarrow import ipc

    size = arrow_size(file)
    file.seek(0)
    with ipc.open_file(file) as reader:
        schema = without_index(reader.schema.empty_table()).schema
    return _told(sniffed, path, schema, n_rows=size.n_rows, exact=True)


def _of_csv(path: Path, file: BinaryIO, sniffed: Sniffed) -> TableMetadata:
    head, whole = csv_head(path, sniffed)
    table = parse_head(head)
    if whole:
        return _told(sniffed, path, table.schema, n_rows=table.num_rows, exact=True)
    n_bytes = path.stat().st_size
    if sniffed.gzipped:
        file.seek(0)
        packed = file.read(HEAD_BYTES)
        n_bytes = round(n_bytes * len(zlib.decompressobj(wbits=31).decompress(packed)) / len(packed))
    return _told(sniffed, path, table.schema, n_rows=round(table.num_rows * n_bytes / len(head)), exact=False)


def _told(sniffed: Sniffed, path: Path, schema: Any, *, n_rows: int, exact: bool) -> TableMetadata:
    types = {name: kind for name, held in zip(schema.names, schema.types, strict=True) if (kind := _type(held))}
    return TableMetadata(
        sniffed=sniffed,
        n_bytes=path.stat().st_size,
        n_rows=n_rows,
        exact=exact,
        columns=tuple(schema.names),
        types=types,
    )


def _type(held: Any) -> ColumnType | None:
    import pyarrow as pa

    if pa.types.is_boolean(held):
        return ColumnType.BOOLEAN
    if pa.types.is_date(held) or pa.types.is_timestamp(held):
        return ColumnType.DATETIME
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_time, pa.types.is_duration)
    return ColumnType.NUMERIC if any(check(held) for check in numbers) else None

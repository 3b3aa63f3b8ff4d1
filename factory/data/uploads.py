"""Datasets that arrive over the network: streamed to disk, looked at, and kept under the digest of their bytes.

A body is never held in memory.  It goes into a temporary file of the upload
folder; only when it is whole, and a table, does it get its name, in one step.
Whatever goes wrong before that leaves nothing behind.  Two uploads of the same
bytes are one file, also when they arrive at the same time.

The file is from anywhere: sizes that it tells of itself are checked before
memory is given by them, and nothing in it is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from factory.data.inspection import Inspection, Preview
from factory.data.loading import uploaded
from factory.data.metadata import HEAD_BYTES, Format, Sniffed, refused, sniff
from factory.errors import Detail, InvalidData, StorageFault
from factory.settings import Settings

log = logging.getLogger(__name__)

RESERVE_MB = 500.0
"""Of the disk that uploads leave free: the ledger is often on the same one."""
LOOK_BYTES = 32 * 2**20
"""Received between two looks at the free disk."""
STALE_S = 3600.0
"""A temporary file that nothing was written to for so long is of an upload that was cut off with its process."""


class UploadTooLarge(InvalidData):
    """An upload has more bytes than one may have."""

    code = "upload_too_large"


class Received(BaseModel):
    """A dataset that is kept. Not a Document, since its digest is the bytes'.

    Attributes:
        digest: SHA-256 of its bytes; what ``dataset: {upload: ...}`` names it by.
        format: Of the table.
        n_bytes: Of the file.
        n_rows: Of the table.
        encoding: Of a CSV, ``utf8`` or ``latin-1``; empty for other formats.
        delimiter: Of a CSV; empty for other formats.
        preview: Its beginning.
        known: Whether the same bytes had been kept before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    format: Format
    n_bytes: int
    n_rows: int
    encoding: str = ""
    delimiter: str = ""
    preview: Preview
    known: bool = False


class UploadStore:
    """The upload folder of a factory.

    Args:
        settings: Names the folder, and the most rows of a table.
        limit_mb: Most MB of one upload; that of the settings where not given.
        reserve_mb: MB of the disk that stay free.
    """

    def __init__(self, settings: Settings, *, limit_mb: float | None = None, reserve_mb: float = RESERVE_MB) -> None:
        self.settings = settings
        self.folder = settings.uploads
        self.limit_bytes = round(1e6 * (settings.max_upload_mb if limit_mb is None else limit_mb))
        self._reserve_bytes = round(1e6 * reserve_mb)
        self._cleared = float("-inf")

    def receive(self, name: str, *, n_bytes: int | None = None) -> Incoming:
        """Begin to receive an upload, as a context manager::

            with store.receive("customers.csv", n_bytes=length) as incoming:
                for chunk in body:
                    incoming.write(chunk)
                upload = incoming.keep()

        Args:
            name: As its sender calls it; a suffix of another format than the content's is refused.
            n_bytes: Its size where the sender told it; fewer bytes are a cut-off upload.

        Raises:
            UploadTooLarge: it says so itself.
            StorageFault: the folder cannot be written, or the disk would be full.
        """
        self.check_size(n_bytes or 0, name)
        if time.monotonic() > self._cleared + STALE_S:
            # What a killed process left would stay for ever, and the disk may be full of it.
            self._cleared = time.monotonic()
            self.clear_stale()
        self.check_disk(n_bytes or 0)
        return Incoming(self, name, n_bytes)

    def take(self, chunks: Iterable[bytes], *, name: str, n_bytes: int | None = None) -> Received:
        """Receive an upload whose chunks are at hand; see :meth:`receive`."""
        with self.receive(name, n_bytes=n_bytes) as incoming:
            for chunk in chunks:
                incoming.write(chunk)
            return incoming.keep()

    def preview(self, digest: str) -> Preview:
        """Return the beginning of an upload.

        Raises:
            NotFound: there is none with this digest.
            InvalidData: it cannot be read any more.
        """
        path = uploaded(digest, settings=self.settings)
        with path.open("rb") as file:
            sniffed = sniff(file.read(HEAD_BYTES), shown=path.name)
        return Inspection(path, sniffed, shown=path.name, max_rows=self.settings.max_rows).preview()

    def clear_stale(self, *, older_than_s: float = STALE_S) -> int:
        """Remove temporary files of uploads that were cut off with their process; return how many there were."""
        n_cleared = 0
        for path in self.folder.glob(".*") if self.folder.is_dir() else ():
            with suppress(OSError):  # another process clears as well, or this one may only read
                if time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    n_cleared += 1
        if n_cleared:
            log.info("removed %d uploads that were never finished", n_cleared)
        return n_cleared

    def check_size(self, n_bytes: int, name: str) -> None:
        """Refuse more bytes than one upload may have.

        Raises:
            UploadTooLarge: names both.
        """
        if n_bytes > self.limit_bytes:
            message = f"{name!r} has more than {self.limit_bytes / 1e6:,.0f} MB, the most that an upload may have."
            hint = "Write it as Parquet, which is a fraction of a CSV; or put it where the factory can read it by path."
            raise UploadTooLarge(message, hint=hint, details=[Detail("file", "too large")])

    def check_disk(self, n_bytes: int) -> None:
        """Refuse to fill the disk.

        Raises:
            StorageFault: so many more bytes would leave too little.
        """
        folder = next(f for f in (self.folder, *self.folder.parents) if f.is_dir())
        free = shutil.disk_usage(folder).free
        if free - n_bytes < self._reserve_bytes:
            raise StorageFault(
                f"The disk of the uploads has {free / 1e6:,.0f} MB left, of which {self._reserve_bytes / 1e6:,.0f} MB "
                "are kept free.",
                hint="An operator has to free some space; nothing of the upload was kept.",
                details=[Detail("FACTORY_HOME", "the disk is nearly full")],
            )


class Incoming:
    """An upload that is being received; leaving its ``with`` block without :meth:`keep` removes all of it."""

    def __init__(self, store: UploadStore, name: str, n_expected: int | None) -> None:
        self.n_bytes = 0
        self._store, self._name, self._n_expected = store, name, n_expected
        self._digest = hashlib.sha256()
        self._head = b""
        self._sniffed: Sniffed | None = None
        self._look_at = LOOK_BYTES
        self._path = store.folder / f".incoming-{uuid4().hex}"
        try:
            store.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            UploadTooLarge: there are too many of them.
            InvalidData: the first ones are not of a table.
            StorageFault: the disk is full.
        """
        self.n_bytes += len(chunk)
        self._store.check_size(self.n_bytes, self._name)
        if self.n_bytes >= self._look_at:
            self._look_at += LOOK_BYTES
            self._store.check_disk(0)
        if self._sniffed is None:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES:
                self._sniffed = sniff(self._head, shown=self._name)
        self._digest.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise self._unwritable(error) from error

    def keep(self) -> Received:
        """Look at what was received, and keep it.

        Raises:
            InvalidData: bytes are missing, or it is not the table that it says it is.
            StorageFault: the disk is full.
        """
        if self._n_expected is not None and self.n_bytes != self._n_expected:
            problem = f"was cut off: {self.n_bytes:,} bytes arrived, and it has {self._n_expected:,}"
            raise refused(self._name, problem, "Upload it again.")
        sniffed = self._sniffed or sniff(self._head, shown=self._name)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise self._unwritable(error) from error
        look = Inspection(self._path, sniffed, shown=self._name, max_rows=self._store.settings.max_rows)
        n_rows, encoding = look.n_rows()
        preview = look.preview(encoding)
        digest = self._digest.hexdigest()
        known = self._named(self._store.folder / f"{digest}{sniffed.suffix}")
        return Received(
            digest=digest,
            format=sniffed.format,
            n_bytes=self.n_bytes,
            n_rows=n_rows,
            encoding=encoding,
            delimiter=look.delimiter,
            preview=preview,
            known=known,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # to close writes what is left, and the disk may be full
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _named(self, target: Path) -> bool:
        """Give the file its name, which is on disk when this returns; return whether its content was there before."""
        try:
            if target.is_file() and target.stat().st_size == self.n_bytes:
                return True
            self._path.replace(target)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._unwritable(error) from error
        return False

    def _unwritable(self, error: OSError) -> StorageFault:
        return StorageFault(
            f"The upload cannot be stored in {str(self._store.folder)!r}: {error.strerror or error}.",
            hint="An operator has to free some space or let this user write there; nothing of the upload was kept.",
            details=[Detail("FACTORY_HOME", str(error))],
        )

"""Outcomes on their way into Parquet: lines of a file that is on the disk before a caller is answered.

A Parquet file for each call would be thousands of small ones.  So lines are
gathered in a journal until they are many or a minute old, and then become one
file for each variant.  A journal is locked by the process that writes it: what
a killed one has left is made into files by whoever finds it, under the same
names however often it is tried, so that nothing is lost and nothing is there
twice.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from uuid import uuid4

import pyarrow as pa

logger = logging.getLogger(__name__)

MOST_ROWS = 10_000
"""Of a journal; then the next one is begun."""
MOST_AGE_S = 60.0
_LINES = ".jsonl"
_EPOCH, _MICROSECOND = datetime.fromtimestamp(0, UTC), timedelta(microseconds=1)


@dataclass(frozen=True)
class Outcome:
    """What became of something that was predicted.

    Attributes:
        key: That the call had named.
        value: What came true.
        moment: When it did, or was told.
    """

    key: str
    value: str
    moment: datetime


Write = Callable[[str, datetime, str, pa.Table], None]
"""Writes a table of a variant, of a moment, under a name; the same name again is the same file."""


class Journal:
    """Keeps outcomes until they are files; safe to use from several threads, and by several processes.

    Args:
        folder: Of the journals, shared by all who write.
        write: Makes a file of what has been gathered.
    """

    def __init__(self, folder: Path, write: Write) -> None:
        self._folder, self._write = folder, write
        self._lock = Lock()
        self._file: int | None = None
        self._path = folder
        self._n_rows, self._n_bytes, self._began = 0, 0, 0.0

    def append(self, variant: str, outcomes: Sequence[Outcome]) -> None:
        """Keep outcomes; they are on the disk on return.

        Raises:
            OSError: the disk refuses, and nothing is kept.
        """
        rows = [(one.key, one.value, (one.moment - _EPOCH) // _MICROSECOND) for one in outcomes]
        line = json.dumps({"variant": variant, "rows": rows}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            file = self._opened()
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(file, left) :]
                os.fsync(file)
            except OSError:
                self._take_back(file)
                raise
            self._n_bytes += len(line)
            self._n_rows += len(rows)
            if self._n_rows >= MOST_ROWS:
                self._seal()

    def settle(self, *, all_: bool = False) -> None:
        """Make files of the journals that nobody writes any more; of the own one when it is old.

        Args:
            all_: Whether the own one is ended now.
        """
        with self._lock:
            if self._file is not None and (all_ or time.monotonic() - self._began >= MOST_AGE_S):
                self._seal()
        for path in sorted(self._folder.glob(f"*{_LINES}")):
            try:
                with _taken(path) as taken:
                    if taken:
                        self._make_files(path)
            except Exception:
                # Whatever is wrong with one keeps no later one waiting.
                logger.warning("the outcomes of %s wait", path, exc_info=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove journals that a process was killed before it had named: they are empty."""
        for path in self._folder.glob("*.draft"):
            try:
                with _taken(path) as taken:
                    if taken and time.time() - path.stat().st_mtime > MOST_AGE_S:
                        path.unlink()
            except OSError:
                logger.warning("%s could not be removed", path, exc_info=True)

    def _opened(self) -> int:
        """Return the own journal, which this process has locked, and which is in its folder on the disk."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path = self._folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:8]}{_LINES}"
            draft = self._path.with_suffix(".draft")
            file = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                # Locked before it has its name: nobody else may take it for one that was left.
                fcntl.flock(file, fcntl.LOCK_EX)
                draft.replace(self._path)
                _sync_folder(self._folder)
            except OSError:
                os.close(file)
                draft.unlink(missing_ok=True)
                raise
            self._file, self._n_rows, self._n_bytes, self._began = file, 0, 0, time.monotonic()
        return self._file

    def _take_back(self, file: int) -> None:
        """Take half a line back; where that fails too, no other one may follow it."""
        try:
            os.ftruncate(file, self._n_bytes)
        except OSError:
            self._seal()

    def _seal(self) -> None:
        """End the own journal; whoever settles next makes files of it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _make_files(self, path: Path) -> None:
        moment = datetime.strptime(path.stem[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        by_variant: dict[str, list[tuple[str, str, int]]] = {}
        for variant, rows in _lines(path):
            by_variant.setdefault(variant, []).extend(rows)
        for variant, rows in by_variant.items():
            keys, values, times = zip(*rows, strict=True)
            table = pa.table(
                {
                    "time": pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
                    "key": pa.array(keys, pa.string()),
                    "outcome": pa.array(values, pa.string()),
                }
            )
            self._write(variant, moment, path.stem, table)
        path.unlink()


def _lines(path: Path) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
    """Yield what was kept; a line that is not whole was never answered, and one that is none is left out."""
    with path.open("rb") as file:
        for line in file:
            try:
                told = json.loads(line)
                variant, rows = (
                    str(told["variant"]),
                    [(str(key), str(value), int(at)) for key, value, at in told["rows"]],
                )
            except (ValueError, TypeError, KeyError):
                logger.warning("%s has half a line, of a call that was not answered", path)
                continue
            if rows:
                yield variant, rows


@contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """Say whether a journal is nobody else's, and keep it so meanwhile."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # another process has made its files
        yield False
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield path.exists()
    finally:
        os.close(file)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

"""What was predicted, and what became of it, written down beside the answers: the base of watching a variant.

Predictions wait in memory, a bounded number of rows and bytes, and a thread
writes them to Parquet files by variant and day.  An answer never waits for
that: what does not fit is counted and dropped, and a disk that is full is
logged.  Outcomes are on the disk before they are answered.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.settings import Settings
from serve.journal import Journal, Outcome

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
FLUSH_ROWS = 10_000
MOST_ROWS = 50_000
"""That wait to be written; more are dropped."""
MOST_BYTES = 100_000_000
"""Of them, as far as they are numbers and texts."""
_FORGET_EVERY_S = 3600.0
_JOURNALS = "outcomes-journal"

As = Literal["champion", "canary", "named", "shadow"]


@dataclass(frozen=True)
class Answered:
    """A prediction as it was made.

    Attributes:
        call: Id of the call; a shadow's prediction has that of the call that it mirrors.
        key: What the call is about, as its header says; empty where it does not.
        variant: Name of the variant.
        version: Who has answered.
        as_: In which part.
        ms: That the prediction took.
        inputs: Column → values, each (n_rows,).
        outputs: Output → values, each (n_rows,).
        moment: When.
    """

    call: str
    key: str
    variant: str
    version: int
    as_: As
    ms: float
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    moment: datetime

    @property
    def n_rows(self) -> int:
        """Rows of it."""
        return len(next(iter(self.outputs.values()), ()))

    @property
    def n_bytes(self) -> int:
        """What its values take in memory."""
        return sum(_size(each) for values in (self.inputs, self.outputs) for each in values.values())

    def table(self) -> pa.Table:
        """Return it as rows."""
        n = self.n_rows
        about = {
            "time": pa.array([self.moment] * n, pa.timestamp("us", tz="UTC")),
            "call": pa.array([self.call] * n, pa.string()),
            "row": pa.array(range(n), pa.int32()),
            "key": pa.array([self.key] * n, pa.string()),
            "version": pa.array([self.version] * n, pa.int32()),
            "as": pa.array([self.as_] * n, pa.string()),
            "ms": pa.array([self.ms] * n, pa.float64()),
        }
        values = {f"input.{name}": _column(each) for name, each in self.inputs.items()}
        values |= {f"output.{name}": _column(each) for name, each in self.outputs.items()}
        return pa.table(about | values)


class Recorder:
    """Writes predictions and outcomes down; safe to use from several threads.

    Args:
        folder: Gets ``variant=NAME/date=DAY/*.parquet``, below ``predictions`` and ``outcomes``.
        percent: Of the calls that are written down; outcomes always are, and so are calls that a shadow mirrors: at 0
            without their inputs.
        days: For which they are kept.
    """

    def __init__(self, folder: Path, *, percent: float, days: int) -> None:
        self._folder, self._percent, self._days = folder, percent, days
        self._lock = threading.Lock()
        self._waiting: list[Answered] = []
        self._n_rows = self._n_bytes = 0
        self.n_dropped = 0
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._forgot = float("-inf")
        self._journal = Journal(folder / _JOURNALS, self._write_outcomes)

    @classmethod
    def of(cls, settings: Settings) -> Recorder:
        """Return the one that the settings describe."""
        return cls(settings.predictions, percent=settings.prediction_log_percent, days=settings.prediction_log_days)

    def wants(self) -> bool:
        """Return whether this call is to be written down, by chance."""
        return random.random() * 100 < self._percent  # noqa: S311 - a sample

    def put(self, answered: Answered) -> None:
        """Have a prediction written down soon."""
        if self._percent == 0:
            answered = replace(answered, inputs={})
        size = 0 if answered.n_rows > MOST_ROWS else answered.n_bytes
        with self._lock:
            if self._n_rows + answered.n_rows > MOST_ROWS or self._n_bytes + size > MOST_BYTES:
                self.n_dropped += answered.n_rows
                return
            self._waiting.append(answered)
            self._n_rows += answered.n_rows
            self._n_bytes += size
            if self._n_rows >= FLUSH_ROWS or self._n_bytes >= MOST_BYTES / 4:
                self._wake.set()
        self.start()

    def put_outcomes(self, variant: str, outcomes: Sequence[Outcome]) -> None:
        """Keep outcomes of a variant's predictions: they are on the disk on return, and a file within a minute or so.

        Raises:
            OSError: the disk refuses.
        """
        self._journal.append(variant, outcomes)
        self.start()

    def flush(self) -> None:
        """Write what waits, and remove what is old; predictions that the disk refuses are logged and lost."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._n_rows = self._n_bytes = 0
        groups: dict[tuple[object, ...], list[Answered]] = {}
        for one in waiting:
            groups.setdefault((one.variant, one.version, *one.inputs, None, *one.outputs), []).append(one)
        for those in groups.values():
            try:
                for table in _together([one.table() for one in those]):
                    now = datetime.now(UTC)
                    self._write("predictions", those[0].variant, now, f"{now:%H%M%S}-{uuid4().hex[:8]}", table)
            except (OSError, pa.ArrowException):
                logger.warning("%d predictions of %s are not written down", len(those), those[0].variant, exc_info=True)
        self._journal.settle(all_=self._over.is_set())
        self._forget()

    def close(self) -> None:
        """Write what waits, and end."""
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self.flush()

    def start(self) -> None:
        """Begin to write what waits and to remove what is old, every few seconds; what was begun goes on."""
        with self._lock:
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            self._wake.wait(FLUSH_S)
            self._wake.clear()
            try:
                self.flush()
            except Exception:
                # Without this thread nothing would be written any more.
                logger.exception("what waits could not be written")

    def _write_outcomes(self, variant: str, moment: datetime, name: str, table: pa.Table) -> None:
        self._write("outcomes", variant, moment, name, table)

    def _write(self, kind: str, variant: str, moment: datetime, name: str, table: pa.Table) -> None:
        """Write a file, which is on the disk whole before it has its name."""
        folder = self._folder / kind / f"variant={variant}" / f"date={moment:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = folder / f".{name}.{os.getpid()}.tmp"
        try:
            with part.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / f"{name}.parquet")
        finally:
            part.unlink(missing_ok=True)

    def _forget(self) -> None:
        """Remove what is older than it is kept, once an hour."""
        if time.monotonic() - self._forgot < _FORGET_EVERY_S:
            return
        self._forgot = time.monotonic()
        oldest = f"date={datetime.now(UTC) - timedelta(days=self._days):%Y-%m-%d}"
        for day in self._folder.glob("*/variant=*/date=*"):
            if day.name < oldest:
                shutil.rmtree(day, ignore_errors=True)


def _together(tables: list[pa.Table]) -> list[pa.Table]:
    """Return tables as one, unless the same column came as numbers in one call and as text in another."""
    try:
        return [pa.concat_tables(tables)]
    except pa.ArrowInvalid:
        return tables


def _size(values: np.ndarray) -> int:
    """Return the bytes of values, those of texts included."""
    return values.nbytes + (sum(map(sys.getsizeof, values.tolist())) if values.dtype.kind == "O" else 0)


def _column(values: np.ndarray) -> pa.Array:
    """Return values as a column: numbers and booleans as they are, all else as text; NaN and None are missing."""
    if values.dtype.kind in "fiu":
        return pa.array(values.astype(np.float64), pa.float64(), from_pandas=True)
    if values.dtype.kind == "b":
        return pa.array(values, pa.bool_())
    texts = [None if value is None or value != value else str(value) for value in values.tolist()]
    return pa.array(texts, pa.string())

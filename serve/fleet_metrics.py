"""Metrics of all replicas in one answer, whichever of them is asked.

HAProxy hands a scrape to any replica.  So each writes its own metrics into a
folder that all replicas see, every few seconds and whenever it is asked, and
answers with what lies there.  What a replica has counted never goes back from
one scrape to the next: its own numbers too are read from there.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

FRESH_S = 60.0
"""A file that is older is of a replica that has ended."""
_SUFFIX = ".prom"

wall_clock = time.time


class FleetMetrics:
    """The folder with the metrics of all replicas.

    Args:
        folder: Seen by all replicas; made if need be.
        replica: Returns the number of this one, which no other one has: 0, 1 and so on.
    """

    def __init__(self, folder: Path, replica: Callable[[], int]) -> None:
        self._folder, self._replica = folder, replica
        self._mine: Path | None = None
        self._stamp = (0, 0)

    @property
    def replica(self) -> str:
        """Number of this replica; it has few values, and so a metric's label may have it."""
        return str(self._replica())

    def exchange(self, text: bytes) -> bytes:
        """Write this replica's metrics, and return those of all; its own alone where the folder cannot be used.

        Args:
            text: In Prometheus' format, with the label ``replica``.
        """
        try:
            self.write(text)
            return merged(self._fresh())
        except OSError:
            logger.warning("metrics of other replicas cannot be read", exc_info=True)
            return text

    def write(self, text: bytes) -> None:
        """Write this replica's metrics.

        Raises:
            OSError: the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{self.replica}{_SUFFIX}"
        if self._mine is not None and self._mine != path:
            self._leave()
        draft = path.with_name(f"{path.stem}.{os.getpid()}.draft")
        draft.write_bytes(text)
        self._stamp = _stamp(draft)
        draft.replace(path)
        self._mine = path

    def close(self) -> None:
        """Take this replica's metrics away."""
        if self._mine is not None:
            with suppress(OSError):
                self._leave()

    def _leave(self) -> None:
        """Take the own file away, but not that of a replica which has got this one's number meanwhile."""
        if self._mine is not None:
            with suppress(FileNotFoundError):
                if _stamp(self._mine) == self._stamp:
                    self._mine.unlink()
            self._mine = None

    def _fresh(self) -> list[bytes]:
        texts = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            with suppress(FileNotFoundError):  # of a replica that has ended meanwhile
                if path == self._mine or wall_clock() - path.stat().st_mtime <= FRESH_S:
                    texts.append(path.read_bytes())
        return texts


def _stamp(path: Path) -> tuple[int, int]:
    """Return what is another of each file that is written: numbers of files that are gone are given anew."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def merged(texts: Iterable[bytes]) -> bytes:
    """Return several texts of metrics as one, in which each metric is told of once, as the format has it."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for text in texts:
        name = b""
        for line in text.splitlines(keepends=True):
            if line.startswith(b"# "):
                name = line.split(b" ", 3)[2]
                head = heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
            else:
                samples.setdefault(name, []).append(line)
    return b"".join(b"".join([*head, *samples.get(name, ())]) for name, head in heads.items())

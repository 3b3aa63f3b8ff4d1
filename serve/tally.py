"""Counts of a replica on their way into the ledger, where those of the whole fleet are added up.

Nothing waits for the ledger: what it does not take is kept, a bounded number of
counts, and added the next time.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from datetime import UTC, datetime

from factory.ledger import LATENCY_MS, Served

MOST = 20_000
"""Counts that wait, each of a version and a minute; the oldest are given up for newer ones."""
_N_SUMS = 2 + len(LATENCY_MS) + 1
"""Calls, failed ones, and groups by what they took."""

wall_clock = time.time


class Tally:
    """Counts answers by version and minute; used in a replica's event loop."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], list[int]] = {}

    def answered(self, by: str, *, took_s: float, failed: bool) -> None:
        """Count a call.

        Args:
            by: ``name/version`` that has answered.
            took_s: Seconds from the call's arrival until its answer.
            failed: Whether it ended in a fault of the factory.
        """
        row = self._row(by)
        row[0] += 1
        row[1] += failed
        row[2 + bisect_left(LATENCY_MS, took_s * 1e3)] += 1

    def canary_failed(self, by: str) -> None:
        """Count a call that a canary was to answer, and its champion did."""
        row = self._row(by)
        row[0] += 1
        row[1] += 1

    def take(self) -> list[Served]:
        """Return what was counted, and begin anew."""
        taken, self._counts = self._counts, {}
        return [_served(by, minute, row) for (by, minute), row in taken.items()]

    def give_back(self, counted: Iterable[Served]) -> None:
        """Count again what the ledger has not taken."""
        for one in counted:
            row = self._row(f"{one.name}/{one.version}", int(one.began.timestamp()) // 60)
            for i, n in enumerate((one.calls, one.failed, *one.latency)):
                row[i] += n

    def _row(self, by: str, minute: int | None = None) -> list[int]:
        key = (by, int(wall_clock()) // 60 if minute is None else minute)
        if key not in self._counts:
            if len(self._counts) >= MOST:
                self._counts.pop(next(iter(self._counts)))
            self._counts[key] = [0] * _N_SUMS
        return self._counts[key]


def _served(by: str, minute: int, row: list[int]) -> Served:
    name, _, version = by.rpartition("/")
    began = datetime.fromtimestamp(60 * minute, tz=UTC)
    return Served(name=name, version=int(version), began=began, calls=row[0], failed=row[1], latency=tuple(row[2:]))

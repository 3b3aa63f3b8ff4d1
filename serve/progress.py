"""A bar of long work: live in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Bar:
    """How far some work has come.

    Args:
        title: What is done.
        total: All of it, in any unit.
        unit: What is counted beside.
    """

    def __init__(self, title: str, *, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, max(total, 1), unit
        self._live = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[told]}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not self._live)
        self._task = self._progress.add_task(title, total=self._total, told="")
        self._done = self._counted = 0
        self._began = self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self, amount: int, counted: int) -> None:
        """Take that so much more of the whole is done, and so many units of it."""
        self._done += amount
        self._counted += counted
        now = time.monotonic()
        pace = self._counted / max(now - self._began, 1e-6)
        told = f"{self._counted:,} {self._unit}, {pace:,.0f} a second"
        self._progress.update(self._task, completed=self._done, told=told)
        if not self._live and now - self._told_at >= LINE_EVERY_S:
            self._told_at = now
            sys.stderr.write(f"{self._title}: {self._done / self._total:.0%}, {told}\n")
            sys.stderr.flush()

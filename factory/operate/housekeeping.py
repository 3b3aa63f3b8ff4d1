"""What requests leave behind is removed once it is old: working files, and logs of jobs."""

from __future__ import annotations

import logging
import shutil
from collections import deque
from datetime import datetime, timedelta
from pathlib import Path

from factory.errors import NotFound
from factory.ledger import Ledger
from factory.ledger.moments import now
from factory.ledger.records import UNDER_WAY
from factory.settings import Settings

log = logging.getLogger(__name__)

LOOKED_AT = timedelta(hours=1)


class Housekeeping:
    """Removes folders of requests that ended long ago, one at each call, since a pass must not wait for a slow disk.

    Args:
        ledger: Says when a request ended; what it does not know is left alone.
        settings: Name the folders, and say for how long they are kept.
    """

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger = ledger
        self._kept = (
            (settings.workspace("x").parent, timedelta(days=settings.working_files_days)),
            (settings.root / "logs", timedelta(days=settings.job_logs_days)),
        )
        self._found: deque[tuple[Path, timedelta]] = deque()
        self._looked: datetime | None = None

    def step(self) -> bool:
        """Remove one folder where one is due; return whether one was."""
        moment = now()
        if not self._found and (self._looked is None or not self._looked <= moment < self._looked + LOOKED_AT):
            self._looked = moment
            try:
                self._found.extend(self._old(moment))
            except OSError as error:
                log.warning("old folders were not looked for: %s", error)
        while self._found:
            folder, kept = self._found.popleft()
            if self._is_due(folder.name, moment - kept):
                shutil.rmtree(folder, onerror=_told)
                log.info("removed %s, which is older than %d days", folder, kept.days)
                return True
        return False

    def _old(self, moment: datetime) -> list[tuple[Path, timedelta]]:
        """Return folders in which nothing was put for long; what is in them may have changed since."""
        found = []
        for place, kept in self._kept:
            for folder in place.iterdir() if place.is_dir() else ():
                if folder.is_symlink() or not folder.is_dir():
                    continue
                if folder.stat().st_mtime < (moment - kept).timestamp():
                    found.append((folder, kept))
        return found

    def _is_due(self, request_id: str, before: datetime) -> bool:
        try:
            record = self._ledger.request(request_id)
        except NotFound:
            return False
        return record.state not in UNDER_WAY and record.updated < before


def _told(_: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    log.warning("%s was not removed: %s", path, error[1])

"""Which messages a consumer has in hand, on disk: after it has died the next one knows which of them may have ended it.

A message that ends whoever reads it comes again after each death.  What a dead
consumer had in hand is tried one by one from then on; what was in hand alone
when a consumer died is given up after the second time.  Messages are known by
their bodies, since not every broker gives them an id that stays.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

MOST_ENDED = 2
"""Consumers that one message may end."""
_KEPT = 1_000
_ENDED = "ended.json"


def fingerprint(body: bytes) -> str:
    """Return what a message is known by."""
    return sha256(body).hexdigest()[:24]


class InHand:
    """What this process has in hand, and what others had when they died.

    Args:
        folder: Shared by the consumers of a topic and group on this machine; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._mine = folder / f"{os.getpid()}-{psutil.Process().create_time():.3f}.json"
        self._held: set[str] = set()
        self._suspects: set[str] = set()
        self._ended = self._read(folder / _ENDED)
        for path in folder.glob("*-*.json"):
            if not _alive(path.stem):
                self._inherit(path)
        self._write_ended()

    def suspects(self, body: bytes) -> bool:
        """Return whether a consumer that had this message has died."""
        return fingerprint(body) in self._suspects or self.ended(body) > 0

    def ended(self, body: bytes) -> int:
        """Return how many consumers have died with this message alone in hand."""
        return self._ended.get(fingerprint(body), 0)

    def take(self, bodies: Iterable[bytes]) -> None:
        """Note that these messages are in hand now, and no others."""
        self._held = {fingerprint(body) for body in bodies}
        draft = self._mine.with_suffix(".draft")
        draft.write_text(json.dumps(sorted(self._held)), encoding="utf-8")
        draft.replace(self._mine)

    def drop(self) -> None:
        """Note that nothing is in hand: what was has ended nobody, and is no suspect any more."""
        self._mine.unlink(missing_ok=True)
        self._suspects -= self._held
        if self._held & self._ended.keys():
            # Other consumers may have written meanwhile.
            self._ended = {k: n for k, n in self._read(self._folder / _ENDED).items() if k not in self._held}
            self._write_ended()
        self._held = set()

    def _inherit(self, path: Path) -> None:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
        except (OSError, ValueError):
            return
        if len(held) == 1:
            self._ended[held[0]] = self._ended.get(held[0], 0) + 1
            logger.warning("a consumer has died with message %s alone in hand", held[0])
        self._suspects.update(held)

    def _write_ended(self) -> None:
        kept = dict(list(self._ended.items())[-_KEPT:])
        with suppress(OSError):
            draft = self._folder / f".{os.getpid()}.draft"
            draft.write_text(json.dumps(kept), encoding="utf-8")
            draft.replace(self._folder / _ENDED)

    @staticmethod
    def _read(path: Path) -> dict[str, int]:
        try:
            found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found


def _alive(name: str) -> bool:
    pid, _, created = name.partition("-")
    with suppress(psutil.Error, ValueError):
        return f"{psutil.Process(int(pid)).create_time():.3f}" == created
    return False

"""What services print, as lines of JSON in files that do not grow without end."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from factory.operate.stack.records import now

MOST_BYTES, KEPT = 10_000_000, 3
"""A file is put aside at this size; so many of them are kept."""
LONGEST_LINE = 65_536
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class JsonLog:
    """A file of JSON lines, written by several threads.

    Args:
        path: Where it is; files put aside are beside it, with a number.
        service: Name in each line.
        echo: Whether the lines are printed as well.
    """

    def __init__(self, path: Path, *, service: str, echo: bool = False) -> None:
        self._path, self._service, self._echo = path, service, echo
        self._lock = threading.Lock()
        self._file = self._opened()

    def note(self, message: str, **more: object) -> None:
        """Write a line of our own."""
        self._write({"time": now().isoformat(), "service": self._service, "message": message, **more})

    def follow(self, stream: IO[bytes]) -> threading.Thread:
        """Write what comes out of a stream, in a thread, until it is closed by all who hold it."""
        thread = threading.Thread(target=self._pump, args=(stream,), daemon=True, name=f"log of {self._service}")
        thread.start()
        return thread

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _pump(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(LONGEST_LINE):
                text = _COLOURS.sub("", line.decode(errors="replace")).rstrip()
                if text:
                    self._write(self._entry(text))

    def _entry(self, text: str) -> dict[str, Any]:
        given: Any = None
        if text.startswith("{"):
            with suppress(ValueError):
                given = json.loads(text)
        entry = {"time": now().isoformat(), "service": self._service}
        return {**entry, **given} if isinstance(given, dict) else {**entry, "message": text}

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, default=str)
        # A full disk must not end the supervisor.
        with self._lock, suppress(OSError):
            if self._file.closed:
                self._file = self._opened()
            self._file.write(f"{line}\n")
            self._file.flush()
            if self._file.tell() > MOST_BYTES:
                self._put_aside()
        if self._echo:
            with suppress(OSError):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()

    def _put_aside(self) -> None:
        self._file.close()
        for number in range(KEPT, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            with suppress(FileNotFoundError):
                older.replace(self._path.with_name(f"{self._path.name}.{number}"))
        self._file = self._opened()

    def _opened(self) -> IO[str]:
        return os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8")

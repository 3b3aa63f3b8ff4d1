"""Parts of bundles that are in memory once, however many bundles hold them.

Segments that take the pooled blend differ by weights and calibration, not by
models: a thousand of them need each model once.  A part is told from others by
the digests of its files, which are made anyway when a bundle is checked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class SharedParts:
    """Models and preparations by content, kept as long as a bundle holds them; safe to use from several threads.

    A part must not change once it is loaded, and must answer in several threads, as every loaded model does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: WeakValueDictionary[str, object] = WeakValueDictionary()
        self._under_way: dict[str, Future[object]] = {}

    def get(self, key: str, load: Callable[[], T]) -> T:
        """Return the part of a key, loading it where nobody holds it; who comes meanwhile waits for that load.

        Args:
            key: Digest of its files and what kind of part it is; equal keys are equal parts.
            load: Loads it; what it raises is raised to all who wait.
        """
        with self._lock:
            found = self._parts.get(key)
            if found is not None:
                return found  # type: ignore[return-value]
            other = self._under_way.get(key)
            if other is None:
                mine = self._under_way[key] = Future[object]()
        if other is not None:
            return other.result()  # type: ignore[return-value]
        try:
            part = load()
            with self._lock:
                self._parts[key] = part
            mine.set_result(part)
            return part
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._under_way[key]

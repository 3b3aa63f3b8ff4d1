"""Parts of bundles that are in memory once, however many bundles hold them.

Segments that take the pooled blend differ by weights and calibration, not by
models: a thousand of them need each model once.  A part is told from others by
the digests of its files, which are made anyway when a bundle is checked.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class SharedParts:
    """Models and preparations by content, kept as long as a bundle holds them; safe to use from several threads.

    A part must not change once it is loaded, and must answer in several threads, as every loaded model does.

    Attributes:
        n_loaded: How often a part was loaded.
    """

    def __init__(self) -> None:
        self.n_loaded = 0
        self._lock = threading.Lock()
        self._parts: WeakValueDictionary[str, object] = WeakValueDictionary()
        self._sizes: dict[str, float] = {}
        self._under_way: dict[str, Future[object]] = {}

    def size_mb(self, key: str) -> float:
        """Return the size of a part that somebody holds, in MB."""
        return self._sizes.get(key, 0.0)

    def get(self, key: str, load: Callable[[], T], *, size_mb: Callable[[], float]) -> T:
        """Return the part of a key, loading it where nobody holds it; who comes meanwhile waits for that load.

        Args:
            key: Digest of its files and what kind of part it is; equal keys are equal parts.
            load: Loads it; what it raises is raised to all who wait.
            size_mb: Says what it is counted with.
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
            part, size = load(), size_mb()
            with self._lock:
                self._parts[key], self._sizes[key] = part, size
                weakref.finalize(part, self._forget, key).atexit = False
                self.n_loaded += 1
            mine.set_result(part)
            return part
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._under_way[key]

    def _forget(self, key: str) -> None:
        if key not in self._parts:
            self._sizes.pop(key, None)

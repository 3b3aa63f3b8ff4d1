"""How often somebody may call: a bucket of calls for each caller, in the memory of this process.

The generic cell rate algorithm (ITU-T I.371) keeps one number a caller: when
its bucket will be full again.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MINUTE_S = 60.0
REMEMBERED = 10_000


class Buckets:
    """Buckets that hold the calls of a minute and fill up within one.

    Args:
        a_minute: Calls a minute.
        most: Callers that are remembered; those with a full bucket are forgotten first.
        clock: Seconds that never go back.
    """

    def __init__(self, a_minute: float, *, most: int = REMEMBERED, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = MINUTE_S / a_minute
        self._most, self._clock = most, clock
        self._full_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, caller: str) -> float:
        """Take a call out of a bucket; return 0, or the seconds until there is one where there is none."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at.get(caller, now), now) + self._pause_s
            if (wait_s := full_at - now - MINUTE_S) > 1e-6:
                return wait_s
            self._full_at[caller] = full_at
            if len(self._full_at) > self._most:
                self._forget(now)
            return 0.0

    def wait_s(self, caller: str) -> float:
        """Return the seconds until there is a call in a bucket, and take none."""
        with self._lock:
            now = self._clock()
            return max(max(self._full_at.get(caller, now), now) + self._pause_s - now - MINUTE_S, 0.0)

    def _forget(self, now: float) -> None:
        kept = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        # More callers than that at once are an attack; those that called first lose nothing but their count.
        self._full_at = dict(list(kept.items())[-self._most // 2 :]) if len(kept) > self._most // 2 else kept


class KnownSecrets:
    """Digests of secrets that were good a moment ago: others' failures at the same address do not shut them out."""

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, secret: str) -> None:
        """Remember one."""
        with self._lock:
            self._digests[digest_of(secret)] = None
            self._digests.move_to_end(digest_of(secret))
            if len(self._digests) > REMEMBERED:
                self._digests.popitem(last=False)

    def __contains__(self, secret: str) -> bool:
        with self._lock:
            return digest_of(secret) in self._digests


def digest_of(secret: str) -> bytes:
    """Return what is kept of a secret in memory."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()

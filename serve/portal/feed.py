"""News of requests for many listeners: one thread looks into the ledger for all of them.

It asks for the number of events of everything that is listened to, by one
query, and reads the new events of a request once however many listen to it;
its new trials likewise, where somebody wants to hear of them.
A listener that was told too little, or too late, reads what it missed itself:
what it has seen is a number, and the ledger's events are counted without a gap.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from factory.errors import FactoryError
from factory.ledger import Event, Ledger
from serve.portal.documents import LiveTrial

log = logging.getLogger(__name__)

LOOK_S = 0.3
"""Between two looks; a listener hears of an event within a second."""
MOST_LISTENERS = 1_000
MOST_KEPT = 500
"""Events that are kept for a listener that does not take them; then it has to read them itself."""


class Listener:
    """Listens to one request; made by :meth:`Feed.listen`, within the event loop that takes the news."""

    def __init__(self, request_id: str, *, trials: bool = False) -> None:
        self.request_id = request_id
        self.wants_trials = trials
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._count = 0
        self._events: list[Event] = []
        self._trials: list[LiveTrial] = []
        self._missed_trials = True

    async def wait(self, timeout_s: float) -> tuple[int, list[Event]]:
        """Return the number of the request's last event, and new events as far as they were told.

        Returns at the latest after ``timeout_s``, with a number of 0 where nothing was told.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return 0, []
        self._news.clear()
        count, events = self._count, self._events
        self._events = []
        return count, events

    @property
    def told_trials(self) -> bool:
        """Whether there is something to take by :meth:`trials`."""
        return self.wants_trials and (bool(self._trials) or self._missed_trials)

    def trials(self) -> tuple[list[LiveTrial], bool]:
        """Return the trials that were told since this was asked last, and whether there may be others before them."""
        told, missed = self._trials, self._missed_trials
        self._trials, self._missed_trials = [], False
        return told, missed

    def tell_trials(self, trials: Sequence[LiveTrial] | None) -> None:
        """Take trials from another thread; None where nobody knows which there are."""
        try:
            self._loop.call_soon_threadsafe(self._take_trials, trials)
        except RuntimeError:
            log.debug("request %s: its listener's loop is closed", self.request_id)

    def _take_trials(self, trials: Sequence[LiveTrial] | None) -> None:
        if trials is None or len(self._trials) + len(trials) > MOST_KEPT:
            self._trials, self._missed_trials = [], True
        else:
            self._trials += trials
        self._news.set()

    def tell(self, count: int, events: Sequence[Event]) -> None:
        """Take news from another thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, count, events)
        except RuntimeError:
            log.debug("request %s: its listener's loop is closed", self.request_id)

    def _take(self, count: int, events: Sequence[Event]) -> None:
        self._count = count
        self._events = [*self._events, *events] if len(self._events) + len(events) <= MOST_KEPT else []
        self._news.set()


class Feed:
    """Tells listeners of new events; its thread runs while there are any.

    Args:
        ledger: Returns the state.
    """

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Listener]] = {}
        self._seen: dict[str, int] = {}
        self._seen_trials: dict[str, datetime | None] = {}
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()
        self._sees = True

    @property
    def n_listeners(self) -> int:
        """How many listen."""
        with self._lock:
            return sum(len(those) for those in self._listeners.values())

    @property
    def sees(self) -> bool:
        """Whether the last look saw the ledger: one thread finds out for all streams that it is away, or back."""
        return self._sees

    def listen(self, request_id: str, *, trials: bool = False) -> Listener:
        """Begin to listen to a request, on wish also to its trials."""
        listener = Listener(request_id, trials=trials)
        with self._lock:
            self._listeners.setdefault(request_id, set()).add(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
                self._thread.start()
        return listener

    def leave(self, listener: Listener) -> None:
        """Stop listening."""
        with self._lock:
            those = self._listeners.get(listener.request_id, set())
            those.discard(listener)
            if not those:
                self._listeners.pop(listener.request_id, None)
                self._seen.pop(listener.request_id, None)
            if not any(one.wants_trials for one in those):
                self._seen_trials.pop(listener.request_id, None)

    def close(self) -> None:
        """Forget all listeners, which ends the thread."""
        with self._lock:
            self._listeners.clear()
            self._seen.clear()
            self._seen_trials.clear()
        self._woken.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._listeners:
                    self._thread = None
                    return
                ids = tuple(self._listeners)
            try:
                self._look(ids)
                self._look_at_trials()
                self._sees = True
            except FactoryError as error:
                if self._sees:
                    log.warning("listeners have to wait: %s", error.message)
                self._sees = False
            except Exception:
                log.exception("listeners were not told")
            self._woken.wait(LOOK_S)
            self._woken.clear()

    def _look(self, ids: Sequence[str]) -> None:
        """Tell of what is new since the last look, each request by itself."""
        ledger = self._ledger()
        for request_id, count in ledger.event_counts(ids).items():
            with self._lock:
                seen = self._seen.get(request_id)
            if seen == count:
                continue
            # At the first look nobody knows how much its listeners have seen: they are told the number only.
            events = [] if seen is None else ledger.events(request_id, after=seen, limit=MOST_KEPT)
            with self._lock:
                those = tuple(self._listeners.get(request_id, ()))
                if those:
                    self._seen[request_id] = count
            for listener in those:
                listener.tell(count, events)

    def _look_at_trials(self) -> None:
        """Tell of trials that are new since the last look, to those who want to hear of them."""
        with self._lock:
            wanted = {id_: [one for one in those if one.wants_trials] for id_, those in self._listeners.items()}
        ledger = self._ledger()
        for request_id, those in wanted.items():
            if not those:
                continue
            if request_id not in self._seen_trials:
                self._seen_trials[request_id] = ledger.last_trial_at(request_id)
                fresh = None
            else:
                found = ledger.trials_since(request_id, self._seen_trials[request_id])
                if not found:
                    continue
                self._seen_trials[request_id] = found[-1][0]
                fresh = [LiveTrial.of(trial, recorded) for recorded, trial in found]
            for listener in those:
                listener.tell_trials(fresh)

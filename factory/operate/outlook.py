"""Where a request would stand in the queue, told before it is in it: the decision of now, with one more that waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from factory.errors import ServiceFault
from factory.ledger import Ledger, OpenAttempt, Queued
from factory.operate.admission import Capacity, Running, TeamLoad, Waiting, decide
from factory.operate.jobs import Jobs
from factory.operate.quotes import Holding, Place, PlaceOf
from factory.spec import Quota, RequestState, VariantRequest

log = logging.getLogger(__name__)

DEFAULT_MEMORY_GB = 4.0
"""Of a request that names none: the recipes' default budget."""
AGE_S = 2.0
"""For which what was read of the queue and the cluster is good enough for an outlook."""
ANSWER_S = 1.0
"""That the first who asks waits for the cluster; it answers in 5 to 25 ms."""
_NEW = "(new)"


@dataclass(frozen=True)
class Queue:
    """The queue and the cluster at a moment, as admission looks at them."""

    capacity: Capacity
    waiting: tuple[Waiting, ...]
    running: tuple[Running, ...]
    teams: tuple[TeamLoad, ...]

    @classmethod
    def read(cls, ledger: Ledger, capacity: Capacity) -> Queue:
        """Read it.

        Raises:
            StorageFault: the ledger cannot be read.
        """
        waiting = tuple(waiting_of(queued) for queued in ledger.waiting())
        running = tuple(running_of(attempt) for attempt in ledger.open_attempts())
        return cls(capacity, waiting, running, loads(ledger))

    def place(self, request: VariantRequest, holding: Holding, expected_s: float, *, now: float) -> Place:
        """Return where a request would stand that came now.

        Args:
            request: The request.
            holding: What it would hold.
            expected_s: Seconds that it is expected to take.
            now: Seconds since 1970.
        """
        new = Waiting(
            id=_NEW,
            team=request.team,
            cpus=holding.cpus,
            gpus=holding.gpus,
            memory_gb=holding.memory_gb,
            priority=request.priority,
            since=now,
            expected_s=expected_s,
        )
        decision = decide(self.capacity, (*self.waiting, new), self.running, self.teams, now)
        if _NEW in decision.admit:
            position = 1 + decision.admit.index(_NEW)
            return Place(position=position, eta_s=0.0, sentence="starts at once, as the queue is now")
        held = decision.held[_NEW]
        # Its own is among them; whoever has no estimate is up_to_it all who have one.
        latest_s = float("inf") if held.eta_s is None else held.eta_s
        up_to_it = sum((float("inf") if eta_s is None else eta_s) <= latest_s for eta_s in decision.held.etas())
        return Place(position=len(decision.admit) + up_to_it, eta_s=held.eta_s, sentence=held.sentence)


class Outlook:
    """The queue as doors tell of it; nobody waits for a cluster that does not answer.

    What was read is good for some seconds. The cluster is asked in a thread, and its last answer stands meanwhile.

    Args:
        ledger: Returns the state.
        jobs: The cluster.
        clock: Seconds since 1970.
    """

    def __init__(self, ledger: Callable[[], Ledger], jobs: Jobs, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._jobs, self._clock = ledger, jobs, clock
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._asking: threading.Thread | None = None
        self._asked = self._read = float("-inf")
        self._capacity: Capacity | None = None
        self._answers = False
        self._queue: Queue | None = None

    def capacity(self) -> Capacity | None:
        """Return what the cluster has, as it told last; None where it never did."""
        asking = self._look()
        if asking is not None and self._capacity is None:
            asking.join(ANSWER_S)
        return self._capacity

    def answers(self) -> bool:
        """Return whether the cluster answers, waiting a second for it at most."""
        asking = self._look()
        if asking is not None:
            asking.join(ANSWER_S)
            return self._answers and not asking.is_alive()
        return self._answers

    def place_of(self) -> PlaceOf | None:
        """Return what tells a request's place, for a quote; None while the cluster does not answer."""
        capacity = self.capacity()
        return partial(self._place, capacity) if capacity is not None and self._answers else None

    def _place(self, capacity: Capacity, request: VariantRequest, holding: Holding, expected_s: float) -> Place:
        with self._reading:
            if self._queue is None or self._queue.capacity != capacity or self._is_old(self._read):
                self._queue = Queue.read(self._ledger(), capacity)
                self._read = self._clock()
            queue = self._queue
        return queue.place(request, holding, expected_s, now=self._clock())

    def _look(self) -> threading.Thread | None:
        """Return the thread that asks the cluster; None where what it told last is good enough."""
        with self._lock:
            if self._asking is None and self._is_old(self._asked):
                self._asking = threading.Thread(target=self._ask, name="capacity", daemon=True)
                self._asking.start()
            return self._asking

    def _is_old(self, moment: float) -> bool:
        return not 0 <= self._clock() - moment < AGE_S

    def _ask(self) -> None:
        try:
            capacity = self._jobs.capacity()
        except ServiceFault as fault:
            log.warning("capacity: %s", fault.message)
            capacity = None
        with self._lock:
            self._answers = capacity is not None
            self._capacity = capacity or self._capacity
            self._asked = self._clock()
            self._asking = None


def waiting_of(queued: Queued) -> Waiting:
    """Return a waiting request as admission sees it."""
    # By position, which is faster than by name: there may be 100,000 of them.
    id_, team, cpus, gpus, memory_gb, priority, since, expected_s, _, _ = queued
    asked_gb = DEFAULT_MEMORY_GB if memory_gb is None else memory_gb
    return Waiting(id_, team, cpus, gpus, asked_gb, priority, since.timestamp(), expected_s)


def running_of(attempt: OpenAttempt) -> Running:
    """Return an open attempt as admission sees it."""
    began = attempt.admitted_at.timestamp()
    return Running(
        id=attempt.request_id,
        team=attempt.team,
        cpus=attempt.cpus,
        gpus=attempt.gpus,
        memory_gb=DEFAULT_MEMORY_GB if attempt.memory_gb is None else attempt.memory_gb,
        priority=attempt.priority,
        since=began,
        expected_end=None if attempt.expected_s is None else began + attempt.expected_s,
        # What is being evaluated is nearly done, and cannot be gone on with in the middle.
        preemptible=attempt.request_state is not RequestState.EVALUATING,
        n_preempted=attempt.preemptions,
        stopping=attempt.wish is not None,
    )


def loads(ledger: Ledger) -> tuple[TeamLoad, ...]:
    """Return the teams as admission sees them: quota, use of this month, last ends."""
    used = {usage.team: usage.trial_s for usage in ledger.usage()}
    ends = ledger.last_ends()
    quotas = {team.name: team.quota for team in ledger.teams(archived=True)}
    return tuple(
        TeamLoad(name, quotas.get(name, Quota()), used.get(name, 0.0), *ends.get(name, (None, None)))
        for name in {*quotas, *used, *ends}
    )

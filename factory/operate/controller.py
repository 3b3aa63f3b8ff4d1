"""The controller: compares the ledger with Ray's jobs, and acts until they agree.

One pass looks at every open attempt, ends what is over, admits what may start
and submits it.  The ledger is the state: whatever the controller was about to
do when it was killed, the next pass finds it half done and goes on.  Several
controllers may run; one of them leads, and what another one that still
believes to lead would change is refused (:meth:`Ledger.fenced`).

``python -m factory.operate.controller`` runs one until it is told to end.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from factory.errors import Conflict, FactoryError, ServiceFault, StorageFault, SystemFault
from factory.ledger import Ledger, OpenAttempt
from factory.ledger.moments import now
from factory.ledger.records import ADOPTED
from factory.operate import json_logs
from factory.operate.admission import Decision, decide
from factory.operate.attending import Attendant, adopted_jobs
from factory.operate.batches import BatchAttendant
from factory.operate.housekeeping import Housekeeping
from factory.operate.jobs import JobInfo, Jobs
from factory.operate.outlook import Queue
from factory.settings import Settings, load_settings
from factory.spec import RequestState

log = logging.getLogger(__name__)

_T = TypeVar("_T")

LEAD = "controller"
LEASE_S = 15.0
MOST_PAUSE_S = 30.0
"""Longest pause after passes that failed: Ray, or the database, is then asked again."""
PATIENCE_S = 60.0
"""For which the ledger's database may be away until a pass gives up."""
AT_ONCE = 32
"""Attempts that one pass ends, and that it opens: each takes some 40 ms at Ray, and others are to be looked at too."""
MOST_REFUSALS = 3
"""Calls for single jobs that fail in one pass, until the cluster counts as gone."""
HELD_FRONT, HELD_TURN = 200, 300
"""Waiting requests whose reasons are looked at in each pass: the first ones, and so many of the others by turns."""
KEYS_KEPT = timedelta(days=7)
"""For which an idempotency key repeats its request: longer than whoever lost an answer over a weekend needs."""
KEYS_LOOKED_AT = timedelta(days=1)


@dataclass(frozen=True)
class Pass:
    """What one pass did.

    Attributes:
        led: Whether this controller leads; it does nothing else where it does not.
        admitted: Requests that were let in.
        ended: Attempts that were ended.
        preempted: Requests that were asked to make room.
        held: How many wait.
        more: Whether there is more to do at once.
        took_s: Seconds.
    """

    led: bool
    admitted: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    held: int = 0
    more: bool = False
    took_s: float = 0.0


@dataclass
class Controller:
    """Reconciles the ledger with the cluster.

    Args:
        ledger: The state.
        jobs: The cluster.
        settings: Of this process.
        holder: What it calls itself; no two processes may call themselves alike.
    """

    ledger: Ledger
    jobs: Jobs
    settings: Settings
    holder: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self._attendant = Attendant(self.ledger, self.jobs, self.settings)
        self._batches = BatchAttendant(self.ledger, self.jobs, self.settings, self._attendant.ledger_id)
        self._housekeeping = Housekeeping(self.ledger, self.settings)
        self._epoch: int | None = None
        self._renewed = 0.0
        self._n_refusals = 0
        self._turn = 0
        self._told: dict[str, str] = {}
        self._wrong: dict[str, str] = {}
        self._keys_forgotten: datetime | None = None

    def run(self, stopping: threading.Event) -> None:
        """Make one pass after the other until told to stop; what fails is tried again after a while."""
        pause_s = self.settings.controller_interval_s
        while not stopping.is_set():
            try:
                more = self.reconcile().more
                pause_s = self.settings.controller_interval_s
            except SystemFault as fault:
                more, pause_s = False, min(2 * pause_s, MOST_PAUSE_S)
                log.warning("%s; looking again in %.0f s", fault.message, pause_s)
            except Conflict as lost:
                more = False
                log.warning("%s", lost.message)
            stopping.wait(0.0 if more else pause_s)
        if self._epoch is not None:
            try:
                self.ledger.resign(LEAD, self._epoch)
            except StorageFault as fault:
                log.warning("the lead was not given back, and ends by itself: %s", fault.message)

    def reconcile(self) -> Pass:
        """Make one pass.

        Raises:
            ServiceFault: the cluster cannot be asked; nothing is lost, and the next pass goes on.
            StorageFault: the same of the ledger.
            Conflict: another controller has taken the lead meanwhile.
        """
        began = time.monotonic()
        epoch = self.ledger.lead(LEAD, self.holder, LEASE_S)
        if epoch != self._epoch:
            # Another one may have led meanwhile, and told otherwise.
            self._epoch, self._told = epoch, {}
        if epoch is None:
            return Pass(led=False)
        self._renewed, self._n_refusals = began, 0
        with self.ledger.fenced(LEAD, epoch):
            # Attempts first: what is submitted after the cluster was asked is then not taken for lost.
            attempts = self.ledger.open_attempts()
            jobs = self.jobs.list()
            ended = self._attend(attempts, jobs)
            for request_id in self.ledger.cancels_due():
                self._each(request_id, partial(self._cancel, request_id))
            decision = self._decide()
            admitted = [request_id for request_id in decision.admit[:AT_ONCE] if self._admit(request_id)]
            for one in decision.preempt:
                self._each(one.id, partial(self.ledger.request_preemption, one.id, for_id=one.for_id))
            self._hold(decision)
            self._forget_keys()
            # Last: a job that can be neither stopped nor forgotten keeps nobody waiting.
            for request_id, act in self._attendant.untidy({attempt.submission_id for attempt in attempts}, jobs):
                self._each(request_id, act)
            self._attend_batches(jobs)
            self._housekeeping.step()
        return Pass(
            led=True,
            admitted=tuple(admitted),
            ended=ended,
            preempted=tuple(one.id for one in decision.preempt),
            held=len(decision.held),
            more=len(ended) >= AT_ONCE or len(decision.admit) > AT_ONCE,
            took_s=time.monotonic() - began,
        )

    def _attend_batches(self, jobs: Mapping[str, JobInfo]) -> None:
        """Do what is to be done for batches; what the cluster refuses of them ends no pass of the requests."""
        self._n_refusals = 0
        try:
            for acts in (self._batches.acts, self._batches.untidy):
                for about, act in acts(jobs):
                    self._each(about, act)
        except ServiceFault as fault:
            log.warning("batches wait: %s", fault.message)

    def _attend(self, attempts: Sequence[OpenAttempt], jobs: Mapping[str, JobInfo]) -> tuple[str, ...]:
        """Look at all open attempts; return the submission ids of those that were ended."""
        came_with = [one.request_id for one in attempts if one.kind == ADOPTED]
        adopted = adopted_jobs(came_with, ledger=self.ledger)
        ended: list[str] = []
        # Those last that have yet to be submitted: where the cluster takes no job, the others have been looked at.
        for attempt in sorted(attempts, key=lambda one: one.submitted_at is None):
            job = jobs.get(adopted.get(attempt.request_id, attempt.submission_id))
            if self._each(attempt.request_id, partial(self._attendant.attend, attempt, job)):
                ended.append(attempt.submission_id)
                log.info("attempt %s has ended", attempt.submission_id, extra={"request": attempt.request_id})
            if len(ended) == AT_ONCE:
                break
        return tuple(ended)

    def _cancel(self, request_id: str) -> None:
        self.ledger.advance(request_id, RequestState.CANCELLED, "Cancelled.")

    def _admit(self, request_id: str) -> bool:
        """Open an attempt and submit its job; return whether it was opened."""
        attempt = self._each(request_id, partial(self._attendant.admitted, request_id))
        if attempt is not None:
            log.info("attempt %s is admitted", attempt.submission_id, extra={"request": request_id})
            self._each(request_id, partial(self._attendant.submit, attempt))
        return attempt is not None

    def _each(self, request_id: str, act: Callable[[], _T]) -> _T | None:
        """Do something for one request; what goes wrong with it keeps no other one waiting.

        Returns:
            What the act returned; None where something was in the way, which the next pass looks at again.

        Raises:
            ServiceFault: so much goes wrong at the cluster that it seems to be gone.
            StorageFault: the ledger cannot be used.
            Conflict: another controller leads.
        """
        self._keep_leading()
        with json_logs.about(request=request_id):
            try:
                done = act()
            except FactoryError as error:
                if self._concerns_all(error):
                    raise
                if self._wrong.get(request_id) != error.message:
                    log.warning("request %s: %s", request_id, error.message)
                self._wrong[request_id] = error.message
                return None
            except Exception:
                log.exception("request %s: this pass goes on without it", request_id)
                return None
        self._wrong.pop(request_id, None)
        return done

    def _concerns_all(self, error: FactoryError) -> bool:
        """Whether what went wrong with one request would go wrong with every other as well."""
        if isinstance(error, ServiceFault):
            self._n_refusals += 1
            return self._n_refusals >= MOST_REFUSALS
        if isinstance(error, Conflict):
            # Otherwise it was cancelled, made or taken up by hand meanwhile.
            return self.ledger.leader(LEAD) not in (self.holder, None)
        return isinstance(error, StorageFault)

    def _keep_leading(self) -> None:
        """Renew the lease in a pass that takes long, as with a cluster that answers slowly."""
        if time.monotonic() > self._renewed + LEASE_S / 3:
            if self.ledger.lead(LEAD, self.holder, LEASE_S) != self._epoch:
                raise Conflict("Another controller has taken the lead; this pass ends here.")
            self._renewed = time.monotonic()

    def _decide(self) -> Decision:
        capacity = self.jobs.capacity()
        with _uncollected():
            queue = Queue.read(self.ledger, capacity)
            return decide(queue.capacity, queue.waiting, queue.running, queue.teams, now().timestamp())

    def _hold(self, decision: Decision) -> None:
        """Keep why requests wait, where that changed: always of the first ones, of the others by turns."""
        names = list(decision.held)
        turn = names[HELD_FRONT:][self._turn : self._turn + HELD_TURN]
        self._turn = self._turn + HELD_TURN if turn else 0
        looked_at = {name: decision.held[name] for name in (*names[:HELD_FRONT], *turn)}
        self.ledger.hold({name: why for name, why in looked_at.items() if self._told.get(name) != why.sentence})
        waiting = set(names)
        self._told = {name: sentence for name, sentence in self._told.items() if name in waiting}
        self._told |= {name: why.sentence for name, why in looked_at.items()}

    def _forget_keys(self) -> None:
        """Forget old idempotency keys once a day; at once where the clock was set back since."""
        moment, before = now(), self._keys_forgotten
        if before is None or not before <= moment < before + KEYS_LOOKED_AT:
            n_forgotten = self.ledger.forget_keys(moment - KEYS_KEPT)
            self._keys_forgotten = moment
            if n_forgotten:
                log.info("forgot %d old idempotency keys", n_forgotten)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let nothing be collected meanwhile: a long queue is many small objects in no cycle, and all are looked at."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def main() -> int:
    """Run a controller until the process is told to end (SIGTERM or SIGINT); return its exit code."""
    from factory.operate.ray_jobs import RayJobs
    from factory.search.cluster import ray_token

    json_logs.configure()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = load_settings()
        with (
            Ledger.open(settings.ledger, patience_s=PATIENCE_S) as ledger,
            RayJobs(settings.dashboard, token_path=ray_token(settings.root)) as jobs,
        ):
            Controller(ledger, jobs, settings).run(stopping)
    except FactoryError as error:
        log.error("%s %s", error.message, error.hint)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The controller against everything that can go wrong, in any order (Hypothesis, stateful).

Teams submit, cancel and retry; jobs succeed, fail, hang and are lost; the
cluster goes away, comes back and forgets; clocks are set back; controllers are
killed at any call, are refused at any call, or are overtaken by another one at
any call.  What is promised holds after every step, and when the faults stop
everything comes to its end.

``MODEL_EXAMPLES=2000 pytest tests/operate/test_controller_model.py`` looks further than the suite does, at random.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import Context
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from factory.errors import Conflict, NotFound, ServiceFault, StorageFault, SystemFault
from factory.ledger import RequestRecord
from factory.ledger.records import BROKEN_OFF, UNDER_WAY, steps_between
from factory.spec import NEXT_STATES, Quota, RequestState
from factory.testing.controlled import Course, SimulatedFactory

from .modelled import (
    ANN,
    CAPACITY,
    MOST_OF_FREE,
    document,
    faults_are_whose_they_are,
    no_more_is_held_than_there_is,
    template,
)

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))
MOST_REQUESTS = 7
ENOUGH_PASSES = 400
"""Of ten seconds each, in which everything has come to its end once the faults stopped."""
PASS_S = 10.0

endings = st.sampled_from(
    ["registered", "rejected", "user_fault", "system_fault", "system_fault", "crash", "quits", "hangs"]
)
courses = st.builds(Course, ending=endings, trials=st.integers(1, 4), trial_s=st.sampled_from([1.0, 8.0, 60.0, 200.0]))
plans = st.lists(courses, max_size=4)
some = st.integers(0, 10_000)
"""Picks one of those that there are."""
teams = st.sampled_from(["sure", "free", "free"])


CALLS = {"lead", "open_attempts", "list", "admit", "mark_submitted", "mark_running", "end_attempt", "fail", "advance"}
CALLS |= {"request_preemption", "waiting", "capacity", "hold", "submit", "stop", "delete", "logs"}
"""Those at which a controller is meddled with: all that change something, and those between which it matters."""


class Killed(BaseException):
    """The process of a controller is no more."""


class Model(RuleBasedStateMachine):
    @initialize(far=st.booleans(), first=st.lists(plans, min_size=3, max_size=3))
    def begin(self, far: bool, first: list[list[Course]]) -> None:
        self.folder = Path(mkdtemp(prefix="factory-model-"))
        path = self.folder / "ledger.db"
        shutil.copy(template(), path)
        self.plans: dict[str, list[Course]] = {}
        self.world = SimulatedFactory(
            f"sqlite:///{path}", self.folder, capacity=CAPACITY, course=self.course, far=far
        ).__enter__()
        self.ledger, self.jobs = self.world.ledger, self.world.jobs
        self.ledger.create_team("sure", quota=Quota(cpus=2, gpus=1, memory_gb=12), by=ANN)
        self.ledger.create_team("free", quota=Quota(requests=MOST_OF_FREE), by=ANN)
        self.controllers = [self.world.controller() for _ in range(2)]
        self.ids: list[str] = []
        self.wished: set[str] = set()
        self.stopped: set[str] = set()
        self.seen: dict[str, RequestState] = {}
        self.events_seen: dict[str, int] = {}
        self.by_hand: list[Any] = []
        self.refusing: set[str] = set()
        for plan, team in zip(first, ("free", "free", "sure"), strict=True):
            self.submit(team, 1.0, 0, "normal", 30.0, plan)

    def course(self, request_id: str, number: int) -> Course:
        plan = self.plans.get(request_id, [])
        return plan[number - 1] if number <= len(plan) else Course(trials=max((c.trials for c in plan), default=2))

    # --- what people do --------------------------------------------------------

    @rule(
        team=teams,
        cpus=st.sampled_from([1.0, 1.0, 2.0, 3.0]),
        gpus=st.sampled_from([0, 0, 0, 1]),
        priority=st.sampled_from(["low", "normal", "high"]),
        expected_s=st.sampled_from([None, 30.0, 500.0]),
        plan=plans,
    )
    @precondition(lambda self: len(self.ids) < MOST_REQUESTS)
    def submit(
        self, team: str, cpus: float, gpus: int, priority: str, expected_s: float | None, plan: list[Course]
    ) -> None:
        request_id = f"r-{len(self.ids)}"
        self.plans[request_id] = plan
        order = document(team, gpus=gpus, priority=priority)
        self.ledger.create_request(
            order, request_id=request_id, door="api", cpus=cpus, expected_s=expected_s, queued="It waits.", by=ANN
        )
        self.ids.append(request_id)

    @rule(team=teams, plan=plans)
    @precondition(lambda self: len(self.ids) < MOST_REQUESTS and self.jobs.reachable)
    def submit_past(self, team: str, plan: list[Course]) -> None:
        job = f"past-{len(self.ids)}"
        self.plans[f"r-{job}"] = plan
        with self.faults():
            self.world.past(job, document(team).model_dump(mode="json", by_alias=True))
        self.world.advance(3)
        self.ids.append(f"r-{job}")

    @rule(which=some)
    @precondition(lambda self: self.ids)
    def cancel(self, which: int) -> None:
        request_id = self.ids[which % len(self.ids)]
        with suppress(Conflict, NotFound):
            self.ledger.request_cancel(request_id, by=ANN)
            self.wished.add(request_id)

    @rule(which=some)
    @precondition(lambda self: self.ids and len(self.ids) < MOST_REQUESTS)
    def retry(self, which: int) -> None:
        ended = [record.id for record in reversed(self.ledger.requests()) if record.state in BROKEN_OFF]
        if ended:
            request_id, of = f"r-{len(self.ids)}", ended[which % len(ended)]
            order = self.ledger.request(of).request
            self.ledger.create_request(order, request_id=request_id, retry_of=of, door="cli", queued="Again.", by=ANN)
            self.ids.append(request_id)

    @rule(which=some)
    @precondition(lambda self: self.ids)
    def work_by_hand(self, which: int) -> None:
        """Somebody runs ``factory run ID`` on a shell, and interrupts it after a while."""
        with suppress(Conflict, NotFound):
            self.by_hand.append(self.ledger.claim(self.ids[which % len(self.ids)]))

    @rule()
    @precondition(lambda self: self.by_hand)
    def interrupt_by_hand(self) -> None:
        self.by_hand.pop().release()

    # --- what controllers do -----------------------------------------------------

    @rule(which=st.integers(0, 1), passes=st.integers(1, 4))
    def look(self, which: int, passes: int) -> None:
        for _ in range(passes):
            self.world.advance(1)
            with self.faults():
                self.controllers[which].reconcile()

    def faults(self) -> AbstractContextManager[None]:
        """What a pass may raise now: a fault of the cluster, where there is one."""
        return suppress(ServiceFault) if self.refusing or not self.jobs.reachable else nullcontext()

    @rule(which=st.integers(0, 1), at=st.integers(1, 9), after=st.booleans())
    def killed(self, which: int, at: int, after: bool) -> None:
        """A controller is killed at one of its calls; another process takes its place."""

        def die(_name: str) -> None:
            raise Killed

        with suppress(Killed, ServiceFault):
            self.meddled(which, at, after=after, do=die)
        self.controllers[which] = self.world.controller()

    @rule(which=st.integers(0, 1), at=st.integers(1, 9), after=st.booleans())
    def refused(self, which: int, at: int, after: bool) -> None:
        """A call fails, with its effect or without."""

        def refuse(name: str) -> None:
            raise ServiceFault("Gone.") if hasattr(self.jobs, name) else StorageFault("Gone.")

        with suppress(SystemFault):
            self.meddled(which, at, after=after, do=refuse)

    @rule(which=st.integers(0, 1), at=st.integers(1, 9), after=st.booleans(), lost=st.booleans(), urgent=plans)
    def overtaken(self, which: int, at: int, after: bool, lost: bool, urgent: list[Course]) -> None:
        """A controller is held up so long that another one takes the lead and makes passes meanwhile."""
        other = self.controllers[1 - which]

        def sleep(_name: str) -> None:
            if lost:
                self.restart()
            if len(self.ids) < MOST_REQUESTS:
                self.submit("sure", 2.0, 0, "high", None, urgent)
            for _ in range(3):
                self.world.advance(16)
                with suppress(ServiceFault):
                    other.reconcile()

        with suppress(Conflict, ServiceFault):
            self.meddled(which, at, after=after, do=lambda name: Context().run(sleep, name))

    @rule(
        which=st.integers(0, 1), at=st.integers(1, 9), seconds=st.sampled_from([2, 6]), of=some, cancels=st.booleans()
    )
    def meanwhile(self, which: int, at: int, seconds: int, of: int, cancels: bool) -> None:
        """Drivers and people go on in the middle of a pass, which is nothing that may keep it from its end."""

        def others(_name: str) -> None:
            self.world.advance(seconds)
            if cancels and self.ids:
                self.cancel(of)

        with self.faults():
            self.meddled(which, at, after=True, do=lambda name: Context().run(others, name))

    def meddled(self, which: int, at: int, *, after: bool, do: Any) -> None:
        calls = 0

        def meddle(name: str, done: bool) -> None:
            nonlocal calls
            if done is after and name in CALLS:
                calls += 1
                if calls == at:
                    do(name)

        self.world.advance(1)
        controller = self.world.controller(meddle)
        controller.holder = self.controllers[which].holder
        controller.reconcile()

    # --- what goes wrong beside them ----------------------------------------------

    @rule(seconds=st.sampled_from([2.0, 10.0, 40.0, 100.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(which=some, how=st.sampled_from(["kill", "lose"]))
    def job_dies(self, which: int, how: str) -> None:
        if alive := sorted(self.jobs.alive):
            getattr(self.jobs, how)(alive[which % len(alive)])
            self.world.advance(0)

    @rule(which=some)
    @precondition(lambda self: self.jobs.reachable)
    def job_is_stopped_by_hand(self, which: int) -> None:
        if alive := sorted(self.jobs.alive):
            name = alive[which % len(alive)]
            self.stopped.add(f"r-{name}")
            with self.faults():
                self.jobs.stop(name)

    @rule(reachable=st.booleans())
    def cluster_goes_or_comes(self, reachable: bool) -> None:
        self.jobs.reachable = reachable

    @rule(
        call=st.sampled_from(["submit", "stop", "info", "logs", "delete"]), lost=st.booleans(), times=st.integers(1, 9)
    )
    def cluster_refuses(self, call: str, lost: bool, times: int) -> None:
        self.jobs.fail_next(call, answer_lost=lost, times=times)
        self.refusing.add(call)

    @rule()
    def restart(self) -> None:
        self.jobs.restart()
        # What it forgets it may be told again.
        self.jobs.starts.clear()
        self.world.advance(0)

    @rule(seconds=st.sampled_from([20.0, 3600.0]))
    def clock_is_set_back(self, seconds: float) -> None:
        self.world.clock_off -= timedelta(seconds=seconds)

    # --- what is promised -----------------------------------------------------------

    @invariant()
    def what_is_promised_holds(self) -> None:
        self.nothing_runs_twice()
        open_ = self.ledger.open_attempts()
        no_more_is_held_than_there_is(open_)
        taken = {attempt.request_id for attempt in open_} | {queued.id for queued in self.ledger.waiting()}
        taken |= set(self.ledger.cancels_due())
        for record in self.ledger.requests():
            self.no_request_is_lost(record, taken)
            if self.events_seen.get(record.id) != record.n_events:
                self.events_seen[record.id] = record.n_events
                faults_are_whose_they_are(record, self.ledger.attempts(record.id))

    def nothing_runs_twice(self) -> None:
        assert max(self.jobs.starts.values(), default=0) <= 1, self.jobs.starts
        assert max(self.world.drivers.working(self.jobs).values(), default=0) <= 1
        assert max(self.world.drivers.fits.values(), default=0) <= 1, self.world.drivers.fits

    def no_request_is_lost(self, record: RequestRecord, taken: set[str]) -> None:
        if record.state in UNDER_WAY:
            assert record.id in taken or record.driver or record.not_before, f"{record.id} is lost in {record.state}"
        before = self.seen.get(record.id, RequestState.RECEIVED)
        assert steps_between(before, record.state) is not None, f"{before} -> {record.state}"
        self.seen[record.id] = record.state
        if record.state is RequestState.CANCELLED:
            assert record.id in self.wished | self.stopped, "nobody wanted it to be cancelled"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.everything_comes_to_its_end()
        finally:
            for claim in self.by_hand:
                claim.release()
            self.world.__exit__()
            shutil.rmtree(self.folder)

    def everything_comes_to_its_end(self) -> None:
        self.jobs.reachable = True
        for call in self.refusing:
            self.jobs.fail_next(call, times=0)
            self.jobs.fail_next(call, answer_lost=True, times=0)
        for claim in self.by_hand:
            claim.release()
        controller = self.world.controller()
        n_quiet = 0
        for _ in range(ENOUGH_PASSES):
            self.world.advance(PASS_S)
            controller.reconcile()
            over = not self.ledger.open_attempts() and all(r.state not in UNDER_WAY for r in self.ledger.requests())
            n_quiet = n_quiet + 1 if over else 0
            if n_quiet > 2:
                break
        records = self.ledger.requests()
        assert all(record.state not in UNDER_WAY for record in records), {
            record.id: (record.state, [a.outcome for a in self.ledger.attempts(record.id)], record.held)
            for record in records
            if record.state in UNDER_WAY
        }
        assert not self.ledger.open_attempts()
        assert not self.jobs.alive
        for record in records:
            assert self.ledger.verify_events(record.id) is None
            states = [event.state for event in self.ledger.events(record.id)]
            for state, following in pairwise(states):
                assert state is following or following in NEXT_STATES[state], states
        self.what_is_promised_holds()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=EXAMPLES or 20,
    stateful_step_count=40 if EXAMPLES else 20,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)

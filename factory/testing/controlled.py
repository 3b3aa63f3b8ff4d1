"""A whole factory in memory: the real ledger and controller, simulated jobs and drivers, in one time of its own.

A driver here does to the ledger what ``factory run ID`` does, and nothing
else: it claims, moves the request on, records trials, looks at what it is
asked to do.  So hours of many teams pass in a second, with every fault on
demand, and each run is the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextvars import Context
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from factory.errors import Conflict, InvalidData, Preempted, ServiceFault
from factory.ledger import Claim, Ledger, moments
from factory.operate.admission import Capacity
from factory.operate.attending import FAULT
from factory.operate.controller import Controller
from factory.operate.jobs import JobSpec
from factory.settings import Settings
from factory.spec import RequestState, Trial, TrialState, VariantRequest
from factory.testing.jobs import SMALL, FakeJobs, Script

Ending = Literal["registered", "rejected", "user_fault", "system_fault", "crash", "quits", "hangs"]
Work = Generator[float, None, int]
"""What a process does: it yields the seconds until it does the next thing, and returns its exit code."""

LOOK_S = 2.0
"""Between two looks of a simulated process at what it is to do next."""
LONGEST_S = 1200.0
"""Until when a simulated process does anything; it hangs from then on."""
RENEW_S = 20.0
"""Between two renewals of a claim."""
_MADE = (RequestState.REGISTERED, RequestState.SERVING)


@dataclass(frozen=True)
class Course:
    """How the work on a request goes in one attempt.

    Attributes:
        ending: What becomes of it: ``system_fault`` tells its fault, ``crash`` is killed by a signal, ``quits`` ends
            with exit code 0 and nothing done, ``hangs`` does not end by itself and looks at nothing.
        trials: That the search needs, those of earlier attempts included; a fault comes after one more of them.
        trial_s: How long each takes.
        finish_s: How long the evaluation takes.
    """

    ending: Ending = "registered"
    trials: int = 2
    trial_s: float = 3.0
    finish_s: float = 2.0


class Drivers:
    """The processes of simulated jobs.

    Args:
        ledger: The state, as they see it.
        course: Says how an attempt goes, by the request's id and the attempt's number.
        far: Whether they run on other hosts: the claim of one that died there holds until its lease is over.

    Attributes:
        fits: How often each trial was fitted to its end, by request and number.
    """

    def __init__(self, ledger: Ledger, course: Callable[[str, int], Course], *, far: bool = False) -> None:
        self.fits: Counter[tuple[str, int]] = Counter()
        self._ledger, self._course, self._far = ledger, course, far
        self._processes: dict[str, Work] = {}
        self._claimed: dict[str, str] = {}

    def working(self, jobs: FakeJobs) -> Counter[str]:
        """Return the requests that are worked on now, each with the number of processes that do."""
        return Counter(request_id for job, request_id in self._claimed.items() if job in jobs.alive)

    def script(self, spec: JobSpec) -> Script:
        """Return what a job does: one of the controller, one that came past it, or one that is not the factory's."""
        if spec.env.keys().isdisjoint({"FACTORY_ATTEMPT", "REQUEST"}):
            return Script()
        if "FACTORY_ATTEMPT" in spec.env:
            work = self._run(spec.submission_id, spec.metadata["request"], spec.env["FACTORY_ATTEMPT"])
        else:
            work = self._wait_for_admission(spec.submission_id, json.loads(spec.env["REQUEST"]))
        self._processes[spec.submission_id] = work
        look = _Process(work).look
        steps = tuple((n * LOOK_S, look) for n in range(int(LONGEST_S / LOOK_S)))
        return Script(start_s=1.0, run_s=10 * LONGEST_S, steps=steps)

    def bury(self, jobs: FakeJobs) -> None:
        """Let go of what dead processes of this host had claimed: the ledger sees at once that they are no more."""
        if not self._far:
            for job in self._processes.keys() - jobs.alive:
                Context().run(self._processes.pop(job).close)

    def close(self) -> None:
        """End all processes."""
        for work in self._processes.values():
            work.close()
        self._processes.clear()

    def _wait_for_admission(self, job: str, document: Mapping[str, Any]) -> Work:
        order = VariantRequest.model_validate(document)
        request_id = self._ledger.create_request(
            order, request_id=f"r-{job}", door="job", queued="It waits.", job=job
        ).id
        while True:
            record = self._ledger.request(request_id)
            if record.ended or record.state in _MADE:
                return 0
            open_ = [attempt for attempt in self._ledger.attempts(request_id) if attempt.ended_at is None]
            if open_ and open_[0].kind == "adopted":
                return (yield from self._run(job, request_id, open_[0].submission_id))
            yield 2 * LOOK_S

    def _run(self, job: str, request_id: str, attempt: str) -> Work:
        """Do what ``factory run ID`` does in a job of the controller."""
        try:
            with self._ledger.claim(request_id) as claim:
                self._claimed[job] = request_id
                try:
                    return (yield from self._make(claim, self._course(request_id, int(attempt.rpartition("-")[2]))))
                finally:
                    del self._claimed[job]
        except Conflict:
            # Another process works on it, or it came to its end meanwhile.
            return Conflict.exit_code

    def _make(self, claim: Claim, course: Course) -> Work:
        ledger, request_id = self._ledger, claim.record.id
        ledger.reach(request_id, RequestState.PREPARING, "Reading the data.")
        yield from _for(1.0, claim)
        ledger.reach(request_id, RequestState.SEARCHING, "Searching.")
        while (number := len(ledger.trials(request_id))) < course.trials:
            if course.ending == "hangs":
                yield from _for(10 * LONGEST_S, claim)
            if (wish := ledger.wish(request_id)) is not None:
                if wish == "cancel":
                    ledger.advance(request_id, RequestState.CANCELLED, "Cancelled.")
                    return Conflict.exit_code
                ledger.note(request_id, "preempted", "Stopped to make room.")
                return Preempted.exit_code
            yield from _for(course.trial_s, claim)
            self.fits[request_id, number] += 1
            ledger.record_trial(request_id, _trial(number, course.trial_s))
            if course.ending not in ("registered", "rejected"):
                return self._break_off(request_id, course.ending)
        ledger.reach(request_id, RequestState.EVALUATING, "Scoring.")
        yield from _for(course.finish_s, claim)
        end = RequestState.REJECTED if course.ending == "rejected" else RequestState.REGISTERED
        ledger.reach(request_id, end, "It is made.")
        return 3 if end is RequestState.REJECTED else 0

    def _break_off(self, request_id: str, ending: Ending) -> int:
        if ending == "user_fault":
            fault = InvalidData("The target has one class only.", hint="Give rows of both.")
            self._ledger.fail(request_id, fault)
            return fault.exit_code
        if ending == "system_fault":
            gone = ServiceFault("MLflow does not answer.", hint="Start it.")
            self._ledger.note(request_id, FAULT, gone.message, payload={"code": gone.code, "hint": gone.hint})
            return gone.exit_code
        return 0 if ending == "quits" else -9


class _Process:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._left_s = 0.0

    def look(self) -> int | None:
        """Do the next thing where it is time; return the exit code at the end."""
        self._left_s -= LOOK_S
        if self._left_s <= 0:
            try:
                # In a context of its own, as another process is: no fence of a controller holds for it.
                self._left_s = Context().run(next, self._work)
            except StopIteration as end:
                return int(end.value)
        return None


def _for(seconds: float, claim: Claim) -> Generator[float, None, None]:
    while seconds > 0:
        claim.renew()
        yield min(seconds, RENEW_S)
        seconds -= RENEW_S


def _trial(number: int, cost_s: float) -> Trial:
    return Trial(number=number, family="lightgbm", parameters={}, state=TrialState.SUCCEEDED, score=0.5, cost_s=cost_s)


class SimulatedFactory:
    """A ledger, a cluster and drivers in one time; a context manager that gives the ledger its own time back.

    Args:
        url: Of the ledger.
        home: FACTORY_HOME.
        capacity: Of the cluster.
        course: As of :class:`Drivers`; every request is made at the first try if not given.
        far: As of :class:`Drivers`.

    Attributes:
        clock_off: How far the clock of this host is off; the cluster has its own.
    """

    def __init__(
        self,
        url: str,
        home: Path,
        *,
        capacity: Capacity = SMALL,
        course: Callable[[str, int], Course] = lambda _id, _number: Course(),
        far: bool = False,
    ) -> None:
        self.settings = Settings(home=home, ledger_url=url)
        self.ledger = Ledger.open(url)
        self.drivers = Drivers(self.ledger, course, far=far)
        self.jobs = FakeJobs(self.drivers.script, capacity=capacity)
        self.clock_off = timedelta()
        self._controllers = 0

    def __enter__(self) -> Self:
        self._clock = moments.clock
        moments.clock = lambda: self.jobs.now + self.clock_off
        return self

    def __exit__(self, *_: object) -> None:
        self.drivers.close()
        self.ledger.close()
        moments.clock = self._clock

    def controller(self, meddle: Meddle | None = None) -> Controller:
        """Return a controller like another process's; ``meddle`` is told every call that it makes."""
        self._controllers += 1
        holder = f"controller-{self._controllers}"
        if meddle is None:
            return Controller(self.ledger, self.jobs, self.settings, holder=holder)
        ledger: Any = Meddled(self.ledger, meddle)
        return Controller(ledger, Meddled(self.jobs, meddle), self.settings, holder=holder)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.jobs.advance(seconds)
        self.drivers.bury(self.jobs)

    def past(self, job: str, document: Mapping[str, object]) -> None:
        """Submit a job past the controller, as ``ray job submit -- factory run request.yaml`` does."""
        self.jobs.submit(JobSpec(job, ("factory", "run", "request.yaml"), env={"REQUEST": json.dumps(document)}))


Meddle = Callable[[str, bool], None]
"""Told the name of each call twice: before it, and after its effect (True). What it raises, the caller gets."""


class Meddled:
    """A ledger or a cluster each call of which somebody may meddle with."""

    def __init__(self, of: object, meddle: Meddle) -> None:
        self._of, self._meddle = of, meddle

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if name == "fenced" or not callable(found):
            return found

        def call(*arguments: object, **named: object) -> object:
            self._meddle(name, False)
            answer = found(*arguments, **named)
            self._meddle(name, True)
            return answer

        return call

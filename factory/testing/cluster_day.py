"""A day of a cluster that many teams share, played through in seconds: what admission decides, and what comes of it.

Event-driven and seeded.  Bursty teams send requests by a Poisson process with
a daily shape, several at a time; busy ones always have a queue.  Sizes and
durations have heavy tails, estimates are off, a preempted search runs on until
its trial has ended, needs a moment to start again, and loses nothing else.  Nothing of it knows how
decisions are made: :func:`factory.operate.admission.decide` is one policy,
:func:`fifo` another.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from factory.operate.admission import Capacity, Decision, Held, HeldBack, Priority, Rule, Running, TeamLoad, Waiting
from factory.operate.admission.terms import dominant_share, fits, minus
from factory.spec import Quota

Policy = Callable[[Capacity, Sequence[Waiting], Sequence[Running], Sequence[TeamLoad], float], Decision]
Mix = Literal["cpus", "memory", "gpus", "large"]

HOUR_S = 3600.0
STOP_S = (5.0, 90.0)
"""A search that was told to stop runs on until its trial has ended."""
RESTART_S = 20.0
"""From an admission to the first new trial of a search that goes on."""


@dataclass(frozen=True)
class Crew:
    """A team and the way it works.

    Attributes:
        mix: What its requests need much of.
        backlog: Requests that it always has waiting; 0 of a bursty team.
        bursts_an_hour: Of a bursty team, at the busiest time of the day.
    """

    name: str
    mix: Mix = "cpus"
    quota: Quota = field(default_factory=Quota)
    backlog: int = 0
    bursts_an_hour: float = 0.0


class Job(NamedTuple):
    """A request, and how long it really runs."""

    request: Waiting
    actual_s: float


@dataclass(frozen=True)
class Day:
    """A cluster, who uses it, and for how long.

    Attributes:
        jobs: What comes besides the crews' own requests, each at its ``since``.
    """

    capacity: Capacity
    crews: tuple[Crew, ...]
    jobs: tuple[Job, ...] = ()
    hours: float = 24.0
    interval_s: float = 30.0
    seed: int = 0


class Spell(NamedTuple):
    """One time that a request waited, from then on until it started.

    Attributes:
        n_before: Requests of its own line that started meanwhile.
        told: Rule and estimate as it was first told; None where it started at once.
    """

    id: str
    team: str
    since: float
    started: float
    n_before: int
    told: Held | None

    @property
    def wait_s(self) -> float:
        """How long it waited."""
        return self.started - self.since


@dataclass
class Course:
    """What came of a day.

    Attributes:
        times: Of the decisions; each row of ``shares`` holds from one to the next.
        shares: Team → its dominant share after each decision.
        used: The largest share of any resource in use after each decision.
        spells: Each wait that has ended.
        preempted: Request → how often it made room.
        refused: Requests that can never start.
        n_done: Requests that ran to their end.
        n_lines: Most lines that waited at one time.
        longest_s: Longest time from an admission until the resources were free.
        largest_share: The largest dominant share that a request asked for.
        longest_gap_s: Longest time that a line waited without one of it starting.
        end: When the last request had ended.
    """

    times: list[float] = field(default_factory=list)
    shares: dict[str, list[float]] = field(default_factory=dict)
    used: list[float] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    preempted: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    n_done: int = 0
    n_lines: int = 0
    longest_s: float = 0.0
    largest_share: float = 0.0
    longest_gap_s: float = 0.0
    end: float = 0.0

    def averages(self, team: str, *, window_s: float, until_s: float) -> list[float]:
        """Return a team's dominant share, averaged over windows one after the other."""
        return _averages(self.times, self.shares[team], window_s=window_s, until_s=until_s)

    def utilisation(self, *, until_s: float) -> float:
        """Return how much of its scarcest resource the cluster used on average."""
        return _averages(self.times, self.used, window_s=until_s, until_s=until_s)[0]


def simulate(day: Day, policy: Policy) -> Course:
    """Play a day through; after its end nothing new comes, and what is left runs to its end."""
    return _Cluster(day, policy).run()


def fifo(
    capacity: Capacity,
    waiting: Sequence[Waiting],
    running: Sequence[Running],
    teams: Sequence[TeamLoad],  # noqa: ARG001
    now: float,  # noqa: ARG001
) -> Decision:
    """Start requests in the order in which they came, whoever they are of, as long as the next one fits."""
    free: Sequence[float] = capacity
    for job in running:
        free = minus(free, job.need)
    admit = []
    for request in sorted(waiting, key=lambda r: (r.since, r.id)):
        if not fits(request.need, free):
            break
        free = minus(free, request.need)
        admit.append(request.id)
    started = set(admit)
    held = {r.id: Held(Rule.ORDER, "others came first", None) for r in waiting if r.id not in started}
    return Decision(tuple(admit), (), HeldBack(held))


def busy_day(seed: int = 0, *, n_teams: int = 50, n_busy: int = 10, hours: float = 24.0) -> Day:
    """Return a day of bursty teams, a quarter of them with a guarantee, and some that always have work.

    Of the busy ones every third asks for GPUs and every third for much memory; their queues differ in length.  One
    bursty team asks for a quarter of the cluster at a time.
    """
    mixes: tuple[Mix, ...] = ("cpus", "memory", "gpus")
    busy = [Crew(f"busy{n:02d}", mixes[n % 3], backlog=4 + 8 * (n // 3)) for n in range(n_busy)]
    quotas = (Quota(), Quota(cpus=16), Quota(requests=10), Quota())
    bursty = [
        Crew(f"team{n:02d}", "gpus" if n % 8 == 0 else "cpus", quotas[n % 4], bursts_an_hour=2.5)
        for n in range(n_teams - n_busy - 1)
    ]
    bursty.append(Crew("large", "large", bursts_an_hour=1.0))
    return Day(Capacity(cpus=400, gpus=64, memory_gb=1600), (*busy, *bursty), hours=hours, seed=seed)


class _Source:
    """The requests of one team; the same ones whatever the policy."""

    def __init__(self, crew: Crew, seed: int) -> None:
        self.crew = crew
        self._rng = random.Random(f"{seed}/{crew.name}")  # noqa: S311
        self._n = 0

    def arrivals(self, hours: float) -> list[Job]:
        """Return the requests of a bursty team: bursts of some, more by day than by night."""
        jobs, at = [], 0.0
        while self.crew.bursts_an_hour:
            at += self._rng.expovariate(self.crew.bursts_an_hour / HOUR_S)
            if at >= hours * HOUR_S:
                break
            by_day = 0.15 + 0.85 * max(0.0, math.sin(math.pi * (at / HOUR_S % 24 - 6) / 14))
            if self._rng.random() < by_day:
                jobs += [self.job(at) for _ in range(1 + min(30, int(self._rng.paretovariate(1.2))))]
        return jobs

    def job(self, since: float) -> Job:
        """Return its next request."""
        rng, mix = self._rng, self.crew.mix
        cpus = 100.0 if mix == "large" else float(rng.choices((1, 2, 4, 8, 16), (6, 8, 6, 3, 1))[0])
        gpus = float(rng.choices((1, 2, 4), (6, 3, 1))[0]) if mix == "gpus" else 0.0
        actual_s = min(max(rng.lognormvariate(math.log(400), 1.1), 30.0), 2 * HOUR_S)
        priority: Priority = rng.choices(("low", "normal", "high"), (1, 8, 1))[0]
        self._n += 1
        request = Waiting(
            id=f"{self.crew.name}-{self._n:05d}",
            team=self.crew.name,
            cpus=min(cpus, 4 * gpus) if gpus else cpus,
            gpus=gpus,
            memory_gb=cpus * (8 if mix == "memory" else 2),
            priority=priority,
            since=since,
            expected_s=actual_s * rng.lognormvariate(0, 0.4),
        )
        return Job(request, actual_s)


@dataclass
class _Open:
    """An attempt that runs: what decisions see of it, and when it really ends."""

    running: Running
    ends: float
    work_s: float


class _Cluster:
    def __init__(self, day: Day, policy: Policy) -> None:
        self.day, self.policy = day, policy
        self.rng = random.Random(f"{day.seed}/stops")  # noqa: S311
        self.now = 0.0
        self.sources = [_Source(crew, day.seed) for crew in day.crews]
        self.events: list[tuple[float, str]] = []
        self.jobs: dict[str, Job] = {}
        self.left_s: dict[str, float] = {}
        self.waiting: dict[str, Waiting] = {}
        self.since: dict[str, float] = {}
        self.told: dict[str, Held] = {}
        self.open: dict[str, _Open] = {}
        self.last_end: dict[tuple[str, bool], float] = {}
        self.starts: dict[tuple[str, bool], list[float]] = defaultdict(list)
        self.course = Course(shares={crew.name: [] for crew in day.crews})
        self.limited = {crew.name for crew in day.crews if crew.quota.requests is not None}
        for job in (*day.jobs, *(job for source in self.sources for job in source.arrivals(day.hours))):
            self.jobs[job.request.id] = job
            heappush(self.events, (job.request.since, job.request.id))

    def run(self) -> Course:
        """Play the day."""
        end = self.day.hours * HOUR_S
        self._top_up()
        while self.events or self.waiting:
            steps = 1 if self.waiting else math.ceil((self.events[0][0] - self.now) / self.day.interval_s)
            self.now += max(1, steps) * self.day.interval_s
            while self.events and self.events[0][0] <= self.now:
                self._happens(*heappop(self.events))
            if self.now < end:
                self._top_up()
            self._decide()
            if self.waiting and not self.events:
                raise ValueError(f"{sorted(self.waiting)} wait on an empty cluster")
        self.course.end = self.now
        return self.course

    def _top_up(self) -> None:
        """Keep the queues of busy teams as long as they always are."""
        queued = Counter(request.team for request in self.waiting.values())
        for source in self.sources:
            for _ in range(source.crew.backlog - queued[source.crew.name]):
                job = source.job(self.now)
                self.jobs[job.request.id] = job
                self._arrive(job.request.id, self.now)

    def _happens(self, at: float, id_: str) -> None:
        if id_ not in self.open:
            self._arrive(id_, at)
        elif self.open[id_].ends <= at:
            self._end(id_, at)

    def _arrive(self, id_: str, at: float) -> None:
        job = self.jobs[id_]
        self.left_s.setdefault(id_, job.actual_s)
        self.waiting[id_] = job.request
        self.since[id_] = at
        share = dominant_share(job.request.need, self.day.capacity)
        self.course.largest_share = max(self.course.largest_share, share)

    def _end(self, id_: str, at: float) -> None:
        ended = self.open.pop(id_)
        running = ended.running
        self.last_end[running.team, running.gpus > 0] = at
        self.course.longest_s = max(self.course.longest_s, at - running.since)
        self.left_s[id_] -= ended.work_s
        if self.left_s[id_] > 1e-6:
            self._arrive(id_, at)
        else:
            self.course.n_done += 1

    def _decide(self) -> None:
        waiting = list(self.waiting.values())
        running = [attempt.running for attempt in self.open.values()]
        teams = [
            TeamLoad(c.name, c.quota, 0.0, self.last_end.get((c.name, False)), self.last_end.get((c.name, True)))
            for c in self.day.crews
        ]
        decision = self.policy(self.day.capacity, waiting, running, teams, self.now)
        for id_ in decision.admit:
            self._start(id_)
        for preemption in decision.preempt:
            self._stop(preemption.id)
        for id_ in [i for i in self.waiting if decision.held[i].rule is Rule.NEVER]:
            self.course.refused.append(id_)
            del self.waiting[id_]
        for id_ in self.waiting.keys() - self.told.keys():
            self.told[id_] = decision.held[id_]
        self._note()

    def _line(self, request: Waiting | Running) -> tuple[str, bool]:
        return request.team, request.gpus > 0 and request.team not in self.limited

    def _start(self, id_: str) -> None:
        request = self.waiting.pop(id_)
        line, since = self._line(request), self.since[id_]
        starts = self.starts[line]
        n_before = len(starts) - bisect_left(starts, since)
        told = self.told.pop(id_, None)
        self.course.spells.append(Spell(id_, request.team, since, self.now, n_before, told))
        starts.append(self.now)
        again = self.course.preempted[id_] > 0
        hold_s = self.left_s[id_] + (RESTART_S if again else 0.0)
        ratio = self.left_s[id_] / self.jobs[id_].actual_s
        expected = None if request.expected_s is None else self.now + request.expected_s * ratio
        shown = Running(*request[:6], since=self.now, expected_end=expected, n_preempted=self.course.preempted[id_])
        self.open[id_] = _Open(shown, self.now + hold_s, self.left_s[id_])
        heappush(self.events, (self.now + hold_s, id_))

    def _stop(self, id_: str) -> None:
        """Tell a search to stop: it does so when its trial has ended, and every finished trial counts."""
        attempt = self.open[id_]
        if attempt.running.stopping:
            raise ValueError(f"{id_} was told to stop twice")
        attempt.running = attempt.running._replace(stopping=True)
        self.course.preempted[id_] += 1
        stops = self.now + self.rng.uniform(*STOP_S)
        if stops < attempt.ends:
            attempt.work_s = max(0.0, attempt.work_s - (attempt.ends - stops))
            attempt.ends = stops
            heappush(self.events, (stops, id_))

    def _note(self) -> None:
        """Note who holds what, and how long each line has waited."""
        held: dict[str, list[float]] = {crew.name: [0.0, 0.0, 0.0] for crew in self.day.crews}
        for attempt in self.open.values():
            for kind, part in enumerate(attempt.running.need):
                held[attempt.running.team][kind] += part
        course = self.course
        course.times.append(self.now)
        for team, amounts in held.items():
            course.shares[team].append(dominant_share(amounts, self.day.capacity))
        total = [sum(amounts[kind] for amounts in held.values()) for kind in range(3)]
        if not fits(total, self.day.capacity):
            raise ValueError(f"{total} of {self.day.capacity} were given away")
        course.used.append(dominant_share(total, self.day.capacity))
        oldest: dict[tuple[str, bool], float] = {}
        for id_, request in self.waiting.items():
            line = self._line(request)
            oldest[line] = min(self.since[id_], oldest.get(line, math.inf))
        course.n_lines = max(course.n_lines, len(oldest))
        for line, since in oldest.items():
            last = self.starts[line][-1] if self.starts[line] else 0.0
            course.longest_gap_s = max(course.longest_gap_s, self.now - max(since, last))


def _averages(times: Sequence[float], values: Sequence[float], *, window_s: float, until_s: float) -> list[float]:
    """Return the averages of a step function over windows one after the other."""
    sums = [0.0] * math.ceil(until_s / window_s - 1e-9)
    for start, stop, value in zip(times, [*times[1:], math.inf], values, strict=True):
        at, stop = start, min(stop, until_s)
        while at < stop:
            n = int(at // window_s)
            edge = min(stop, (n + 1) * window_s)
            sums[n] += value * (edge - at)
            at = edge
    return [total / window_s for total in sums]

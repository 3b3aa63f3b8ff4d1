"""One decision: who starts, who makes room, and why everybody else waits.

Lines come in the order overdue, within their guarantee, borrowing; of each
kind the smallest weighted dominant share first.  Whoever comes first and does
not fit gets a place kept, and what starts after that must leave it alone.
docs/decisions/admission.md says why, and proves how long a line can wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from factory.operate.admission.lines import NOTHING, Account, Line, lines_of
from factory.operate.admission.reasons import HeldBack, Reasons, closed, never
from factory.operate.admission.terms import (
    EXEMPT_S,
    MOST_PREEMPTIONS,
    PATIENCE_S,
    PRIORITY_S,
    SOON_S,
    TOLERANCE,
    Amounts,
    Capacity,
    Held,
    Preemption,
    Running,
    TeamLoad,
    Waiting,
    fits,
    minus,
    plus,
)
from factory.spec import Quota

_Rank = tuple[int, float, float, str, bool]
_OVERDUE, _GUARANTEED, _BORROWING = range(3)
_NO_QUOTA = Quota()


class Decision(NamedTuple):
    """What to do now.

    Attributes:
        admit: Requests to start, in this order.
        preempt: Running requests to stop.
        held: Every other waiting request with its reason, which is put into words when somebody asks for it.
    """

    admit: tuple[str, ...]
    preempt: tuple[Preemption, ...]
    held: HeldBack


def decide(
    capacity: Capacity,
    waiting: Iterable[Waiting],
    running: Iterable[Running],
    teams: Iterable[TeamLoad],
    now: float,
    *,
    patience_s: float = PATIENCE_S,
) -> Decision:
    """Decide which waiting requests start, and which running ones make room.

    The same input gives the same decision, whatever the order it comes in.

    Args:
        capacity: Of the whole cluster; a request is taken to fit where its sums do.
        waiting: Requests that may start: not ended, no open attempt, no back-off.
        running: All open attempts, those included that were told to stop.
        teams: Of both; a team that is missing has no guarantee and no limit.
        now: Seconds since 1970.
        patience_s: How long a line waits with nothing running until it comes before all others.
    """
    return _Pass(capacity, list(running), teams, now=now, patience_s=patience_s).over(waiting)


class _Pass:
    """The state of one decision.

    ``free`` is what nobody holds.  ``spare`` is what may be given away: free,
    and what is about to be free, without what is kept for those who come
    first; of a kind that these still lack it is below zero.  ``window`` is
    how much may start beside the first head without delaying it, and until
    when whatever starts must be over otherwise (EASY back-filling).
    """

    def __init__(
        self, capacity: Capacity, running: list[Running], teams: Iterable[TeamLoad], *, now: float, patience_s: float
    ) -> None:
        self.capacity, self.running, self.now, self.patience_s = capacity, running, now, patience_s
        self.accounts = {team.name: Account(team, capacity) for team in teams}
        self.free: Amounts = capacity
        coming = NOTHING
        for job in running:
            self.account(job.team).hold(job)
            self.free = minus(self.free, job.need)
            if job.stopping:
                coming = plus(coming, job.need)
        self.spare = plus(self.free, coming)
        self.window: tuple[float, Amounts] | None = None
        self.first: str | None = None
        self.kept: list[str] = []
        self.overdue_need: Amounts | None = NOTHING
        self.leaving = {job.id for job in running if job.stopping}
        self.admitted: list[Waiting] = []
        self.preempt: list[Preemption] = []
        self.held = HeldBack()
        self._able: list[Running] | None = None
        self._known: list[tuple[float, str, Amounts]] | None = None

    def account(self, team: str) -> Account:
        """Return a team's account; one without limits where it is not known."""
        found = self.accounts.get(team)
        if found is None:
            found = self.accounts[team] = Account(TeamLoad(team, _NO_QUOTA), self.capacity)
        return found

    def over(self, waiting: Iterable[Waiting]) -> Decision:
        """Decide over the requests that wait."""
        self._queue(waiting)
        lines = lines_of(self.accounts.values())
        self.alone = len(lines) == 1
        blocked = self._serve(lines)
        started = {request.id for request in self.admitted}
        reasons = Reasons(self.capacity, self.free, self.accounts.values(), now=self.now)
        reasons.expect(self.running, self.leaving, self.admitted)
        for line in blocked:
            reasons.tell(line, started, self.held)
        return Decision(tuple(request.id for request in self.admitted), tuple(self.preempt), self.held)

    def _serve(self, lines: Iterable[Line]) -> list[Line]:
        """Go through the lines by their rank, again and again; return those in which somebody has to wait."""
        heap = [(self._rank(line), line) for line in lines]
        heapify(heap)
        blocked = []
        while heap:
            rank, line = heappop(heap)
            if (present := self._rank(line)) != rank:  # its team was given something meanwhile
                heappush(heap, (present, line))
                continue
            waited = line.head is not None
            if not line.account.full:
                self._look_at(line)
            if line.account.full and line.head is None and not line.exhausted:
                line.head = line.at
            if line.head is not None and not waited:
                blocked.append(line)
            if self._goes_on(line):
                heappush(heap, (self._rank(line), line))
        return blocked

    def _queue(self, waiting: Iterable[Waiting]) -> None:
        """Put everybody in line, but for those that can't start however long they wait."""
        most_cpus, most_gpus, most_memory_gb = (amount + TOLERANCE for amount in self.capacity)
        entrances: dict[str, tuple[Held | None, Line, Line]] = {}
        for request in waiting:
            _, team, cpus, gpus, memory_gb, _, _, _ = request
            if cpus > most_cpus or gpus > most_gpus or memory_gb > most_memory_gb:
                self.held.told[request.id] = never(request, self.capacity)
                continue
            entrance = entrances.get(team)
            if entrance is None:
                account = self.account(team)
                entrance = entrances[team] = (closed(account.load, self.now), account.line(0), account.line(1))
            shut, line, gpu_line = entrance
            if shut is not None:
                self.held.told[request.id] = shut
            else:
                (gpu_line if gpus > 0 else line).requests.append(request)

    def _rank(self, line: Line) -> _Rank:
        account = line.account
        name, last = account.load.name, line is account.lines[-1]
        if line.overdue(self.now, self.patience_s):
            return (_OVERDUE, line.turn, 0.0, name, last)
        kind = _GUARANTEED if account.within(line.candidate.need) else _BORROWING
        return (kind, account.share, line.turn, name, last)

    def _goes_on(self, line: Line) -> bool:
        """Whether further requests of a line are looked at."""
        if line.account.full or line.exhausted:
            return False
        if line.head is None:
            return True
        if line.overdue(self.now, self.patience_s):
            return False
        return self.alone or self.now - line.requests[line.head].since <= self.patience_s

    def _look_at(self, line: Line) -> None:
        """Let the next of a line start, or see to it that it can later."""
        request = line.candidate
        need = request.need
        if self._may_start(request, need):
            self.free = minus(self.free, need)
            self.spare = minus(self.spare, need)
            line.account.take(need)
            line.n_open += 1
            self.admitted.append(request)
        elif line.head is None or line.head in line.promised:
            line.head = line.at
            self._keep_a_place(line, request, need)
        line.at += 1

    def _may_start(self, request: Waiting, need: Amounts) -> bool:
        """Whether a request fits, and delays nobody for whom a place is kept."""
        if not (fits(need, self.free) and fits(need, self.spare)):
            return False
        if self.window is None:
            return True
        until, beside = self.window
        if request.expected_s is not None and self.now + request.expected_s <= until:
            return True
        if fits(need, beside):
            self.window = (until, minus(beside, need))
            return True
        return False

    def _keep_a_place(self, line: Line, request: Waiting, need: Amounts) -> None:
        """Keep a place for the first of a line, the firmer the better its claim is."""
        if fits(need, self.free):
            line.kept_for = self.first if fits(need, self.spare) else self.kept[0]
        if line.account.within(need) and self._reclaim(request, need):
            self._set_aside(line, need)
            line.account.promise(need)
            line.promised.append(line.at)
        elif line.overdue(self.now, self.patience_s):
            self._keep_for_overdue(line, need)
        elif self.first is None:
            self._keep_until(line, need)

    def _set_aside(self, line: Line, need: Amounts) -> None:
        self.spare = minus(self.spare, need)
        self.kept.append(line.account.load.name)

    def _keep_for_overdue(self, line: Line, need: Amounts) -> None:
        """Set aside what overdue lines need, in their order, as long as all of it together fits the empty cluster."""
        if self.overdue_need is None:
            return
        together = plus(self.overdue_need, need)
        self.overdue_need = together if fits(together, self.capacity) else None
        if self.overdue_need is not None:
            self._set_aside(line, need)

    def _keep_until(self, line: Line, need: Amounts) -> None:
        """Keep a place from the moment at which enough is expected to have ended (EASY; Lifka, 1995).

        Where that depends on what is late or of unknown length, estimates are not to be trusted: it is set aside.
        """
        self.first = line.account.load.name
        room = self.spare
        for end, jobs in groupby(self._ends(), key=itemgetter(0)):
            for _, amounts in jobs:
                room = plus(room, amounts)
            if fits(need, room):
                self.window = (end, minus(room, need))
                return
        self._set_aside(line, need)

    def _reclaim(self, request: Waiting, need: Amounts) -> bool:
        """Have others give back what a guarantee covers; return whether the request so gets its place.

        What is about to be free anyway is waited for.
        """
        soon = self.spare
        for end, amounts in self._ends():
            if end > self.now + SOON_S:
                break
            soon = plus(soon, amounts)
        if fits(need, soon):
            return True
        victims = self._victims(need)
        for job in victims:
            account = self.accounts[job.team]
            account.staying = minus(account.staying, job.need)
            self.leaving.add(job.id)
            self.spare = plus(self.spare, job.need)
            self.preempt.append(Preemption(job.id, request.id))
        return bool(victims)

    def _victims(self, need: Amounts) -> list[Running]:
        """Return borrowers that make room together, none of them needlessly; none where they can't."""
        room = self.spare
        staying: dict[str, Amounts] = {}
        chosen: list[Running] = []
        for job in self._preemptible():
            if fits(need, room):
                break
            if job.id in self.leaving:
                continue
            account = self.accounts[job.team]
            left = staying.get(job.team, account.staying)
            if _gives_back(job.need, need, room, left, account.guaranteed):
                staying[job.team] = minus(left, job.need)
                room = plus(room, job.need)
                chosen.append(job)
        if not fits(need, room):
            return []
        for job in chosen[-2::-1]:
            if fits(need, minus(room, job.need)):
                room = minus(room, job.need)
                chosen.remove(job)
        return chosen

    def _preemptible(self) -> list[Running]:
        """Return what may be told to stop: the least urgent first, and of these what started last."""
        if self._able is None:
            able = [
                job
                for job in self.running
                if job.preemptible and job.n_preempted < MOST_PREEMPTIONS and self.now - job.since >= EXEMPT_S
            ]
            self._able = sorted(able, key=lambda job: (PRIORITY_S[job.priority], -job.since, job.id))
        return self._able

    def _ends(self) -> list[tuple[float, Amounts]]:
        """Return the ends to come of what was not told to stop, with what becomes free, in order."""
        if self._known is None:
            self._known = sorted(
                (job.expected_end, job.id, job.need)
                for job in self.running
                if job.expected_end is not None and job.expected_end > self.now
            )
        return [(end, need) for end, id_, need in self._known if id_ not in self.leaving]


def _gives_back(held: Amounts, need: Amounts, room: Amounts, staying: Amounts, guaranteed: Amounts) -> bool:
    """Whether a running request holds some of what is lacking of which its team has more than its guarantee."""
    return any(
        part > 0 and wanted > there + TOLERANCE and of_team > sure + TOLERANCE
        for part, wanted, there, of_team, sure in zip(held, need, room, staying, guaranteed, strict=True)
    )

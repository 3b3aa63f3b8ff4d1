"""Why a request waits, in a sentence for who made it: what is missing, which teams hold it, until about when."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate

from factory.errors import counted
from factory.operate.admission.lines import NOTHING, Account, Line
from factory.operate.admission.terms import (
    DEPTH,
    TOLERANCE,
    Amounts,
    Capacity,
    Held,
    Rule,
    Running,
    TeamLoad,
    Waiting,
    fits,
    minus,
    plus,
)

_KINDS = ("CPU", "GPU", "GB of memory")


def about(seconds: float) -> str:
    """Return a time as a person would say it.

    >>> [about(s) for s in (20, 70, 400, 2000)]
    ['less than a minute', 'about a minute', 'about 7 minutes', 'about 35 minutes']
    >>> [about(s) for s in (4000, 9000, 40_000, 300_000)]
    ['about an hour', 'about 2.5 hours', 'about 11 hours', 'about 3 days']
    """
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 45:
        return "less than a minute"
    if minutes < 10.5:
        rounded, unit = round(minutes), "minute"
    elif minutes < 57.5:
        rounded, unit = 5 * round(minutes / 5), "minute"
    elif hours < 2.75:
        return "about an hour" if hours < 1.25 else f"about {round(2 * hours) / 2:g} hours"
    elif hours < 47:
        rounded, unit = round(hours), "hour"
    else:
        rounded, unit = round(hours / 24), "day"
    return f"about a {unit}" if rounded == 1 else f"about {rounded} {unit}s"


def amount(number: float, kind: int) -> str:
    """Return an amount of a resource.

    >>> amount(1, 0), amount(0.5, 0), amount(0, 1), amount(1.5, 2)
    ('1 CPU', '0.5 CPUs', 'no GPU', '1.5 GB of memory')
    """
    name = _KINDS[kind]
    if number == 0 and kind < 2:
        return f"no {name}"
    return f"{number:.4g} {name}" + ("s" if kind < 2 and number != 1 else "")


def teams(names: Sequence[str], most: int = 2) -> str:
    """Return the names of teams, the first ones where there are many.

    >>> teams(["growth"]), teams(["growth", "risk"]), teams(["growth", "risk", "a", "b"])
    ('team growth', 'teams growth and risk', 'teams growth, risk and 2 more')
    """
    if len(names) == 1:
        return f"team {names[0]}"
    shown, last = (names[:-1], names[-1]) if len(names) <= most else (names[:most], f"{len(names) - most} more")
    return f"teams {', '.join(shown)} and {last}"


def never(request: Waiting, capacity: Capacity) -> Held:
    """Return why a request can't start on any day: it asks for more than the cluster has."""
    over = [kind for kind in range(3) if request.need[kind] > capacity[kind] + TOLERANCE]
    asked = " and ".join(amount(request.need[kind], kind) for kind in over)
    there = f"{capacity[over[0]]:.4g}" if len(over) == 1 and capacity[over[0]] else ""
    there = there or " and ".join(amount(capacity[kind], kind) for kind in over)
    return Held(Rule.NEVER, f"never: asks for {asked}, the cluster has {there}", None)


def closed(team: TeamLoad, now: float) -> Held | None:
    """Return why nothing of a team can start before the next month, or ever; None where something can."""
    quota = team.quota
    if quota.requests == 0:
        return Held(Rule.NEVER, f"never: team {team.name} may run no request", None)
    most = quota.trial_seconds_month
    if most is None or team.trial_seconds_used < most:
        return None
    if most == 0:
        return Held(Rule.NEVER, f"never: team {team.name} may use no trial-seconds", None)
    today = datetime.fromtimestamp(now, UTC)
    first = datetime(today.year + today.month // 12, today.month % 12 + 1, 1, tzinfo=UTC)
    wait_s = first.timestamp() - now
    used = f"team {team.name} has used its {most:,.10g} trial-seconds of this month"
    return Held(Rule.TRIAL_SECONDS, f"waiting for 1 {first:%B}: {used}; {about(wait_s)}", wait_s)


class Followers:
    """The requests of a line, for those of whom others of their team come first; worked out when somebody asks."""

    def __init__(
        self, team: str, requests: Sequence[Waiting], told: Mapping[str, Held], pace: float, capacity: Capacity
    ) -> None:
        self.requests = requests
        self._team, self._told = team, told
        self._paces = [1 / (whole * pace) if whole else 0.0 for whole in capacity]
        self._found: dict[str, Held] = {}

    def reason(self, request_id: str) -> Held:
        """Return the reason of one of them."""
        if not self._found:
            self._found = {request.id: held for request, held in zip(self.requests, self._reasons(), strict=True)}
        return self._found[request_id]

    def _reasons(self) -> Iterator[Held]:
        """Yield their reasons in order."""
        for n, (request, eta_s) in enumerate(zip(self.requests, self.etas(), strict=True)):
            held = self._told.get(request.id)
            if held is None:
                first = (
                    f"{n:,} requests of team {self._team} come" if n > 1 else f"a request of team {self._team} comes"
                )
                held = Held(Rule.ORDER, f"{first} first; {_when(eta_s)}", eta_s)
            yield held

    def etas(self) -> Iterator[float | None]:
        """Yield in what time each is expected to start, in order: it follows the one before it at the team's pace."""
        eta_s: float | None = None
        of_cpus, of_gpus, of_memory = self._paces
        told = self._told
        for request in self.requests:
            id_, _, cpus, gpus, memory_gb, _, _, expected_s = request
            if id_ in told:
                eta_s = told[id_].eta_s
            yield eta_s
            if eta_s is not None:
                share = max(cpus * of_cpus, gpus * of_gpus, memory_gb * of_memory)
                eta_s = None if expected_s is None else eta_s + expected_s * share


class HeldBack(Mapping[str, Held]):
    """Reason by request: those at the front of a line are told at once, those behind them when somebody asks."""

    def __init__(self, told: Mapping[str, Held] | None = None) -> None:
        self.told = dict(told or {})
        self._lines: list[Followers] = []
        self._index: dict[str, Followers] | None = None

    def follow(self, followers: Followers) -> None:
        """Take in a line."""
        self._lines.append(followers)

    def __getitem__(self, request_id: str) -> Held:
        held = self.told.get(request_id)
        return self._followers[request_id].reason(request_id) if held is None else held

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.told, *self._followers]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def etas(self) -> Iterator[float | None]:
        """Yield in what time each is expected to start, in no order and without a word."""
        yield from (held.eta_s for name, held in self.told.items() if name not in self._followers)
        for line in self._lines:
            yield from line.etas()

    @property
    def _followers(self) -> dict[str, Followers]:
        """The line of each request that is in one."""
        if self._index is None:
            self._index = {request.id: line for line in self._lines for request in line.requests}
        return self._index


class Reasons:
    """The reasons of one decision.

    Estimates are what a person would work out from the expected ends: the first of each line starts when enough has
    ended for it and for the first of all lines before it; those behind it follow at the pace that their team's fair
    share allows.
    """

    def __init__(self, capacity: Capacity, free: Amounts, accounts: Iterable[Account], *, now: float) -> None:
        self._capacity, self._free, self._now = capacity, free, now
        self._accounts = list(accounts)
        self._weights = sum(a.load.quota.weight for a in self._accounts if a.n_open or any(x.requests for x in a.lines))
        self._ahead: Amounts = NOTHING
        self._holders: dict[int, str] = {}

    def expect(self, running: Iterable[Running], leaving: set[str], admitted: Iterable[Waiting]) -> None:
        """Note what is going to be free, and when."""
        ends: list[tuple[float, Amounts]] = []
        self._soon = self._free
        self._first_end: dict[str, float] = {}
        giving = set()
        for job in running:
            if job.id in leaving:
                self._soon = plus(self._soon, job.need)
                giving.add(job.team)
            elif job.expected_end is not None and job.expected_end > self._now:
                ends.append((job.expected_end, job.need))
                self._first_end[job.team] = min(job.expected_end, self._first_end.get(job.team, job.expected_end))
        for request in admitted:
            if request.expected_s is not None:
                end = self._now + request.expected_s
                ends.append((end, request.need))
                self._first_end[request.team] = min(end, self._first_end.get(request.team, end))
        self._giving = teams(sorted(giving)) if giving else ""
        ends.sort()
        self._ends = [end for end, _ in ends]
        self._freed = [list(accumulate(need[kind] for _, need in ends)) for kind in range(3)]

    def tell(self, line: Line, started: set[str], held: HeldBack) -> None:
        """Note the reason of each that waits in a line; lines have to come in the order of the decision.

        Args:
            line: One in which somebody has to wait.
            started: Requests that start.
            held: Takes the reasons.
        """
        account = line.account
        promised = {line.requests[n].id for n in line.promised}
        first = None if line.head is None else line.requests[line.head].id
        left = [request for request in line.requests if request.id not in started] if line.at else line.requests
        for request in left[: len(promised) + DEPTH]:
            if request.id in promised:
                held.told[request.id] = self._promised(line, request)
            elif request.id == first:
                held.told[request.id] = self._full(line) if account.full else self._first(line, request)
        pace = max(account.load.quota.weight / self._weights, account.part)
        held.follow(Followers(account.load.name, left, held.told, pace, self._capacity))

    def _full(self, line: Line) -> Held:
        account = line.account
        end = self._first_end.get(account.load.name)
        eta_s = None if end is None else end - self._now
        running = counted(account.n_open, "request")
        team = f"team {account.load.name} runs {running}, as many as it may"
        return Held(Rule.REQUESTS, f"waiting for one to end: {team}; {_when(eta_s)}", eta_s)

    def _promised(self, line: Line, request: Waiting) -> Held:
        if not self._giving:
            return self._first(line, request)
        self._ahead = plus(self._ahead, request.need)
        asked = " and ".join(self._missing(request.need))
        room = f"{self._giving} make{'' if ' and ' in self._giving else 's'} room as running trials end"
        return Held(Rule.RECLAIM, f"waiting for {asked} guaranteed to team {line.account.load.name}: {room}", None)

    def _first(self, line: Line, request: Waiting) -> Held:
        need = request.need
        self._ahead = plus(self._ahead, need)
        eta_s = self._eta_s(need)
        if line.kept_for is not None and fits(need, self._free):
            kept = f"waiting, for what is free is kept for team {line.kept_for}, which comes first"
            return Held(Rule.RESERVED, f"{kept}; {_when(eta_s)}", eta_s)
        asked = " and ".join(self._missing(need))
        lacking = minus(need, self._free)
        parts = [part / whole if whole else 0.0 for part, whole in zip(lacking, self._capacity, strict=True)]
        kind = max(range(3), key=lambda k: parts[k] if need[k] > 0 else -1.0)
        return Held(Rule.CAPACITY, f"waiting for {asked}: {self._holding(kind)}; {_when(eta_s)}", eta_s)

    def _missing(self, need: Amounts) -> Iterator[str]:
        for kind, (asked, free) in enumerate(zip(need, self._free, strict=True)):
            if asked > 0 and asked > free + TOLERANCE:
                yield f"{asked - free:.4g} of its {amount(asked, kind)}" if free > TOLERANCE else amount(asked, kind)

    def _holding(self, kind: int) -> str:
        """Return which teams hold a resource, those first that hold most."""
        if kind not in self._holders:
            held = [(a.used[kind] - a.promised[kind], a.load.name) for a in self._accounts]
            held = sorted((part for part in held if part[0] > TOLERANCE), key=lambda part: (-part[0], part[1]))
            names = teams([name for _, name in held])
            there = sum(part for part, _ in held)
            verb = "holds" if len(held) == 1 else "hold"
            self._holders[kind] = f"{names} {verb} {there:.6g} of {amount(self._capacity[kind], kind)}"
        return self._holders[kind]

    def _eta_s(self, need: Amounts) -> float | None:
        """Return in what time enough has ended for a need and all that come before it.

        None also where others were told to stop for it: they do so when a trial has ended, which nobody can foresee.
        """
        moment = self._now
        for kind in range(3):
            lacking = self._ahead[kind] - self._soon[kind] if need[kind] > 0 else 0.0
            if lacking > TOLERANCE:
                n = bisect_left(self._freed[kind], lacking - TOLERANCE)
                if n == len(self._ends):
                    return None
                moment = max(moment, self._ends[n])
        return moment - self._now if moment > self._now else None


def _when(eta_s: float | None) -> str:
    return "no estimate yet" if eta_s is None else about(eta_s)

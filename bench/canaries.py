"""The test that withdraws canaries: how often it errs, and after how many calls it sees what is worse.

Calls are made up, and judged by the predictor's own :class:`~serve.guard.Guard`
of each replica: three of ten go to the canary, each takes 0.3 ms and 0.5 us a
row, times a chance (log-normal, sigma 0.5).  A key sticks to who answers it, so
that one which always comes with many rows makes one side slow by itself.  After
each hundred calls a replica tells the others, which decides; one that suspects
the canary asks it no more until then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.claim import bare_parser
from bench.record import save
from factory.ledger import CanaryCounts, CanaryRecord
from serve.guard import ALPHA, MOST_ERRORS, PART, SLOWER, Guard, Took, after, capitals

SHARE = 0.3
CANARIES, CALLS = 500, 2_000
HEAVY = 10_000
TOLD_EVERY = 100
SIGMA = 0.5
BEFORE = (300, 1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Case:
    """A canary, and who calls it.

    Attributes:
        what: For the table.
        errors: Part of its calls that fail.
        times: As long as the champion it takes for the same rows.
        heavy_canary: Part of the canary's calls that have many rows; the others have one.
        heavy_champion: The same of the champion's.
        heavy: Rows of such a call, of the champion and of the canary.
        good: Whether it should stay.
        before: Calls that it had before; one that is not good was as good as the champion then.
        replicas: That share the calls.
    """

    what: str
    errors: float = 0.0
    times: float = 1.0
    heavy_canary: float = 0.0
    heavy_champion: float = 0.0
    heavy: tuple[int, int] = (HEAVY, HEAVY)
    good: bool = True
    before: int = 0
    replicas: int = 1


CASES = (
    Case("as good as the champion"),
    Case("as good, one key of 10,000 rows is the canary's", heavy_canary=0.5),
    Case("as good, one key of 10,000 rows is the champion's", heavy_champion=0.5),
    Case("as good, heavy keys on both sides", heavy_canary=0.5, heavy_champion=0.1),
    Case("as good, its rows at the far end of a group", heavy_canary=1, heavy_champion=1, heavy=(9_032, 11_200)),
    Case("better: half the time", times=0.5),
    Case("at the edge of both", errors=MOST_ERRORS, times=SLOWER),
    Case("at the edge of both, four replicas", errors=MOST_ERRORS, times=SLOWER, replicas=4),
    Case("at the edge of both, for 100,000 calls", errors=MOST_ERRORS, times=SLOWER, before=100_000),
    Case("fails always", errors=1.0, good=False),
    Case("fails always, four replicas", errors=1.0, good=False, replicas=4),
    *(Case(f"fails always, after {n:,} good calls", errors=1.0, good=False, before=n) for n in BEFORE),
    Case("fails in 20 %", errors=0.2, good=False),
    Case("fails in 20 %, after 10,000 good calls", errors=0.2, good=False, before=10_000),
    Case("takes twice as long", times=2.0, good=False),
    Case("takes four times as long", times=4.0, good=False),
    Case("takes four times as long, after 10,000 good calls", times=4.0, good=False, before=10_000),
    Case("takes four times as long, heavy keys", times=4.0, heavy_canary=0.5, heavy_champion=0.1, good=False),
)

COLUMNS = {
    "what": "canary",
    "withdrawn": "withdrawn",
    "calls": "its calls until then (median)",
    "most": "(most)",
    "met": "met",
}
NOTE = (
    f"{CANARIES:,} canaries of each kind ({CANARIES // 5:,} of those with calls before), {CALLS:,} calls of each name, "
    f"{SHARE:.0%} of them the canary's, whose calls before are not counted. Met: of good ones no more than {ALPHA:.0%} "
    "are withdrawn, within three standard deviations; of worse ones all."
)


def history(random: np.random.Generator, case: Case) -> tuple[CanaryRecord, bool]:
    """Return what is known of a canary after the calls that it had before, and whether it was withdrawn by them."""
    errors, times = (case.errors, case.times) if case.good else (0.0, 1.0)
    # The chance that one time is so much larger than another, both log-normal.
    slower = math.erfc(math.log(SLOWER / times) / (2 * SIGMA)) / 2
    record, withdrawn = CanaryRecord(), False
    for n in [PART] * (case.before // PART):
        failed = int(random.binomial(n, errors))
        compared = n - failed
        record = after(record, [CanaryCounts(n, failed, compared, int(random.binomial(compared, slower)))])
        withdrawn = withdrawn or max(capitals(record)) >= 2 / ALPHA
    return record, withdrawn


def withdrawn_after(random: np.random.Generator, case: Case, *, n_calls: int) -> int | None:
    """Return after how many of its calls a canary is withdrawn, those before left out; None where it is not."""
    fleet, withdrawn = history(random, case)
    if withdrawn:
        return 0
    guards, suspected = [Guard(fleet=fleet) for _ in range(case.replicas)], set[int]()
    canary = random.random(n_calls) < SHARE
    replica = random.integers(case.replicas, size=n_calls)
    chance = random.lognormal(0, SIGMA, n_calls)
    fails = random.random(n_calls) < case.errors
    heavy = random.random(n_calls) < np.where(canary, case.heavy_canary, case.heavy_champion)
    rows = np.where(heavy, np.where(canary, case.heavy[1], case.heavy[0]), 1)
    ms = (0.3 + 0.0005 * rows) * chance * np.where(canary, case.times, 1)
    calls = zip(canary.tolist(), replica.tolist(), fails.tolist(), rows.tolist(), ms.tolist(), strict=True)
    seen = 0
    for i, (of_canary, who, fails_now, n_rows, took_ms) in enumerate(calls):
        guard, took = guards[who], Took(n_rows, took_ms)
        if not of_canary:
            guard.champion(took)
        elif who not in suspected:
            seen += 1
            slower = guard.counts.slower
            if fails_now:
                guard.failed()
            else:
                guard.answered(took)
            # Nothing else speaks against it.
            if (fails_now or guard.counts.slower > slower) and guard.suspicion:
                suspected.add(who)
        # One replica after the other, and all at the end.
        telling = (i % TOLD_EVERY) * case.replicas / TOLD_EVERY
        tells = range(case.replicas) if i == n_calls - 1 else [int(telling)] if telling.is_integer() else []
        for who in tells:
            guard = guards[who]
            fleet = after(fleet, guard.take())
            guard.told(fleet)
            suspected.discard(who)
            if guard.verdict:
                return seen
    return None


def row(case: Case, *, n_canaries: int, n_calls: int, seed: int = 0) -> dict[str, Any]:
    """Return what becomes of canaries of a kind."""
    random = np.random.default_rng(seed)
    found = [withdrawn_after(random, case, n_calls=n_calls) for _ in range(n_canaries)]
    ends = [end for end in found if end is not None]
    share = len(ends) / n_canaries
    most = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / n_canaries)
    return {
        "what": case.what,
        "withdrawn": f"{share:.1%}",
        "share": share,
        "calls": int(np.median(ends)) if ends else None,
        "most": max(ends) if ends else None,
        "met": bool(share <= most) if case.good else len(ends) == n_canaries,
    }


def main() -> None:
    """Measure and print."""
    parser = bare_parser(__doc__)
    parser.add_argument("--canaries", type=int, default=CANARIES, help=f"of each kind (default: {CANARIES})")
    given = parser.parse_args()
    rows = [
        row(case, n_canaries=given.canaries // 5 if case.before else given.canaries, n_calls=CALLS) for case in CASES
    ]
    save("canaries", rows, columns=COLUMNS, note=NOTE, documented=given.canaries == CANARIES)


if __name__ == "__main__":
    main()

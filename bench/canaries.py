"""The test that withdraws canaries: how often it errs, and after how many calls it sees what is worse.

Calls are made up, and judged by the predictor's own :class:`~serve.guard.Guard`
after each: three of ten go to the canary, each takes 0.3 ms and 0.5 us a row,
times a chance (log-normal, sigma 0.5).  A key sticks to who answers it, so that
one which always comes with many rows makes one side slow by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.claim import bare_parser
from bench.record import save
from serve.guard import ALPHA, MOST_ERRORS, SLOWER, Guard, Took

SHARE = 0.3
CANARIES, CALLS = 500, 2_000
HEAVY = 10_000


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
    """

    what: str
    errors: float = 0.0
    times: float = 1.0
    heavy_canary: float = 0.0
    heavy_champion: float = 0.0
    heavy: tuple[int, int] = (HEAVY, HEAVY)
    good: bool = True


CASES = (
    Case("as good as the champion"),
    Case("as good, one key of 10,000 rows is the canary's", heavy_canary=0.5),
    Case("as good, one key of 10,000 rows is the champion's", heavy_champion=0.5),
    Case("as good, heavy keys on both sides", heavy_canary=0.5, heavy_champion=0.1),
    Case("as good, its rows at the far end of a group", heavy_canary=1, heavy_champion=1, heavy=(9_032, 11_200)),
    Case("better: half the time", times=0.5),
    Case("at the edge of both", errors=MOST_ERRORS, times=SLOWER),
    Case("fails always", errors=1.0, good=False),
    Case("fails in 20 %", errors=0.2, good=False),
    Case("takes twice as long", times=2.0, good=False),
    Case("takes four times as long", times=4.0, good=False),
    Case("takes four times as long, heavy keys", times=4.0, heavy_canary=0.5, heavy_champion=0.1, good=False),
)

COLUMNS = {
    "what": "canary",
    "withdrawn": "withdrawn",
    "calls": "its calls until then (median)",
    "met": "met",
}
NOTE = (
    f"{CANARIES:,} canaries of each kind, {CALLS:,} calls of each name, {SHARE:.0%} of them the canary's, judged after "
    f"each. Met: of good ones no more than {ALPHA:.0%} are withdrawn, within three standard deviations; of worse ones "
    "all."
)


def withdrawn_after(random: np.random.Generator, case: Case, *, n_calls: int) -> int | None:
    """Return after how many of its calls a canary is withdrawn; None where it is not."""
    guard, seen = Guard(), 0
    canary = random.random(n_calls) < SHARE
    chance = random.lognormal(0, 0.5, n_calls)
    fails = random.random(n_calls) < case.errors
    heavy = random.random(n_calls) < np.where(canary, case.heavy_canary, case.heavy_champion)
    rows = np.where(heavy, np.where(canary, case.heavy[1], case.heavy[0]), 1)
    ms = (0.3 + 0.0005 * rows) * chance * np.where(canary, case.times, 1)
    for i in range(n_calls):
        took = Took(int(rows[i]), float(ms[i]))
        if not canary[i]:
            guard.champion(took)
            continue
        seen += 1
        before = guard.counts
        if fails[i]:
            guard.failed()
        else:
            guard.answered(took)
        found = guard.counts - before
        # Nothing else speaks against it.
        if (found.failed or found.slower) and guard.verdict:
            return seen
    return None


def row(case: Case, *, n_canaries: int, n_calls: int, seed: int = 0) -> dict[str, Any]:
    """Return what becomes of canaries of a kind."""
    random = np.random.default_rng(seed)
    ends = [withdrawn_after(random, case, n_calls=n_calls) for _ in range(n_canaries)]
    after = [end for end in ends if end is not None]
    share = len(after) / n_canaries
    most = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / n_canaries)
    return {
        "what": case.what,
        "withdrawn": f"{share:.1%}",
        "share": share,
        "calls": int(np.median(after)) if after else None,
        "met": bool(share <= most) if case.good else len(after) == n_canaries,
    }


def main() -> None:
    """Measure and print."""
    parser = bare_parser(__doc__)
    parser.add_argument("--canaries", type=int, default=CANARIES, help=f"of each kind (default: {CANARIES})")
    given = parser.parse_args()
    rows = [row(case, n_canaries=given.canaries, n_calls=CALLS) for case in CASES]
    save("canaries", rows, columns=COLUMNS, note=NOTE, documented=given.canaries == CANARIES)


if __name__ == "__main__":
    main()

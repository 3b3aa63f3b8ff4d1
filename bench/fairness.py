"""Over a simulated day of 50 teams, those that always have work get the same; nobody waits longer than the bound.

Ten teams always have a queue, one of 4 to 28 requests; forty send bursts, more
by day than by night.  First come, first served is the peer: there who sends
most gets most.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from bench.chart import OURS_COLOUR, PEER_COLOUR, chart, plain
from bench.claim import AGAIN, QUICK, Journal, parser, report
from bench.record import ROOT
from factory.operate.admission import MOST_PREEMPTIONS, decide, longest_wait_s
from factory.testing.cluster_day import HOUR_S, RESTART_S, Course, Day, Policy, Spell, busy_day, fifo, simulate

POLICIES: Mapping[str, Policy] = {"factory": decide, "first come, first served": fifo}
OURS, PEER = POLICIES
LIMIT = 0.05
WINDOW_S = HOUR_S / 2
CHART = ROOT / "docs" / "decisions" / "admission-shares.svg"
DASHES = {"cpus": "solid", "memory": "dashed", "gpus": "dotted"}

COLUMNS = {
    "policy": "policy",
    "seed": "seed",
    "requests": "requests",
    "hourly_spread": "shares differ, of an hour",
    "daily_spread": "shares differ, of the day",
    "utilisation": "cluster used",
    "guaranteed_p99_s": "within a guarantee, 99 % wait s",
    "next_p99_s": "next in line, 99 % wait s",
    "next_longest_s": "next in line, longest s",
    "of_bound": "longest wait by its bound",
    "preempted": "made room",
    "restart_s": "start-up s so lost",
    "estimate": "waited by estimate, median",
    "estimate_half": "waited by estimate, half of them",
    "met": "met",
}
NOTE = (
    "400 CPUs, 64 GPUs, 1,600 GB; 50 teams, 10 of them always with a queue; of the others every fourth has a guarantee "
    "and one asks for a quarter of the cluster at a time. Shares differ: largest difference of the dominant shares of "
    "two teams that always have work of the same kind (CPUs, memory, GPUs), averaged over an hour and over the day; "
    f"limit {LIMIT:.0%} of the cluster for an hour. Next in line: no other of its team started before it. Within a "
    "guarantee: the same, of bursty teams that have one. Bound: of docs/decisions/admission.md, with the longest run "
    "and the lines of that day. Estimate: the one in the first sentence that a requester gets."
)


def main() -> int:
    """Play the days; return 1 where shares differ by more than the limit or somebody waits longer than the bound."""
    arguments = parser(__doc__, budget_s=None)
    arguments.add_argument("--days", type=int, default=3, metavar="N", help="seeds, from --seed on (default: 3)")
    chosen = arguments.parse_args()
    hours, days = (2.0, 1) if chosen.quick else (24.0, chosen.days)
    journal = Journal.of("fairness", again=chosen.again)
    keys: list[dict[str, Any]] = [
        {"policy": p, "seed": s, "hours": hours} for s in range(chosen.seed, chosen.seed + days) for p in POLICIES
    ]
    rows = [journal.row(key, partial(day, **key)) for key in keys]
    report("fairness", rows, columns=COLUMNS, note=NOTE)
    if set(sys.argv[1:]) <= {AGAIN} and QUICK not in sys.argv:
        draw({row["policy"]: row for row in rows if row["seed"] == chosen.seed})
    return 0 if all(row["met"] for row in rows if row["policy"] == OURS) else 1


def day(*, policy: str, seed: int, hours: float) -> dict[str, Any]:
    """Play a day and return the row."""
    made = busy_day(seed, hours=hours)
    course = simulate(made, POLICIES[policy])
    until_s = hours * HOUR_S
    sure = {crew.name for crew in made.crews if crew.quota.cpus}
    following = [spell for spell in course.spells if spell.n_before == 0]
    estimates = sorted(s.wait_s / s.told.eta_s for s in course.spells if s.told is not None and s.told.eta_s)
    hourly = spread(course, made, window_s=HOUR_S)
    of_bound = max(spell.wait_s / bound_s(course, spell, interval_s=made.interval_s) for spell in course.spells)
    quarters = statistics.quantiles(estimates, n=4) if len(estimates) > 1 else None
    return {
        "requests": course.n_done,
        "hourly_spread": round(hourly, 4),
        "daily_spread": round(spread(course, made, window_s=until_s), 4),
        "utilisation": round(course.utilisation(until_s=until_s), 3),
        "guaranteed_p99_s": percentile(s.wait_s for s in following if s.team in sure),
        "next_p99_s": percentile(s.wait_s for s in following),
        "next_longest_s": round(max(s.wait_s for s in following)),
        "of_bound": round(of_bound, 3),
        "bound_s": round(bound_s(course, following[0], interval_s=made.interval_s)),
        "preempted": course.preempted.total(),
        "restart_s": round(course.preempted.total() * RESTART_S),
        "estimate": None if quarters is None else round(quarters[1], 2),
        "estimate_half": "" if quarters is None else f"{quarters[0]:.2f} to {quarters[2]:.2f}",
        "shares": {
            crew.name: [round(share, 4) for share in course.averages(crew.name, window_s=WINDOW_S, until_s=until_s)]
            for crew in made.crews
            if crew.backlog
        },
        "mixes": {crew.name: crew.mix for crew in made.crews if crew.backlog},
        "met": hourly <= LIMIT and of_bound <= 1 and max(course.preempted.values(), default=0) <= MOST_PREEMPTIONS,
    }


def spread(course: Course, made: Day, *, window_s: float) -> float:
    """Return the largest difference of two busy teams with the same kind of work, of averages over windows."""
    worst = 0.0
    for mix in DASHES:
        names = [crew.name for crew in made.crews if crew.backlog and crew.mix == mix]
        shares = [course.averages(n, window_s=window_s, until_s=made.hours * HOUR_S) for n in names]
        worst = max([worst, *(max(together) - min(together) for together in zip(*shares, strict=True))])
    return worst


def bound_s(course: Course, spell: Spell, *, interval_s: float) -> float:
    """Return the longest that a wait may have taken on this day."""
    return longest_wait_s(
        n_before=spell.n_before,
        n_lines=course.n_lines,
        largest_share=course.largest_share,
        longest_s=course.longest_s + interval_s,
    )


def percentile(waits_s: Iterable[float]) -> int:
    """Return the wait that 99 % do not exceed, in seconds."""
    return round(statistics.quantiles([0.0, *waits_s], n=100)[-1])


def draw(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the shares of the teams that always have work, one panel for each policy."""
    told = "; ".join(
        f"{policy}: hourly shares differ by up to {row['hourly_spread']:.1%}, the cluster is used to "
        f"{row['utilisation']:.0%}"
        for policy, row in rows.items()
    )
    title = "Dominant shares of ten teams that always have work, over a day"
    with chart(CHART, title=title, told=told, width=9.5, height=3.4) as figure:
        panels: Sequence[Any] = figure.subplots(1, len(rows), sharey=True)
        for axes, (policy, row) in zip(panels, rows.items(), strict=True):
            colour = OURS_COLOUR if policy == OURS else PEER_COLOUR
            seen = set()
            for team, shares in row["shares"].items():
                mix = row["mixes"][team]
                hours = [(n + 0.5) * WINDOW_S / HOUR_S for n in range(len(shares))]
                label = None if mix in seen else {"cpus": "CPUs", "memory": "memory", "gpus": "GPUs"}[mix]
                seen.add(mix)
                percent = [100 * share for share in shares]
                axes.plot(hours, percent, color=colour, linewidth=1.1, linestyle=DASHES[mix], label=label)
            axes.set_title(policy)
            axes.set_xlabel("hour of the day")
            axes.set_xticks(range(0, 25, 4))
            plain(axes, grid="y")
        panels[0].set_ylim(bottom=0)
        panels[0].legend(frameon=False, loc="upper center", ncols=len(DASHES))
        panels[0].set_ylabel("dominant share, % of the cluster")


if __name__ == "__main__":
    sys.exit(main())

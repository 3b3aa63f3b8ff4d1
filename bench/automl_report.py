"""The comparison with the peers for readers: the results of ``docs/benchmark.md`` and a chart for each budget.

Only the part of the page between two markers is written; what is around them,
how it was measured, is written by people.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.chart import INK, OURS_COLOUR, PEER_COLOUR, chart, plain
from bench.factory_fit import limit_s
from bench.peers import OURS, PEERS, REFERENCE
from bench.ranking import Cells, Standing, cells, complete, mean_scores, standings, worse_than
from bench.record import ROOT
from bench.runs import Run
from bench.sets import SETS

PAGE = ROOT / "docs" / "benchmark.md"
BEGIN, END = "<!-- results: begin, written by python -m bench.automl --report -->", "<!-- results: end -->"


def write_report(runs: Sequence[Run], *, journal: Path) -> int:
    """Write the page, its charts and the runs; return 1 where there is nothing to tell.

    Args:
        runs: The newest of each key.
        journal: Where they came from; named where there are none.
    """
    sections = []
    for budget_s in sorted({run.budget_s for run in runs}):
        peers = [peer for peer in (OURS, *PEERS) if any(run.peer == peer for run in _of(runs, budget_s))]
        whole = complete(cells(runs, budget_s=budget_s), peers)
        if len(peers) > 1 and whole:
            sections.append(section(whole, peers, budget_s=budget_s, n_runs=len(_of(runs, budget_s))))
    if not sections:
        print(f"No table in {journal.relative_to(ROOT)} has been run by two systems or more.")
        return 1
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(sections) + f"\n\n{END}{after}")
    print(f"Written: {PAGE.relative_to(ROOT)} and its charts")
    return 0


def section(whole: Cells, peers: Sequence[str], *, budget_s: int, n_runs: int) -> str:
    """Return the Markdown of one budget, and draw its chart.

    Args:
        whole: Cells in which each system has run.
        peers: The systems.
        budget_s: Seconds that each was given.
        n_runs: Of this budget, those of other cells included.
    """
    table = standings(whole, peers, limit_s=limit_s(budget_s))
    chart = PAGE.with_name(f"benchmark-{budget_s}s.svg")
    draw(table, chart, budget_s=budget_s)
    used = [run for cell in whole.values() for run in cell.values()]
    told = [
        f"### {budget_s} seconds",
        f"![Average rank, wall time and one-row latency of each system at {budget_s} seconds]({chart.name})",
        _standings(table, limit_s=limit_s(budget_s)),
        _scores(whole, [standing.peer for standing in table]),
        _verdict(whole, peers),
        _circumstances(used, n_runs=n_runs),
    ]
    return "\n\n".join(part for part in told if part)


def _standings(table: Iterable[Standing], *, limit_s: float) -> str:
    heading = ["system", "average rank", "95 % interval", "first on", f"within {limit_s:g} s", "wall s, median (most)"]
    heading += ["one row, median ms", "peak PSS MB, median (most)", "failed"]
    rows = [
        [
            _bold(standing.peer),
            f"{standing.rank.mean:.2f}",
            f"{standing.rank.low:.2f} to {standing.rank.high:.2f}",
            str(standing.firsts),
            f"{standing.kept:.0%}",
            f"{standing.wall_s[0]:.0f} ({standing.wall_s[1]:.0f})",
            "" if standing.latency_ms is None else f"{standing.latency_ms:.3g}",
            f"{standing.peak_pss_mb[0]:,.0f} ({standing.peak_pss_mb[1]:,.0f})",
            str(standing.failed),
        ]
        for standing in table
    ]
    return _table(heading, rows)


def _scores(whole: Cells, peers: Sequence[str]) -> str:
    heading = ["table", "score", *map(_bold, peers)]
    rows = []
    for data, found in mean_scores(whole, peers).items():
        scores = [score for score in found.values() if score is not None]
        best = (min if SETS[data].lower_is_better else max)(scores, default=None)
        cells_ = []
        for peer in peers:
            score = found[peer]
            shown = "failed" if score is None else f"{score:.5g}"
            cells_.append(f"**{shown}**" if score is not None and score == best else shown)
        rows.append([data, SETS[data].metric, *cells_])
    return _table(heading, rows)


def _verdict(whole: Cells, peers: Sequence[str]) -> str:
    if not {OURS, REFERENCE} <= set(peers):
        return ""
    worse = worse_than(whole, OURS, REFERENCE)
    if not worse:
        return f"Ours is worse than {REFERENCE} on no table."
    return f"Ours is worse than {REFERENCE} on {', '.join(worse)}."


def _circumstances(used: Sequence[Run], *, n_runs: int) -> str:
    """Return when, where and with what the runs were made."""
    seeds = sorted({run.seed for run in used})
    dates = sorted({run.date[:10] for run in used})
    commits = sorted({run.commit for run in used if run.peer == OURS})
    machine = used[-1].hardware
    others = [run.others_cores for run in used]
    versions: dict[str, set[str]] = {}
    for run in used:
        for name, number in run.versions.items():
            versions.setdefault(name, set()).add(number)
    return (
        f"{len(used)} of {n_runs} runs, on the {len({run.data for run in used})} tables that each system has run; "
        f"seeds {', '.join(map(str, seeds))}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; commit "
        f"{', '.join(commits) or 'none of ours'}; {machine.get('cpu')}, {machine.get('memory_gib')} GiB, "
        f"{machine.get('system')}; everything else on the machine kept {statistics.median(others):.2f} cores busy "
        f"(median; at most {max(others):.2f}). "
        + "".join(f"{name} {' and '.join(sorted(numbers))}, " for name, numbers in sorted(versions.items()))
    ).strip(" ,")


def draw(table: Sequence[Standing], path: Path, *, budget_s: int) -> None:
    """Draw the systems' average ranks, wall times and latencies, one row each, as SVG for light and dark pages."""
    told = "; ".join(f"{s.peer}: rank {s.rank.mean:.2f}, {s.wall_s[0]:.0f} s" for s in table)
    title, height = f"AutoML systems at {budget_s} seconds", 0.8 + 0.36 * len(table)
    with chart(path, title=title, told=told, width=9.5, height=height) as figure:
        rank, wall, latency = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
        for row, standing in enumerate(reversed(table)):
            colour = OURS_COLOUR if standing.peer == OURS else PEER_COLOUR
            rank.plot([standing.rank.low, standing.rank.high], [row, row], color=colour, linewidth=2)
            rank.plot(standing.rank.mean, row, "o", color=colour)
            wall.plot(standing.wall_s, [row, row], color=colour, linewidth=2)
            wall.plot(standing.wall_s[0], row, "o", color=colour)
            if standing.latency_ms is not None:
                latency.plot(standing.latency_ms, row, "o", color=colour)
        rank.set_yticks(range(len(table)), [standing.peer for standing in reversed(table)])
        rank.set_xlabel("average rank, 95 % interval (1 is best)")
        wall.axvline(limit_s(budget_s), color=INK, linewidth=0.8, linestyle="--")
        wall.set_xlim(left=0)
        wall.set_xlabel("wall s, median to most; limit dashed")
        latency.set_xscale("log")
        latency.set_xlabel("one row, median ms")
        for axes in (rank, wall, latency):
            plain(axes, grid="x")


def _of(runs: Iterable[Run], budget_s: int) -> list[Run]:
    return [run for run in runs if run.budget_s == budget_s]


def _bold(peer: str) -> str:
    return f"**{peer}**" if peer == OURS else peer


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells_) + " |" for cells_ in lines)

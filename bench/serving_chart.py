"""Charts of the predictor under load, for docs/serving.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.chart import INK, OURS_COLOUR, PEER_COLOUR, chart, plain
from bench.record import ROOT

LOAD, PEERS = ROOT / "docs" / "serving-load.svg", ROOT / "docs" / "serving-peers.svg"
NAMES, FAULTS = ROOT / "docs" / "serving-names.svg", ROOT / "docs" / "serving-faults.svg"

Row = Mapping[str, Any]


def draw_load(rows: Sequence[Row]) -> None:
    """Draw latency and answers a second over the number of clients, of the predictor and of what does nothing."""
    ours = [row for row in rows if row["system"] == "predictor"]
    idle = [row for row in rows if row["system"] == "nothing"]
    told = _told([*ours, *idle])
    with chart(LOAD, title="The predictor under load", told=told, width=7.4, height=2.9) as figure:
        latency, answers = figure.subplots(1, 2)
        for key, style, name in (("p50_ms", "-", "median"), ("p99_ms", "--", "99th percentile")):
            at = [row["clients"] for row in ours]
            latency.plot(at, [row[key] for row in ours], style, marker="o", ms=3, color=OURS_COLOUR, label=name)
            latency.plot(
                [row["clients"] for row in idle], [row[key] for row in idle], style, marker="o", ms=3, color=PEER_COLOUR
            )
        latency.set(xscale="log", yscale="log", xlabel="clients", ylabel="ms a call")
        latency.legend(frameon=False, loc="upper left")
        answers.plot([r["clients"] for r in ours], [r["good_a_second"] for r in ours], "-o", ms=3, color=OURS_COLOUR)
        answers.plot([r["clients"] for r in idle], [r["good_a_second"] for r in idle], "-o", ms=3, color=PEER_COLOUR)
        for row, name, colour in ((ours[-1], "predictor", OURS_COLOUR), (idle[-1], "nothing", PEER_COLOUR)):
            answers.annotate(
                name,
                (row["clients"], row["good_a_second"]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="right",
                color=colour,
            )
        answers.set(xscale="log", xlabel="clients", ylabel="answers a second", ylim=(0, None))
        for axes in (latency, answers):
            axes.set_xticks([1, 4, 16, 64, 192], ["1", "4", "16", "64", "192"])
            axes.minorticks_off()
            plain(axes, grid="y")


def draw_peers(rows: Sequence[Row], *, ours: str) -> None:
    """Draw answers a second and latency of each system with each model.

    Args:
        rows: One for each model, system and number of clients.
        ours: Name of our system.
    """
    most = max(row["clients"] for row in rows)
    panels = {
        f"answers a second, {most} clients": ("good_a_second", most),
        "median ms, one client": ("p50_ms", 1),
        "99th percentile, one client": ("p99_ms", 1),
    }
    models = list(dict.fromkeys(row["model"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    told = _told(rows)
    height = 1.0 + 0.24 * len(models) * len(systems)
    with chart(PEERS, title="One row over HTTP beside other servers", told=told, width=7.4, height=height) as figure:
        grid = figure.subplots(len(models), len(panels), squeeze=False, sharey=True)
        for model, line in zip(models, grid, strict=True):
            line[0].set_ylabel(model)
            for (title, (key, clients)), axes in zip(panels.items(), line, strict=True):
                found = {r["system"]: r[key] for r in rows if r["model"] == model and r["clients"] == clients}
                shown = systems[::-1]
                values = [found.get(system, 0.0) for system in shown]
                colours = [OURS_COLOUR if system == ours else PEER_COLOUR for system in shown]
                bars = axes.barh(shown, values, color=colours)
                axes.bar_label(
                    bars, [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values], padding=3
                )
                axes.set_xlim(0, 1.25 * max(values))
                if model == models[0]:
                    axes.set_title(title, loc="left", fontsize=8)
                axes.set_xticks([])
                plain(axes, grid="x")


def draw_names(rows: Sequence[Row], *, most_p99_ms: float) -> None:
    """Draw the latency of each minute of calls of many names, and how many of them had to load a variant.

    Args:
        rows: One for each size of the cache and minute, those of a size in their order.
        most_p99_ms: Limit of the 99th percentile once the first minute is over.
    """
    caches = list(dict.fromkeys(row["cache_mb"] for row in rows))
    told = "; ".join(
        f"{row['cache_mb']:,} MB, {row['minute']} minute: median {row['p50_ms']:g} ms, 99th percentile "
        f"{row['p99_ms']:g} ms, {row['hit_rate']} in memory"
        for row in rows
    )
    with chart(NAMES, title="A thousand variants, called by Zipf's law", told=told, width=7.4, height=2.4) as figure:
        for cache, axes in zip(caches, figure.subplots(1, len(caches), squeeze=False, sharey=True)[0], strict=True):
            mine = [row for row in rows if row["cache_mb"] == cache]
            at = range(len(mine))
            slow = axes.bar([x - 0.2 for x in at], [row["p99_ms"] for row in mine], 0.38, color=OURS_COLOUR)
            axes.bar_label(slow, [f"{row['p99_ms']:.0f}" for row in mine], label_type="center", color="white")
            half = axes.bar([x + 0.2 for x in at], [row["p50_ms"] for row in mine], 0.38, color=PEER_COLOUR)
            axes.bar_label(half, [f"{row['p50_ms']:.0f}" for row in mine], padding=2)
            axes.axhline(most_p99_ms, color=INK, lw=0.8, ls="--", zorder=0)
            axes.set_title(f"room for {cache:,} MB", loc="left", fontsize=9)
            axes.set_xticks(at, [f"{row['minute']}\n{row['hit_rate']}" for row in mine])
            axes.set_xlabel("minute, and share of calls whose variant was in memory", fontsize=8)
            axes.margins(y=0.15)
            plain(axes, grid="y")
        first = figure.axes[0]
        first.set_ylabel("ms a call")
        first.annotate("wanted", (2.5, most_p99_ms), xytext=(0, 3), textcoords="offset points", ha="right")
        figure.legend(
            [slow, half], ["99th percentile", "median"], frameon=False, ncols=2, loc="outside upper right", fontsize=8
        )


def draw_faults(rows: Sequence[Row]) -> None:
    """Draw how long callers see that a part was killed, and how many calls fail; a row for each part."""
    told = "; ".join(
        f"{row['part']}, killed {row['times']} times: at most {row['most_after']} calls failed, the last "
        f"{row['outage_s']:g} s after the kill, {row['outage_worst_s']:g} s at worst"
        for row in rows
    )
    shown = rows[::-1]
    parts = [str(row["part"]) for row in shown]
    height = 0.7 + 0.26 * len(rows)
    with chart(FAULTS, title="What callers see of a killed part", told=told, width=7.4, height=height) as figure:
        time, calls = figure.subplots(1, 2, sharey=True)
        worst = time.barh(parts, [row["outage_worst_s"] for row in shown], color=PEER_COLOUR)
        time.barh(parts, [row["outage_s"] for row in shown], color=OURS_COLOUR)
        told_s = [f"{row['outage_s']:g}, worst {row['outage_worst_s']:g}" if row["most_after"] else "" for row in shown]
        time.bar_label(worst, told_s, padding=3)
        time.set_title("s until the last failed call", loc="left", fontsize=9)
        failed = calls.barh(parts, [row["most_after"] for row in shown], color=OURS_COLOUR)
        calls.bar_label(failed, padding=3)
        calls.set_title("failed calls of one kill, most", loc="left", fontsize=9)
        for axes in (time, calls):
            axes.set_xlim(0, 1.6 * max(1.0, axes.get_xlim()[1]))
            axes.set_xticks([])
            plain(axes, grid="x")


def _told(rows: Sequence[Row]) -> str:
    """Return rows in words."""
    return "; ".join(
        f"{', '.join(str(row[key]) for key in ('model', 'system') if key in row)}, {row['clients']} clients: "
        f"{row['good_a_second']:,.0f} answers a second, median {row['p50_ms']:g} ms, "
        f"99th percentile {row['p99_ms']:g} ms"
        for row in rows
    )

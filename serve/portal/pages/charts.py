"""Figures for Plotly: what they show is decided here, how they look in the page's script and style."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from factory.operate.traffic import Traffic
from factory.spec import Trial, TrialState
from serve.portal.pages.names import NAMES
from serve.portal.pages.words import Words
from serve.portal.progress import Mark, Progress

Figure = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """How a family is drawn, the same in every chart and beside it.

    Attributes:
        colour: Told apart on light and on dark, also by most people who see few colours.
        symbol: Plotly's name of its mark.
    """

    colour: str
    symbol: str

    @property
    def path(self) -> str:
        """Return the mark in a box of 10 by 10, for SVG."""
        return PATHS[self.symbol]


COLOURS = (
    "#0f8a82", "#e07b39", "#5b7fd4", "#b5547f", "#8a9a34", "#8b6cc7", "#3d9bc4", "#b98a2f", "#64707d", "#cf5d52",
    "#4f9e5b", "#9a6a4f",
)  # fmt: skip
PATHS = {
    "circle": "M5 .5a4.5 4.5 0 1 0 .01 0z",
    "square": "M1 1h8v8h-8z",
    "diamond": "M5 0l5 5-5 5-5-5z",
    "triangle-up": "M5 .5l5 9h-10z",
    "pentagon": "M5 0l5 3.7-1.9 6h-6.2l-1.9-6z",
    "cross": "M3.3 0h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
}
FAMILIES = (
    "lightgbm", "catboost", "xgboost", "extra_trees", "random_forest", "linear", "tabm", "torch_network",
    "keras_network", "neighbours", "kernel", "constant",
)  # fmt: skip
FAILED = frozenset({TrialState.FAILED, TrialState.KILLED, TrialState.OUT_OF_MEMORY})
LOST = {
    "failed": ("#cf5d52", "x-thin-open", "M1 1l8 8M9 1l-8 8"),
    "pruned": ("#8a8f98", "line-ns-open", "M5 0v10"),
}
"""Trials without a score are marks at the lower edge: colour, symbol and path."""


def look_of(family: str) -> Look:
    """Return how a family is drawn: no two of ours alike, and those of plug-ins always the same."""
    place = FAMILIES.index(family) if family in FAMILIES else sum(family.encode())
    return Look(COLOURS[place % len(COLOURS)], tuple(PATHS)[place % len(PATHS)])


def score_over_trials(progress: Progress, *, metric: str, words: Words) -> Figure:
    """Return the scores of trials in their order, by family, those without one at the edge, and the best so far."""
    shown = [mark for mark in progress.marks if mark.score is not None]
    traces: list[Figure] = []
    for family in dict.fromkeys(mark.family for mark in shown):
        # The legend has the mark of the first one.
        those = sorted(
            (mark for mark in shown if mark.family == family), key=lambda m: m.state is not TrialState.SUCCEEDED
        )
        look = look_of(family)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": words(_name(family)),
                "meta": {"family": family, "path": look.path},
                "x": [mark.number for mark in those],
                "y": [mark.score for mark in those],
                "text": [words(NAMES["trial"][mark.state]) for mark in those],
                "hovertemplate": "%{y:.5g}<br>%{text}<extra>%{fullData.name} #%{x}</extra>",
                "marker": {"size": 8, "color": look.colour, "symbol": [symbol_of(mark) for mark in those]},
            }
        )
    traces += [_lost(progress.marks, kind, words) for kind in LOST]
    steps = [(mark.number, mark.score) for mark in progress.leading]
    last = max((mark.number for mark in progress.marks), default=0)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": words("Best so far"),
            "meta": {"family": "", "path": "M0 5h10"},
            "x": [number for number, _ in steps] + [last][: len(steps)],
            "y": [score for _, score in steps] + [score for _, score in steps[-1:]],
            "line": {"shape": "hv", "width": 2, "color": "#8a8f98"},
            "hoverinfo": "skip",
        }
    )
    low = worth_seeing([mark.score for mark in shown if mark.score is not None])
    layout: Figure = {
        "xaxis": {"title": {"text": words("Trial")}, "tickformat": "d", "rangemode": "tozero"},
        "yaxis": {"title": {"text": metric}, **({"range": low} if low else {})},
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "uirevision": "kept",
    }
    return {"data": traces, "layout": layout}


def symbol_of(mark: Mark) -> str:
    """Return the mark of a trial with a score: its family's, open where it was pruned, a cross where it failed."""
    if mark.state in FAILED:
        return "x-thin-open"
    symbol = look_of(mark.family).symbol
    return f"{symbol}-open" if mark.state is TrialState.PRUNED else symbol


def _lost(marks: Sequence[Mark], kind: str, words: Words) -> Figure:
    """Return those that came to no score, as marks at the lower edge."""
    those = [
        mark
        for mark in marks
        if mark.score is None and (mark.state in FAILED if kind == "failed" else mark.state is TrialState.PRUNED)
    ]
    colour, symbol, path = LOST[kind]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": words(NAMES["trial"][kind]),
        "meta": {"lost": kind, "path": path},
        "yaxis": "y2",
        "x": [mark.number for mark in those],
        "y": [0.015] * len(those),
        "text": [f"{words(_name(mark.family))}: {words(NAMES['trial'][mark.state])}" for mark in those],
        "hovertemplate": "%{text}<extra>#%{x}</extra>",
        "showlegend": bool(those),
        "marker": {"size": 9, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
    }


def looks(families: Iterable[str], words: Words) -> dict[str, dict[str, str]]:
    """Return how families are named and drawn, for trials that come while one looks."""
    found = {}
    for family in dict.fromkeys((*FAMILIES, *families)):
        look = look_of(family)
        found[family] = {
            "name": words(_name(family)),
            "colour": look.colour,
            "symbol": look.symbol,
            "path": look.path,
        }
    return found


def _name(family: str) -> str:
    return NAMES["family"].get(family, family)


def worth_seeing(scores: Sequence[float]) -> list[float] | None:
    """Return the range of scores in which something can be told apart: a constant far below would flatten the rest."""
    if len(scores) < 4:
        return None
    ordered = sorted(scores)
    low, high = ordered[len(ordered) // 4], ordered[-1]
    spread = max(high - low, 1e-9)
    floor = min(score for score in ordered if score >= low - 3 * spread)
    if floor == ordered[0]:
        return None
    return [floor - 0.1 * (high - floor), high + 0.1 * (high - floor)]


def learning_curves(trials: Sequence[Trial], *, words: Words) -> Figure | None:
    """Return the training and validation losses of some trials; None where there are none."""
    if not trials:
        return None
    traces = []
    for trial in trials:
        for part, dash in (("validation", "solid"), ("train", "dot")):
            points = [(p.step, value) for p in trial.curve if (value := getattr(p, part)) is not None]
            if points:
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "name": f"{words(_name(trial.family))} {trial.number}, {words(_PARTS[part])}",
                        "x": [step for step, _ in points],
                        "y": [value for _, value in points],
                        "line": {"color": look_of(trial.family).colour, "dash": dash, "width": 2},
                    }
                )
    layout = {"xaxis": {"title": {"text": words("Round or epoch")}}, "yaxis": {"title": {"text": words("Loss")}}}
    return {"data": traces, "layout": layout}


_PARTS = {"validation": "validation", "train": "training"}


def tones(traffic: Traffic) -> list[tuple[int, str, int]]:
    """Return the versions that were called, each with its colour in the chart and its calls."""
    versions = sorted({point.version for point in traffic.points})
    calls = {version: sum(p.calls for p in traffic.points if p.version == version) for version in versions}
    return [
        (version, colour, calls[version]) for colour, version in zip(itertools.cycle(COLOURS), versions, strict=False)
    ]


def calls_over_time(traffic: Traffic, *, words: Words) -> Figure:
    """Return calls by version over time, and below them what 95 % of each version's took at most, in ms."""
    half = timedelta(seconds=traffic.span_s / 2)
    traces: list[Figure] = []
    for version, colour, _ in tones(traffic):
        those = [point for point in traffic.points if point.version == version]
        shared: Figure = {
            "name": words("Version {n}", n=version),
            "showlegend": False,  # the page tells the colours in words, at every width
            "x": [(point.began + half).isoformat() for point in those],
        }
        marker = {"color": colour}
        traces.append(
            shared
            | {"type": "bar", "y": [p.calls * 60 / traffic.span_s for p in those], "width": traffic.span_s * 900}
            | {"marker": marker, "hovertemplate": "%{y:.3g}<extra>%{fullData.name}</extra>"}
        )
        slow = {"type": "scatter", "mode": "lines+markers", "y": [p.p95_ms for p in those], "yaxis": "y2"}
        look = {"line": {"color": colour, "width": 2}, "marker": {"size": 5, **marker}}
        traces.append(shared | slow | look | {"hovertemplate": "%{y:.3g} ms<extra>%{fullData.name}</extra>"})
    titles = ((1.0, words("Calls a minute")), (0.36, words("95% within, ms")))
    layout: Figure = {
        "barmode": "stack",
        "margin": {"l": 50, "r": 12, "t": 30, "b": 44},
        "annotations": [
            {"text": text, "showarrow": False, "align": "left"}
            | {"xref": "paper", "yref": "paper", "x": 0, "y": y, "xanchor": "left", "yanchor": "bottom"}
            for y, text in titles
        ],
        "xaxis": {"type": "date", "anchor": "y2", "range": [one.isoformat() for one in (traffic.since, traffic.until)]},
        "yaxis": {"domain": [0.5, 1], "rangemode": "tozero"},
        "yaxis2": {"domain": [0, 0.36], "rangemode": "tozero"},
    }
    return {"data": traces, "layout": layout}

"""Figures for Plotly: what they show is decided here, how they look in the page's script and style."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from factory.operate.traffic import Traffic
from factory.spec import Trial, TrialState
from serve.portal.pages.names import NAMES
from serve.portal.pages.words import Words

Figure = dict[str, Any]

MOST_POINTS = 1_500
"""Trials that are drawn: the best so far, the latest, and of the others an even part; ten thousand take a second."""
COLOURS = (
    "#0f8a82", "#e07b39", "#5b7fd4", "#b5547f", "#8a9a34", "#8b6cc7", "#3d9bc4", "#b98a2f", "#64707d", "#cf5d52",
)  # fmt: skip
"""Of families, told apart on light and on dark, also by most people who see few colours."""
FAMILIES = (
    "lightgbm", "catboost", "xgboost", "extra_trees", "random_forest", "linear", "tabm", "torch_network",
    "keras_network", "neighbours",
)  # fmt: skip


def colour_of(family: str) -> str:
    """Return the colour of a family, the same in every chart."""
    if family in FAMILIES:
        return COLOURS[FAMILIES.index(family)]
    return COLOURS[sum(family.encode()) % len(COLOURS)]


def drawn_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that a chart shows, by number: not more than it can show quickly."""
    scored = [trial for trial in trials if trial.score is not None]
    if len(scored) <= MOST_POINTS:
        return scored
    best, leading = float("-inf"), set()
    for trial in scored:
        assert trial.score is not None
        if trial.score > best:
            best = trial.score
            leading.add(trial.number)
    latest = {trial.number for trial in scored[-MOST_POINTS // 3 :]}
    step = len(scored) / (MOST_POINTS / 2)
    even = {scored[int(i * step)].number for i in range(MOST_POINTS // 2)}
    return [trial for trial in scored if trial.number in leading | latest | even]


def score_over_trials(trials: Sequence[Trial], *, metric: str, words: Words) -> Figure:
    """Return the scores of trials in their order, coloured by family, and the best so far as a line."""
    shown = drawn_trials(trials)
    traces: list[Figure] = []
    for family in dict.fromkeys(trial.family for trial in shown):
        those = [trial for trial in shown if trial.family == family]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": words(_name(family)),
                "meta": family,
                "x": [trial.number for trial in those],
                "y": [trial.score for trial in those],
                "text": [_folds(trial, words) for trial in those],
                "hovertemplate": "%{y:.5g}<br>%{text}<extra>%{fullData.name}</extra>",
                "marker": {
                    "size": 8,
                    "color": colour_of(family),
                    "symbol": [_SYMBOLS.get(trial.state, "circle") for trial in those],
                },
            }
        )
    steps = best_so_far(shown)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": words("Best so far"),
            "meta": "best",
            "x": [number for number, _ in steps],
            "y": [score for _, score in steps],
            "line": {"shape": "hv", "width": 2, "color": "#8a8f98"},
            "hoverinfo": "skip",
        }
    )
    low = worth_seeing([trial.score for trial in shown if trial.score is not None])
    layout: Figure = {
        "xaxis": {"title": {"text": words("Trial")}, "tickformat": "d", "rangemode": "tozero"},
        "yaxis": {"title": {"text": metric}, **({"range": low} if low else {})},
        "uirevision": "kept",
    }
    return {"data": traces, "layout": layout}


_SYMBOLS = {
    TrialState.PRUNED: "triangle-down-open",
    TrialState.FAILED: "x",
    TrialState.KILLED: "x",
    TrialState.OUT_OF_MEMORY: "x",
}


def _name(family: str) -> str:
    return NAMES["family"].get(family, family)


def _folds(trial: Trial, words: Words) -> str:
    return words.many("{n} fold", "{n} folds", len(trial.folds))


def best_so_far(trials: Iterable[Trial]) -> list[tuple[int, float]]:
    """Return the steps of the best score: trial and score, and the last trial again."""
    steps: list[tuple[int, float]] = []
    last = 0
    for trial in trials:
        last = trial.number
        if trial.score is not None and (not steps or trial.score > steps[-1][1]):
            steps.append((trial.number, trial.score))
    return [*steps, (last, steps[-1][1])] if steps else []


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


def learning_curves(trials: Sequence[Trial], *, words: Words, most: int = 6) -> Figure | None:
    """Return the training and validation losses of the best trials that have a curve; None where none has."""
    curved = [trial for trial in trials if len(trial.curve) > 1 and trial.score is not None]
    best = sorted(curved, key=lambda trial: -(trial.score or 0.0))[:most]
    if not best:
        return None
    traces = []
    for trial in best:
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
                        "line": {"color": colour_of(trial.family), "dash": dash, "width": 2},
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
    titles = ((1.0, words("Calls a minute")), (0.36, words("95 % within, ms")))
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

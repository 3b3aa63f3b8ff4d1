"""Small inline SVG charts of the model card.

Written by hand rather than by a plotting library: a chart is one or two
kilobytes, takes its colours from the card's style sheet (so it follows light
and dark), stays sharp at every size, and is the same text every time.  All
coordinates are numbers of ours; every label goes through ``escape``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 260
"""Units of a chart's box; about a phone's width, so that text keeps its size there."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 38


@dataclass(frozen=True)
class Frame:
    """The plotted area: data ranges and how they map to the box."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point in the box."""
        (x0, x1), (y0, y1) = self.x, self.y
        right = _LEFT + (x - x0) / (x1 - x0) * (self.width - _LEFT - _RIGHT)
        down = self.height - _BOTTOM - (y - y0) / (y1 - y0) * (self.height - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    def axes(self, *, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
        """Draw grid lines, tick labels and axis titles; ``x_ticks`` names places where an axis is not linear."""
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        parts = []
        for value, label in x_ticks or [(value, short(value)) for value in ticks(*self.x)]:
            across, _ = self.at(value, self.y[0])
            parts.append(f'<text x="{across}" y="{bottom + 14}" text-anchor="middle">{escape(label)}</text>')
        for value in ticks(*self.y):
            _, down = self.at(self.x[0], value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{down}" y2="{down}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{down + 3.5}" text-anchor="end">{short(value)}</text>')
        middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(
            f'<text class="title" x="{middle_x}" y="{self.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
        )
        parts.append(
            f'<text class="title" transform="translate(11 {middle_y}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return "".join(parts)

    def line(self, points: Iterable[tuple[float, float]], *, css: str) -> str:
        """Draw a polyline; a single point becomes a dot."""
        places = [self.at(x, y) for x, y in points]
        if len(places) == 1:
            return f'<circle class="{css}" cx="{places[0][0]}" cy="{places[0][1]}" r="3"/>'
        return f'<polyline class="{css}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'


def calibration_chart(bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Draw predicted against observed frequencies.

    Args:
        bins: Predicted probability, observed frequency and rows of each bin.
    """
    frame = Frame((0, 1), (0, 1))
    body = frame.axes(x_label="predicted probability", y_label="observed frequency")
    body += frame.line([(0, 0), (1, 1)], css="ideal")
    body += frame.line([(predicted, observed) for predicted, observed, _ in bins], css="line a")
    for predicted, observed, n_rows in bins:
        x, y = frame.at(predicted, observed)
        told = f"predicted {predicted:.3f}, observed {observed:.3f}, {n_rows:,} rows"
        body += f'<circle class="dot a" cx="{x}" cy="{y}" r="3.5"><title>{told}</title></circle>'
    return _svg(body, "Calibration: predicted probability against observed frequency")


def scatter_chart(points: Sequence[tuple[float, float]], *, target: str) -> Markup:
    """Draw predicted against true values of a sample of rows, with the diagonal where they agree."""
    values = np.asarray(points, dtype=np.float64)
    low, high = padded(float(values.min()), float(values.max()))
    frame = Frame((low, high), (low, high))
    body = frame.axes(x_label="predicted", y_label=f"true {target}"[:40])
    body += frame.line([(low, low), (high, high)], css="ideal")
    places = (frame.at(x, y) for x, y in points)
    body += "".join(f'<circle class="point a" cx="{x}" cy="{y}" r="2.2"/>' for x, y in places)
    return _svg(body, f"Predicted against true values of {target}")


def curve_chart(points: Sequence[tuple[int, float | None, float | None]], *, name: str) -> Markup:
    """Draw a learning curve.

    Args:
        points: Step, training loss and validation loss, each None where there is none.
        name: Whose curve it is.
    """
    sides = {
        "a": [(float(step), train) for step, train, _ in points if train is not None and math.isfinite(train)],
        "b": [(float(step), held) for step, _, held in points if held is not None and math.isfinite(held)],
    }
    losses = [value for side in sides.values() for _, value in side]
    if not losses:
        return Markup("")
    steps = [step for step, _, _ in points]
    frame = Frame(padded(min(steps), max(steps), by=0), padded(min(losses), _without_start(losses)))
    body = frame.axes(x_label="rounds or epochs", y_label="loss")
    ceiling = frame.y[1]
    for css, side in sides.items():
        if side:
            body += frame.line([(x, min(y, ceiling)) for x, y in side], css=f"line {css}")
    return _svg(body, f"Learning curve of {name}")


def difference_chart(low: float, value: float, high: float, *, margin: float) -> Markup:
    """Draw an improvement with its interval against zero and the margin that is asked for."""
    start, end = padded(min(low, 0.0, margin), max(high, 0.0, margin), by=0.12)
    width, height, middle = WIDTH, 74.0, 26.0

    def across(x: float) -> float:
        return round(14 + (x - start) / (end - start) * (width - 28), 1)

    marks = [f'<line class="zero" x1="{across(0)}" x2="{across(0)}" y1="6" y2="46"/>']
    if margin:
        marks.append(f'<line class="ideal" x1="{across(margin)}" x2="{across(margin)}" y1="6" y2="46"/>')
    side = "good" if low > margin else "bad" if high < margin else "open"
    marks.append(f'<line class="interval {side}" x1="{across(low)}" x2="{across(high)}" y1="{middle}" y2="{middle}"/>')
    marks.append(f'<circle class="dot {side}" cx="{across(value)}" cy="{middle}" r="5"/>')
    marks.extend(
        f'<text x="{across(tick)}" y="60" text-anchor="middle">{short(tick)}</text>' for tick in ticks(start, end)
    )
    return _svg("".join(marks), "Improvement over the baseline with its interval", width=width, height=height)


def frontier_chart(points: Sequence[tuple[float, float, bool, str]], *, limit_ms: float) -> Markup:
    """Draw quality against latency, the latter by its logarithm.

    Args:
        points: Milliseconds of a row, score, whether it is the variant, and what is told of it; by rising latency.
        limit_ms: Drawn as a vertical line.
    """
    places = [math.log10(ms) for ms, _, _, _ in points]
    scores = [score for _, score, _, _ in points]
    limit = math.log10(limit_ms)
    low, high = padded(min(*places, limit), max(*places, limit), by=0.06)
    frame = Frame((low, high), padded(min(scores), max(scores), by=0.1))
    decades = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    marks = [(math.log10(v), short(round(v, 9))) for v in decades if low <= math.log10(v) <= high]
    body = frame.axes(x_label="one row, ms", y_label="", x_ticks=marks)
    body += frame.line([(limit, frame.y[0]), (limit, frame.y[1])], css="ideal")
    # A point's score holds until the next one can be paid for.
    ends = [*places[1:], high]
    steps = [xy for x, end, y in zip(places, ends, scores, strict=True) for xy in ((x, y), (end, y))]
    body += frame.line(steps, css="line a")
    for x, (_, score, chosen, told) in zip(places, points, strict=True):
        across, down = frame.at(x, score)
        css, radius = ("dot b", 6) if chosen else ("dot a", 3.5)
        body += f'<circle class="{css}" cx="{across}" cy="{down}" r="{radius}"><title>{escape(told)}</title></circle>'
    return _svg(body, "Quality against latency: the best blend for each time a row may take")


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round numbers within a range.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    raw = span / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def short(value: float) -> str:
    """Return a tick's label: thousands as k, millions as M.

    >>> short(0.2), short(-1500.0), short(2e6), short(0)
    ('0.2', '-1.5k', '2M', '0')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def padded(low: float, high: float, *, by: float = 0.04) -> tuple[float, float]:
    """Widen a range a little, and an empty one enough to be drawn."""
    span = high - low
    if span <= 1e-12 * max(abs(low), abs(high), 1e-12):
        span = max(abs(low), 1.0)
        return low - span / 2, high + span / 2
    return low - by * span, high + by * span


def _without_start(losses: Sequence[float]) -> float:
    """Upper end of a loss axis: the first steps of a training may be so high that they flatten all the rest."""
    return float(min(max(losses), 3 * np.quantile(losses, 0.9) - 2 * min(losses)))


def _svg(body: str, description: str, *, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    return Markup(  # noqa: S704 - numbers of ours and escaped labels
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">{body}</svg>'
    )

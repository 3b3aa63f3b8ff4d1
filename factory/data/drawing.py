"""A preparation as an ONNX graph: what :meth:`Preparation.transform` does, but for texts.

Inputs are the raw columns, one value a row: numbers and booleans as float32,
categories as their canonical text (``factory.data.columns.text_of``; empty
where missing), datetimes as microseconds since 1970 in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from factory.data.crosses import LARGEST, Cross
from factory.data.dates import on_circle
from factory.data.graph import DOUBLE, FLOAT, INT64, ML, STRING, CannotDraw, DrawnTable, Graph

MISSING_MOMENT = np.iinfo(np.int64).min
"""A datetime that is missing, as NumPy writes NaT."""
_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_MARCH = 719_468
"""Days from 0000-03-01 to 1970-01-01: with years from March on leap days come last (Hinnant 2014, "chrono-Compatible
Low-Level Date Algorithms")."""
_NAN = np.array([[np.nan]], dtype=np.float32)


def draw(
    graph: Graph,
    *,
    numeric: Sequence[Any],
    categorical: Sequence[Any],
    gaps: Sequence[tuple[str, str]],
    crosses: Sequence[Cross],
    names: Sequence[str],
) -> DrawnTable:
    """Draw a preparation's table.

    Args:
        graph: To draw on.
        numeric: Plans of numbers, datetimes and texts.
        categorical: Plans of categories.
        gaps: Pairs of datetime columns between which days are counted, the later one first.
        crosses: Products and ratios, the last numeric columns.
        names: Of the numeric columns without the crosses, in order.

    Raises:
        CannotDraw: there is a text column.
    """
    moments: dict[str, str] = {}
    parts: list[str] = []
    for plan in numeric:
        if plan.kind == "text":
            raise CannotDraw(f"the text column {plan.column!r}")
        if plan.kind == "numbers":
            parts.append(graph.take(plan.column, FLOAT))
            continue
        moment = moments[plan.column] = graph.take(plan.column, INT64)
        parts += _calendar(graph, moment, plan.parts, reference=plan.reference)
    parts += [_days_between(graph, moments[later], moments[earlier]) for later, earlier in gaps]
    plain = None
    if parts:
        together = graph.beside(parts)
        plain = graph.add("Where", graph.add("IsInf", together), _NAN, together)
        if crosses:
            plain = graph.beside([plain, _crossed(graph, plain, crosses, names)])
    codes = [_codes(graph, plan.column, plan.levels) for plan in categorical]
    return DrawnTable(
        graph,
        numeric=plain,
        codes=graph.beside(codes) if codes else None,
        n_numeric=len(parts) + len(crosses),
        levels=tuple(len(plan.levels) + 1 for plan in categorical),
        n_crosses=len(crosses),
    )


def _codes(graph: Graph, column: str, levels: Sequence[str]) -> str:
    """Draw the codes of a category, int64 (n_rows, 1)."""
    known: Mapping[str, int] = {text: i + 1 for i, text in enumerate(levels)} or {"": 0}
    text = graph.take(column, STRING)
    return graph.add(
        "LabelEncoder", text, domain=ML, keys_strings=list(known), values_int64s=list(known.values()), default_int64=0
    )


def _crossed(graph: Graph, plain: str, crosses: Sequence[Cross], names: Sequence[str]) -> str:
    place = {name: i for i, name in enumerate(names)}
    made = []
    for cross in crosses:
        left, right = (graph.columns(plain, [place[name]]) for name in (cross.left, cross.right))
        value = graph.add("Mul" if cross.kind == "product" else "Div", left, right)
        small = graph.add("LessOrEqual", graph.add("Abs", value), np.array(LARGEST, dtype=np.float32))
        made.append(graph.add("Where", small, value, _NAN))
    return graph.beside(made)


# --- datetimes ----------------------------------------------------------------------------


def _calendar(graph: Graph, moment: str, parts: Sequence[str], *, reference: int) -> list[str]:
    """Draw the parts of a datetime, float32 (n_rows, 1) each, as :func:`factory.data.dates.calendar` has them."""
    missing = _equal(graph, moment, MISSING_MOMENT)
    clock = _Clock(graph, graph.add("Where", missing, _whole(0), moment))
    drawn = []
    for part in parts:
        value = clock.part(part, reference=reference)
        drawn.append(graph.add("Where", missing, _NAN, graph.cast(value, FLOAT)))
    return drawn


def _days_between(graph: Graph, later: str, earlier: str) -> str:
    missing = graph.add("Or", *(_equal(graph, moment, MISSING_MOMENT) for moment in (later, earlier)))
    gap = graph.cast(graph.add("Sub", later, earlier), DOUBLE)
    days = graph.cast(graph.add("Div", gap, np.array(float(_DAY_US))), FLOAT)
    return graph.add("Where", missing, _NAN, days)


class _Clock:
    """Whole numbers of a datetime; ONNX has none of its own. From year 0 on, since it divides towards zero."""

    def __init__(self, graph: Graph, moment: str) -> None:
        self._graph = graph
        since = graph.add("Add", moment, _whole(_MARCH * _DAY_US))
        self._hours = self._over(since, _HOUR_US)
        self._days = self._over(since, _DAY_US)
        of_era = self._rest(self._days, 146_097)
        leaps = (self._over(of_era, 1_460), self._over(of_era, 36_524), self._over(of_era, 146_096))
        shifted = self._less(self._more(self._less(of_era, leaps[0]), leaps[1]), leaps[2])
        year_of_era = self._over(shifted, 365)
        quarter, hundredth = self._over(year_of_era, 4), self._over(year_of_era, 100)
        begun = self._less(self._more(self._times(year_of_era, 365), quarter), hundredth)
        self._of_year = self._less(of_era, begun)
        self._month = self._over(self._more(self._times(self._of_year, 5), 2), 153)
        years = self._more(year_of_era, self._times(self._over(self._days, 146_097), 400))
        late = graph.cast(graph.add("GreaterOrEqual", self._month, _whole(10)), INT64)
        self._late, self._years = late, self._more(years, late)

    def part(self, name: str, *, reference: int) -> str:
        """Draw a part, int64 or float64 (n_rows, 1)."""
        if name == "year":
            return self._years
        if name == "month":
            return self._less(self._more(self._month, 3), self._times(self._late, 12))
        if name == "day":
            begun = self._over(self._more(self._times(self._month, 153), 2), 5)
            return self._more(self._less(self._of_year, begun), 1)
        if name == "weekday":
            return self._rest(self._more(self._days, (3 - _MARCH) % 7), 7)
        if name == "hour":
            return self._rest(self._hours, 24)
        if name == "days":
            return self._more(self._days, -_MARCH - reference)
        # Looked up: where a sine should be 0 it is 1e-16 or so, and a tree may split there.
        turn = self._since_january() if name.startswith("season_") else self._rest(self._hours, 24)
        return self._graph.add("Gather", on_circle(name), turn, axis=0)

    def _since_january(self) -> str:
        """Draw the days since the first of January."""
        before = self._less(self._years, 1)
        leaps = self._more(self._less(self._over(before, 4), self._over(before, 100)), self._over(before, 400))
        january = self._more(self._more(self._times(before, 365), leaps), 306)
        return self._less(self._days, january)

    def _over(self, value: str, by: int) -> str:
        return self._graph.add("Div", value, _whole(by))

    def _rest(self, value: str, of: int) -> str:
        return self._graph.add("Mod", value, _whole(of))

    def _times(self, value: str, by: int) -> str:
        return self._graph.add("Mul", value, _whole(by))

    def _more(self, value: str, by: str | int) -> str:
        return self._graph.add("Add", value, by if isinstance(by, str) else _whole(by))

    def _less(self, value: str, by: str | int) -> str:
        return self._graph.add("Sub", value, by if isinstance(by, str) else _whole(by))


def _equal(graph: Graph, value: str, to: int) -> str:
    return graph.add("Equal", value, _whole(to))


def _whole(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int64)

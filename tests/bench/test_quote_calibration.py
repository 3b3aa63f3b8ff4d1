"""The calibration of quotes asks for what it says, and counts what held."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bench.quote_calibration import ASKS, QUICK_ASKS, compared, document, part, summed, too_few
from bench.sets import SETS
from factory.operate.quotes import ExpectedScore, Interval, Quote
from factory.search.plan import check_request
from factory.settings import load_settings
from factory.spec import VariantRequest


@pytest.mark.parametrize("asks", [ASKS, QUICK_ASKS], ids=["all", "quick"])
def test_every_request_is_valid_and_made_after_its_parent(asks: Any, tmp_path: Any) -> None:
    names = [ask.name for ask in asks]
    assert len(set(names)) == len(names)
    for number, ask in enumerate(asks):
        assert ask.parent is None or ask.parent in names[:number]
        request = {"team": "bench", **document(ask, SETS[ask.data], tmp_path / "t.parquet", seed=0)}
        assert isinstance(check_request(request, settings=load_settings())[0], VariantRequest)
    if asks is ASKS:
        assert len(asks) >= 30
        assert {ask.making for ask in asks} >= {"cold", "auto", "refit", "incremental"}
        assert sum(ask.by is not None for ask in asks) >= 3
        assert sum(ask.trials is not None for ask in asks) >= 5


def test_parts_of_a_table_are_disjoint_and_together_all_of_it() -> None:
    frame = pd.DataFrame({"x": range(1000)})
    parts = [part(frame, (k,), seed=0) for k in range(3)]
    assert sorted(pd.concat(parts)["x"]) == list(range(1000))
    assert part(frame, (0, 1), seed=0)["x"].tolist() == sorted([*parts[0]["x"], *parts[1]["x"]])


def row(*, wall_s: float = 20.0, score: float | None = 0.8, returncode: int = 0) -> dict[str, Any]:
    wide = Interval(low=10, expected=20, high=30)
    told = ExpectedScore(
        metric="roc_auc", score=Interval(low=0.7, expected=0.75, high=0.85), n_requests=1, nearest="b.a", distance=0.1
    )
    quoted = Quote(wall_s=wide, used_cpu_s=wide, score=told, promise_s=40, currency="USD")
    return compared(quoted, wall_s=wall_s, cpu_s=20.0, score=score) | {"returncode": returncode}


def test_the_quotes_hold_if_as_many_lie_within_as_chance_would_have_it() -> None:
    met, line = summed([row(), row(wall_s=25.0, score=None, returncode=3)])
    assert met
    assert (line["wall_within"], line["score_within"], line["wall"]) == ("2 of 2", "1 of 1", "off by 12.5%")
    seldom = [row(wall_s=35.0)] * 14 + [row()] * 20
    assert too_few(34) == 22
    assert not summed(seldom)[0]
    assert summed([row(wall_s=35.0)] * 11 + [row()] * 23)[0]
    assert not summed([*[row()] * 33, row(wall_s=41.0)])[0]
    assert not summed([*[row()] * 33, row(returncode=1)])[0]


def test_a_score_that_nobody_quoted_is_not_counted() -> None:
    quoted = Quote(wall_s=Interval(low=1, expected=2, high=3), used_cpu_s=None, promise_s=40, currency="USD")
    came = compared(quoted, wall_s=2, cpu_s=2, score=0.9)
    assert came["score_within"] is None
    assert came["cpu_within"] is None
    assert came["score_came"] == 0.9
    assert summed([came | {"returncode": 0}])[1]["score_within"] == "0 of 0"

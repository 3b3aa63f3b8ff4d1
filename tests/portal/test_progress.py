"""How far a request is: one bounded answer, however many trials there are; and the page that is made from it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert

from factory.ledger import Ledger, schema
from factory.ledger.records import document_json
from factory.spec import RequestState, Trial
from serve.portal.pages.inner import Api
from serve.portal.progress import LEADERS, MOST_SCORED, MOST_UNSCORED, progress
from tests.portal.conftest import World
from tests.portal.test_pages import Visitor

STATES = ("succeeded", "succeeded", "succeeded", "pruned", "failed")


def put_trials(ledger: Ledger, request_id: str, n: int) -> None:
    """Put trials into the ledger as a search leaves them, at once."""
    rows = []
    for number in range(n):
        state = STATES[number % len(STATES)]
        score = None if state == "failed" else 0.5 + (number * 7919 % n) / (2 * n)
        trial = Trial(
            number=number, family="linear", parameters={"alpha": number}, state=state, score=score, cost_s=0.5
        )
        row = {"segment": "", "finished": True, "recorded": datetime.now(UTC), "document": document_json(trial)}
        told = trial.model_dump(mode="json", include={"number", "family", "state", "score", "cost_s", "origin"})
        rows.append({"request_id": request_id, **row, **told})
    with ledger._write() as connection:
        connection.execute(insert(schema.trials), rows)


def test_a_request_tells_how_far_it_is(world: World) -> None:
    request_id = world.submitted()
    put_trials(world.ledger, request_id, 40)
    segment = {"number": 0, "family": "linear", "parameters": {}, "state": "succeeded", "score": 0.99}
    world.ledger.record_trial(request_id, Trial(**segment, segment="north", cost_s=2))
    found = world("growth/read").get(f"/requests/{request_id}/progress").json()
    assert (found["n_trials"], found["n_segments"]) == (40, 1)
    assert found["states"] == {"succeeded": 24, "pruned": 8, "failed": 8}
    assert [one["number"] for one in found["marks"]] == list(range(40))
    scores = [one["score"] for one in found["best"]]
    assert len(scores) == LEADERS
    assert scores == sorted(scores, reverse=True)
    assert found["leading"][-1]["score"] == scores[0]
    assert found["spent"]["fits_s"] == pytest.approx(22)
    assert found["spent"]["held_s"] == 0
    assert world("risk/read").get(f"/requests/{request_id}/progress").status_code == 404


def test_time_and_money_count_what_jobs_hold_by_the_settings_prices(world: World) -> None:
    request_id = world.submitted()
    world.ledger.admit(request_id, cpus=2, gpus=1, memory_gb=4)
    record = world.ledger.request(request_id)
    now = datetime.now(UTC) + timedelta(hours=1)
    spent = progress(record, ledger=world.ledger, settings=world.settings, now=now).spent
    assert spent.held_s == pytest.approx(3600, abs=5)
    assert spent.money_an_hour == pytest.approx(2 * 0.05 + 2.5 + 4 * 0.005)
    assert spent.money == pytest.approx(spent.money_an_hour, rel=0.01)
    assert spent.expected_s == record.expected_s
    assert spent.promise_s == pytest.approx(60 * 1.05 + 15)
    assert spent.expected_money is not None
    world.ledger.end_attempt(f"{request_id}-1", "done")
    ended = progress(world.ledger.request(request_id), ledger=world.ledger, settings=world.settings, now=now).spent
    assert ended.held_s < 60
    assert ended.money_an_hour == 0


def test_the_last_trials_come_first_where_that_is_asked(world: World) -> None:
    request_id = world.submitted()
    put_trials(world.ledger, request_id, 5)
    url, seen = f"/requests/{request_id}/trials?segment=&sort=-number&limit=2", []
    while url:
        response = world("growth/read").get(url)
        seen += [one["number"] for one in response.json()["items"]]
        url = response.links.get("next", {}).get("url", "").removeprefix("/api/v1")
    assert seen == [4, 3, 2, 1, 0]


def test_ten_thousand_trials_do_not_slow_its_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls of the API and queries as with ten of them, and a page that is hardly larger."""
    asked: list[str] = []
    statements: list[str] = []
    real = Api._call

    async def call(self: Api, method: str, path: str, **how: Any) -> Any:
        asked.append(path)
        return await real(self, method, path, **how)

    monkeypatch.setattr(Api, "_call", call)
    visitor = Visitor(world).signed_in("growth/read")
    seen: dict[int, tuple[int, int, int, str]] = {}
    for n in (10, 10_000):
        request_id = world.submitted(name=f"churn-{n}")
        put_trials(world.ledger, request_id, n)
        visitor.get(f"/requests/{request_id}")
        asked.clear()
        statements.clear()
        engine = world.app.state.portal.ledger._engine
        event.listen(engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
        text = visitor.get(f"/requests/{request_id}").text
        seen[n] = (len(asked), len(statements), len(text), text)
    assert seen[10_000][0] == seen[10][0] <= 6
    assert seen[10_000][1] <= 2 * seen[10][1], "one listener more"
    assert seen[10_000][2] < 300_000
    text = seen[10_000][3]
    assert ">10,000<" in text
    assert "Of 10,000 trials the best, the latest and an even part are drawn." in text
    drawn = json.loads(re.search(r'id="scores-data">(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert sum(len(one["x"]) for one in drawn["data"] if one["mode"] == "markers") <= MOST_SCORED + MOST_UNSCORED


def test_its_page_says_what_it_took_and_how_it_went_on(world: World) -> None:
    request_id = world.submitted()
    visitor = Visitor(world).signed_in("growth/submit")
    place = f"/requests/{request_id}"
    world.ledger.admit(request_id)
    for state in (RequestState.PREPARING, RequestState.SEARCHING):
        world.ledger.advance(request_id, state, "…")
    put_trials(world.ledger, request_id, 10)
    text = visitor.get(place).text
    assert "best score so far" in text
    assert "left by the quote; 1 min" in text
    assert "so far, of about" in text
    assert "those without a score stand at the lower edge" in text
    parts = visitor.get(f"{place}/live").text
    assert "<html" not in parts
    assert {"head", "live"} <= set(re.findall(r'(?:id|class)="(head|live)[" ]', parts))
    world.ledger.end_attempt(f"{request_id}-1", "done")
    for state in (RequestState.EVALUATING, RequestState.REGISTERED):
        world.ledger.advance(request_id, state, "…")
    ended = visitor.get(place).text
    assert "best score of the search" in ended
    assert "so far" not in ended.replace("Best so far", "")
    assert "were expected" in ended
    trials = visitor.get(f"{place}/trials")
    assert "<h1>All trials with their parameters</h1>" in trials.text
    assert trials.text.index(">9</td>") < trials.text.index(">0</td>")
    part = visitor.get(f"{place}/trials", headers={"hx-request": "true"}).text
    assert "<html" not in part
    assert "alpha=3" in part

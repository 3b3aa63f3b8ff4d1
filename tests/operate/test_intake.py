"""Requests at the doors of this machine, and where one would stand in the queue."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.errors import InvalidRequest, NotFound
from factory.ledger import Idempotency, Ledger
from factory.operate.admission import Capacity
from factory.operate.intake import QUEUED, Intake
from factory.operate.outlook import Outlook, Queue
from factory.operate.quotes import Holding
from factory.settings import Settings
from factory.spec import Actor, Principal, RequestState, VariantRequest
from factory.testing.jobs import FakeJobs

ANN = Actor(who="ann")


@pytest.fixture
def document(tmp_path: Path) -> dict[str, object]:
    random = np.random.default_rng(0)
    rows = {"age": random.integers(18, 90, 300), "churned": random.choice(["no", "yes"], 300)}
    pd.DataFrame(rows).to_parquet(tmp_path / "c.parquet")
    dataset = {"path": str(tmp_path / "c.parquet"), "target": "churned"}
    return {"team": "growth", "name": "churn", "recipe": "tabular-auto", "dataset": dataset}


def test_whoever_runs_this_process_names_what_it_can_read(
    document: dict[str, object], home: Settings, ledger: Ledger
) -> None:
    taken = Intake(ledger, home).submit(document, door="cli", by=ANN)
    assert not taken.replayed
    assert (taken.record.state, taken.record.door, taken.record.submitted_by) == ("queued", "cli", "ann")
    assert [event.message for event in ledger.events(taken.record.id)][1:] == [QUEUED]
    assert taken.record.quote is not None
    ledger.request_cancel(taken.record.id, by=ANN)
    assert Intake(ledger, home).retry(taken.record, door="cli").record.retry_of == taken.record.id


def test_a_door_gives_what_it_has_found_itself(document: dict[str, object], home: Settings, ledger: Ledger) -> None:
    from factory.errors import Detail

    found = [Detail("seed", "is no number"), Detail("budget.time_s", "is text")]
    wrong = document | {"budget": {"time_s": -1}}
    with pytest.raises(InvalidRequest) as refused:
        Intake(ledger, home).submit(wrong, door="library", problems=found)
    assert sorted(detail.field for detail in refused.value.details) == ["budget.time_s", "seed"]
    told = Intake(ledger, home).quote(document, problems=found[:1])
    assert [problem.field for problem in told.problems] == ["seed"]
    with pytest.raises(NotFound):
        Intake(ledger, home).submit(document | {"recipe": "nothing"}, door="library")
    assert ledger.request_page().items == ()


def test_a_key_is_looked_up_before_the_document(document: dict[str, object], home: Settings, ledger: Ledger) -> None:
    key = Idempotency("me", "k", "d")
    first = Intake(ledger, home).submit(document, door="library", idempotency=key)
    again = Intake(ledger, home).submit("nonsense", door="library", idempotency=key)
    assert (again.record.id, again.replayed, first.replayed) == (first.record.id, True, False)


def test_a_key_shows_no_request_that_its_user_sees_no_more(
    document: dict[str, object], home: Settings, ledger: Ledger
) -> None:
    key = Idempotency("ann", "k", "d")
    Intake(ledger, home).submit(document, door="library", idempotency=key)
    moved = Principal(name="ann", team="risk", scopes=frozenset({"read", "submit"}))
    with pytest.raises(NotFound):
        Intake(ledger, home, principal=moved).submit(document, door="api", idempotency=key)


# --- the queue -----------------------------------------------------------------------


def waiting(ledger: Ledger, team: str, n: int) -> list[str]:
    dataset = {"path": "c.parquet", "target": "churned"}
    order = {"team": team, "name": "churn", "recipe": "tabular-auto", "dataset": dataset}
    document = VariantRequest.model_validate(order)
    return [ledger.create_request(document, cpus=2, memory_gb=4, expected_s=60, queued="Waits.").id for _ in range(n)]


def place(ledger: Ledger, team: str, *, cpus: float = 2) -> tuple[int, float | None, str]:
    dataset = {"path": "c.parquet", "target": "churned"}
    order = VariantRequest.model_validate({"team": team, "name": "x", "recipe": "tabular-auto", "dataset": dataset})
    queue = Queue.read(ledger, Capacity(2, 0, 8))
    found = queue.place(order, Holding(cpus=cpus, gpus=0, memory_gb=4), 60, now=time.time())
    return found.position, found.eta_s, found.sentence


def test_a_place_is_first_on_an_idle_cluster(ledger: Ledger) -> None:
    assert place(ledger, "growth") == (1, 0.0, "starts at once, as the queue is now")


def test_a_place_is_behind_what_waits_and_a_team_that_has_nothing_comes_earlier(ledger: Ledger) -> None:
    first, *_ = waiting(ledger, "growth", 4)
    ledger.admit(first)
    mine, eta_s, sentence = place(ledger, "growth")
    assert mine == 4
    assert eta_s is not None
    assert 60 < eta_s < 900
    assert "growth" in sentence
    theirs, their_eta_s, _ = place(ledger, "risk")
    assert theirs < mine
    assert their_eta_s is not None
    assert their_eta_s < eta_s


def test_what_can_never_start_is_told_so(ledger: Ledger) -> None:
    waiting(ledger, "growth", 2)
    position, eta_s, sentence = place(ledger, "growth", cpus=64)
    assert eta_s is None
    assert position == 3
    assert "never" in sentence


def test_nobody_waits_for_a_cluster_that_hangs(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, hang, asked = FakeJobs(), threading.Event(), []
    clock = [100.0]
    outlook = Outlook(lambda: ledger, jobs, clock=lambda: clock[0])
    assert outlook.capacity() == Capacity(2, 0, 8)
    assert outlook.place_of() is not None

    def capacity() -> Capacity:
        asked.append(1)
        hang.wait(10)
        return Capacity(4, 0, 8)

    monkeypatch.setattr(jobs, "capacity", capacity)
    clock[0] += 60
    assert [outlook.capacity() for _ in range(5)] == [Capacity(2, 0, 8)] * 5  # what it told last
    assert asked == [1]
    hang.set()
    while outlook.capacity() != Capacity(4, 0, 8):
        time.sleep(0.001)


def test_a_cluster_that_is_gone_tells_no_place(ledger: Ledger) -> None:
    jobs = FakeJobs()
    clock = [100.0]
    outlook = Outlook(lambda: ledger, jobs, clock=lambda: clock[0])
    jobs.reachable = False
    assert (outlook.capacity(), outlook.answers(), outlook.place_of()) == (None, False, None)
    jobs.reachable = True
    clock[0] += 60
    assert outlook.answers()
    assert outlook.place_of() is not None
    jobs.reachable = False
    clock[0] -= 3600  # a clock that is set back makes nothing young again
    assert not outlook.answers()
    assert outlook.place_of() is None
    assert outlook.capacity() == Capacity(2, 0, 8)


def test_the_state_is_what_the_ledger_says(ledger: Ledger) -> None:
    ids = waiting(ledger, "growth", 2)
    attempt = ledger.admit(ids[0])
    queue = Queue.read(ledger, Capacity(2, 0, 8))
    assert [one.id for one in queue.waiting] == [ids[1]]
    assert [one.id for one in queue.running] == [attempt.request_id]
    assert queue.running[0].expected_end == pytest.approx(attempt.admitted_at.timestamp() + 60)
    assert ledger.request(ids[1]).state is RequestState.QUEUED

"""Batches in the ledger: declared once, one run at a time, missed times once, the first end is kept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from factory.errors import Conflict, NotFound
from factory.ledger import BatchQuery, Ledger, batches, moments, schema
from factory.spec import BatchWish

from .conftest import ANN

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the ledger's clock."""

    def set_(moment: datetime) -> None:
        monkeypatch.setattr(moments, "clock", lambda: moment)

    set_(NOON)
    return set_


def wish(name: str = "nightly", **changes: Any) -> BatchWish:
    fields = {"team": "growth", "name": name, "variant": "growth.churn", "path": "/data/*.parquet"}
    return BatchWish.model_validate(fields | {"schedule": {"every": "6h"}} | changes)


def test_a_batch_is_declared_once(ledger: Ledger, at: Any) -> None:
    batch = ledger.create_batch(wish(), anywhere=False, by=ANN)
    assert (batch.name, batch.next_due, batch.created_by) == ("growth.nightly", NOON + timedelta(hours=6), ANN.who)
    assert ledger.batch("growth.nightly") == batch
    assert ledger.batches("growth") == [batch]
    assert ledger.batches("risk") == []
    with pytest.raises(Conflict, match="already"):
        ledger.create_batch(wish(), anywhere=False, by=ANN)
    with pytest.raises(NotFound, match=r"Did you mean 'growth\.nightly'"):
        ledger.batch("growth.nigthly")
    with pytest.raises(NotFound) as refused:
        ledger.batch("growth.nightly", team="risk")
    assert "mean" not in refused.value.message


def test_missed_times_are_one_run_and_one_runs_at_a_time(ledger: Ledger, at: Any) -> None:
    ledger.create_batch(wish(), anywhere=False, by=ANN)
    assert ledger.due_batches(NOON) == []
    with pytest.raises(Conflict, match="not due"):
        ledger.start_batch_run("growth.nightly")
    later = NOON + timedelta(hours=25)
    at(later)
    assert ledger.due_batches(later) == [("growth", "growth.nightly")]
    run = ledger.start_batch_run("growth.nightly")
    assert (run.number, run.due, run.started_by, run.state) == (1, NOON + timedelta(hours=6), "schedule", "waiting")
    assert ledger.batch("growth.nightly").next_due == NOON + timedelta(hours=30)
    for by in (None, ANN):
        with pytest.raises(Conflict, match="under way"):
            ledger.start_batch_run("growth.nightly", by=by)
    at(NOON + timedelta(hours=31))
    assert ledger.due_batches(NOON + timedelta(hours=31)) == [], "it runs still"
    assert [one.id for one in ledger.open_batch_runs()] == [run.id]
    with pytest.raises(Conflict, match="under way"):
        ledger.delete_batch("growth.nightly", by=ANN)
    ledger.end_batch_run(run.id, "failed", "no rows")
    assert ledger.due_batches(NOON + timedelta(hours=31)) == [("growth", "growth.nightly")]
    assert ledger.start_batch_run("growth.nightly").number == 2


def test_the_first_end_of_a_run_is_kept(ledger: Ledger, at: Any) -> None:
    ledger.create_batch(wish(schedule=None), anywhere=True, by=ANN)
    assert ledger.batch("growth.nightly").next_due is None
    run = ledger.start_batch_run("growth.nightly", by=ANN)
    ledger.mark_batch_run(run.id)
    ledger.mark_batch_run(run.id, variant="growth.churn/3")
    assert ledger.batch_run(run.id).state == "running"
    ledger.end_batch_run(run.id, "done", "12 predictions", rows=12, manifest=f"{run.folder}/_manifest.json")
    ledger.end_batch_run(run.id, "failed", "its job was lost")
    ledger.mark_batch_run(run.id, variant="growth.churn/4")
    ended = ledger.numbered_batch_run("growth.nightly", 1)
    assert (ended.state, ended.rows, ended.variant, ended.ended_at) == ("done", 12, "growth.churn/3", NOON)
    assert ledger.batch("growth.nightly").last == ended
    assert ledger.batches() == [ledger.batch("growth.nightly")]
    with pytest.raises(NotFound, match="no run 2"):
        ledger.numbered_batch_run("growth.nightly", 2)


def test_a_paused_batch_is_not_due_and_misses_nothing_when_it_goes_on(ledger: Ledger, at: Any) -> None:
    ledger.create_batch(wish(), anywhere=False, by=ANN)
    ledger.enable_batch("growth.nightly", False, by=ANN)
    at(NOON + timedelta(days=3))
    assert ledger.due_batches(NOON + timedelta(days=3)) == []
    resumed = ledger.enable_batch("growth.nightly", True, by=ANN)
    assert resumed.next_due == NOON + timedelta(days=3, hours=6)
    assert [one.action for one in ledger.audit_page(limit=2).items] == ["batch.resume", "batch.pause"]


def test_an_archived_team_runs_nothing(ledger: Ledger, at: Any) -> None:
    ledger.create_team("growth", by=ANN)
    ledger.create_batch(wish(), anywhere=False, by=ANN)
    later = NOON + timedelta(hours=7)
    assert ledger.due_batches(later) == [("growth", "growth.nightly")]
    ledger.archive_team("growth", by=ANN)
    assert ledger.due_batches(later) == []
    for refused in (
        lambda: ledger.start_batch_run("growth.nightly", by=ANN),
        lambda: ledger.create_batch(wish("other"), anywhere=False, by=ANN),
    ):
        with pytest.raises(Conflict, match="Team growth is archived"):
            refused()


def test_batches_come_in_pages_and_a_team_has_so_many(ledger: Ledger, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_BATCHES", 3)
    names = [ledger.create_batch(wish(f"b{n}"), anywhere=False, by=ANN).name for n in range(3)]
    last = ledger.start_batch_run("growth.b2", by=ANN)
    with pytest.raises(Conflict, match="has 3 batches; no more are taken") as refused:
        ledger.create_batch(wish("b3"), anywhere=False, by=ANN)
    assert [detail.field for detail in refused.value.details] == ["team"]
    other = BatchWish.model_validate(wish().model_dump() | {"team": "risk"})
    ledger.create_batch(other, anywhere=False, by=ANN)
    first = ledger.batch_page(BatchQuery(team="growth"), limit=2)
    assert [one.name for one in first.items] == names[:2]
    rest = ledger.batch_page(BatchQuery(team="growth"), limit=2, cursor=first.next)
    assert [(one.name, one.last) for one in rest.items] == [("growth.b2", last)]
    assert rest.next is None
    assert ledger.batch_names() == [one.name for one in ledger.batches()] == [*names, "risk.nightly"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep_runs": -1}, "keep_runs: Input should be greater"),
        ({"schedule": {"cron": "0 4 * * *", "time_zone": "Europe/Gone"}}, "time_zone: 'Europe/Gone' is not known"),
    ],
)
def test_a_stored_batch_that_is_none_any_more_is_told_of_and_can_be_deleted(
    changes: dict[str, Any], says: str, ledger: Ledger, at: Any
) -> None:
    ledger.create_batch(wish("good"), anywhere=False, by=ANN)
    ledger.create_batch(wish(), anywhere=False, by=ANN)
    document = wish().model_dump(mode="json") | changes
    with ledger._write() as connection:
        this = schema.batches.c.name == "growth.nightly"
        connection.execute(update(schema.batches).where(this).values(document=document))
    good, bad = ledger.batches("growth")
    assert good.problem == ""
    assert says in bad.problem
    assert ledger.old_batch_runs(bad) == []
    assert [name for _, name in ledger.due_batches(NOON + timedelta(hours=7))] == ["growth.good", "growth.nightly"]
    with pytest.raises(Conflict, match=r"growth\.nightly cannot run: "):
        ledger.start_batch_run("growth.nightly", by=ANN)
    assert not ledger.enable_batch("growth.nightly", False, by=ANN).enabled
    with pytest.raises(Conflict, match="cannot run"):
        ledger.enable_batch("growth.nightly", True, by=ANN)
    ledger.delete_batch("growth.nightly", by=ANN)
    assert ledger.batches() == [good]


def test_the_newest_run_that_is_done_is_kept_however_many_have_failed_since(ledger: Ledger, at: Any) -> None:
    batch = ledger.create_batch(wish(keep_runs=2), anywhere=False, by=ANN)
    for state in ("done", "done", "failed", "failed", "failed"):
        ledger.end_batch_run(ledger.start_batch_run(batch.name, by=ANN).id, state, "so")  # type: ignore[arg-type]
    assert [run.number for run in ledger.old_batch_runs(batch)] == [3, 1]


def test_old_runs_are_told_and_forgotten_and_a_deleted_batch_is_gone(ledger: Ledger, at: Any) -> None:
    batch = ledger.create_batch(wish(keep_runs=2), anywhere=False, by=ANN)
    for _ in range(4):
        ledger.end_batch_run(ledger.start_batch_run(batch.name, by=ANN).id, "done", "so")
    open_ = ledger.start_batch_run(batch.name, by=ANN)
    old = ledger.old_batch_runs(batch)
    assert [run.number for run in old] == [2, 1]
    for run in (*old, open_):
        ledger.forget_batch_run(run.id)
    assert [run.number for run in ledger.batch_runs(batch.name)] == [5, 4, 3], "one that is under way is kept"
    ledger.end_batch_run(open_.id, "done", "so")
    ledger.delete_batch(batch.name, by=ANN)
    assert ledger.batches() == []
    again = ledger.create_batch(wish(), anywhere=False, by=ANN)
    assert ledger.start_batch_run(again.name, by=ANN).folder != open_.folder

"""Batches under the controller: started when due, a few at a time, told when they fail, tidied up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from factory.errors import Conflict, InvalidRequest, NotFound, ServiceFault
from factory.ledger import BatchRun, schema
from factory.operate import batches
from factory.operate.batches import declare, run_log
from factory.operate.jobs import JobSpec, JobState
from factory.spec import Principal, Task, Variant
from factory.testing.jobs import Script

from .conftest import ANN, Plant, document

HOUR = 3600.0


@pytest.fixture
def plant(make: Callable[..., Plant]) -> Plant:
    """A factory with a variant that batches can name."""
    made = make()
    made.ledger.create_request(document(), request_id="r-0", door="api", by=ANN, cpus=1.0)
    made.ledger.record_variant(
        Variant(
            name="growth.churn", version=1, request_id="r-0", task=Task.BINARY, metric="roc_auc", score=0.8,
            score_low=0.7, score_high=0.9, recipe="tabular-fast", recipe_digest="0" * 64, dataset_digest="1" * 64,
            bundle_digest="2" * 64, created=datetime.now(UTC),
        )
    )  # fmt: skip
    return made


def declared(plant: Plant, name: str = "nightly", *, asker: Principal | None = None, **changes: Any) -> str:
    fields = {"team": "growth", "name": name, "variant": "growth.churn", "path": "/data/rows.parquet"}
    asked = fields | {"schedule": {"every": "1h"}} | changes
    return declare(asked, ledger=plant.ledger, settings=plant.settings, by=ANN, asker=asker).name


def running(plant: Plant, script: Callable[[JobSpec], Script]) -> None:
    """Let jobs of batches do what a script says; those of requests do as before."""
    real = plant.jobs._script

    def chosen(spec: JobSpec) -> Script:
        return script(spec) if spec.submission_id.startswith("batch-") else real(spec)

    plant.jobs._script = chosen


def good(plant: Plant) -> Callable[[JobSpec], Script]:
    """What `serve.batch_run` does, as far as the controller sees it."""

    def script(spec: JobSpec) -> Script:
        run_id = spec.entrypoint[-1]

        def begin() -> None:
            plant.ledger.mark_batch_run(run_id, variant="growth.churn/1")

        def end() -> None:
            plant.ledger.end_batch_run(run_id, "done", "12 predictions.", rows=12)

        return Script(run_s=60.0, steps=((1.0, begin), (59.0, end)), lines=((2.0, "predicting\n"),))

    return script


def runs(plant: Plant, name: str = "growth.nightly") -> list[BatchRun]:
    return plant.ledger.batch_runs(name)


def test_a_batch_runs_when_it_is_due_and_its_log_is_kept(plant: Plant) -> None:
    running(plant, good(plant))
    name = declared(plant)
    controller = plant.controller()
    due = plant.ledger.batch(name).next_due
    assert due is not None
    plant.passes(controller, 2)
    assert runs(plant) == []
    plant.advance((due - plant.jobs.now).total_seconds() + 5)
    plant.until(controller, lambda: bool(runs(plant)) and runs(plant)[0].state == "done")
    [run] = runs(plant)
    assert (run.number, run.due, run.variant, run.rows) == (1, due, "growth.churn/1", 12)
    assert run.began is not None
    assert run.began >= due
    plant.until(controller, run_log(run, plant.settings).is_file)
    assert "predicting" in run_log(run, plant.settings).read_text()
    [job] = [one for one in plant.jobs.list().values() if one.submission_id == run.id]
    assert job.metadata["batch"] == name
    plant.advance(2 * HOUR)
    plant.until(controller, lambda: run.id not in plant.jobs.list())


def test_times_that_were_missed_are_one_run(plant: Plant) -> None:
    running(plant, good(plant))
    declared(plant)
    plant.advance(10 * HOUR)
    controller = plant.controller()
    plant.until(controller, lambda: bool(runs(plant)) and runs(plant)[0].state == "done", step_s=10)
    plant.passes(controller, 5)
    assert len(runs(plant)) == 1


def test_a_few_run_at_a_time_and_none_is_forgotten(plant: Plant) -> None:
    running(plant, good(plant))
    names = [declared(plant, f"b{n}", schedule={"every": "12h"}) for n in range(5)]
    plant.advance(13 * HOUR)
    controller, most = plant.controller(), 0

    def done() -> bool:
        nonlocal most
        most = max(most, len(plant.ledger.open_batch_runs()))
        return all(any(run.state == "done" for run in runs(plant, name)) for name in names)

    plant.until(controller, done, step_s=5)
    assert most == batches.AT_ONCE


def test_runs_that_are_asked_for_wait_for_their_turn_as_well(plant: Plant) -> None:
    running(plant, good(plant))
    names = [declared(plant, f"b{n}", schedule=None) for n in range(5)]
    for name in names:
        plant.ledger.start_batch_run(name, by=ANN)
    controller, most = plant.controller(), 0

    def done() -> bool:
        nonlocal most
        most = max(most, len([run for run in plant.ledger.open_batch_runs() if run.submitted_at is not None]))
        return all(runs(plant, name)[0].state == "done" for name in names)

    plant.until(controller, done, step_s=5)
    assert most == batches.AT_ONCE


def test_one_teams_batches_keep_no_other_team_waiting(plant: Plant) -> None:
    running(plant, good(plant))
    for team in ("growth", "risk"):
        with suppress(Conflict):  # the request has made its team
            plant.ledger.create_team(team, by=ANN)
    plant.ledger.share("variant", "growth.churn", team="growth", with_team="risk", by=ANN)
    for n in range(5):
        plant.ledger.start_batch_run(declared(plant, f"b{n}", schedule=None), by=ANN)
    plant.ledger.start_batch_run(declared(plant, team="risk", schedule=None), by=ANN)
    plant.passes(plant.controller(), 1)
    begun = [run.batch for run in plant.ledger.open_batch_runs() if run.submitted_at is not None]
    assert sorted(name.partition(".")[0] for name in begun) == ["growth", "risk"]


def test_batches_that_cannot_run_take_no_turn_of_others_and_end_no_pass(plant: Plant) -> None:
    running(plant, good(plant))
    broken = [declared(plant, f"a{n}") for n in range(3)]
    name = declared(plant, "good")
    with plant.ledger._write() as connection:
        these = schema.batches.c.name.in_(broken)
        connection.execute(update(schema.batches).where(these).values(document={"team": 1}))
    plant.advance(2 * HOUR)
    plant.until(plant.controller(), lambda: bool(runs(plant, name)) and runs(plant, name)[0].state == "done")


def test_a_time_zone_that_is_not_known_is_refused(plant: Plant) -> None:
    with pytest.raises(InvalidRequest, match="'Europe/Bern' is not known") as refused:
        declared(plant, schedule={"cron": "0 4 * * *", "time_zone": "Europe/Bern"})
    assert [detail.field for detail in refused.value.details] == ["schedule"]


def test_what_the_cluster_refuses_of_batches_ends_no_pass_of_requests(plant: Plant) -> None:
    for n in range(4):
        run = plant.ledger.start_batch_run(declared(plant, f"b{n}", schedule=None), by=ANN)
        plant.ledger.mark_batch_run(run.id)
    controller = plant.controller()

    def refuse(*_: object) -> None:
        raise ServiceFault("no", hint="none")

    controller._batches.attend = refuse  # type: ignore[method-assign]
    assert controller.reconcile().led


def test_a_run_that_fails_is_told_and_tried_at_the_next_time(plant: Plant) -> None:
    running(plant, lambda _: Script(run_s=5.0, exit_code=1, lines=((1.0, "no room\n"),)))
    name = declared(plant)
    plant.advance(1.1 * HOUR)
    controller = plant.controller()
    plant.until(controller, lambda: bool(runs(plant)) and runs(plant)[0].state == "failed")
    [run] = runs(plant)
    assert "ended with exit code 1 without telling why" in run.message
    assert f"factory batches logs {name}" in run.message
    assert "no room" in run_log(run, plant.settings).read_text()
    plant.passes(controller, 3)
    assert len(runs(plant)) == 1
    running(plant, good(plant))
    plant.advance(HOUR)
    plant.until(controller, lambda: runs(plant)[0].state == "done")
    assert len(runs(plant)) == 2


def test_a_run_that_hangs_is_stopped(plant: Plant) -> None:
    def script(spec: JobSpec) -> Script:
        begin = lambda: plant.ledger.mark_batch_run(spec.entrypoint[-1], variant="growth.churn/1")  # noqa: E731
        return Script(run_s=100 * HOUR, steps=((1.0, begin),))

    running(plant, script)
    declared(plant, hours=0.5, schedule=None)
    run = plant.ledger.start_batch_run("growth.nightly", by=ANN)
    controller = plant.controller()
    plant.until(controller, lambda: plant.ledger.batch_run(run.id).state == "running")
    plant.advance(0.6 * HOUR)
    plant.until(controller, lambda: plant.ledger.batch_run(run.id).state == "failed")
    assert "longer than its hours" in plant.ledger.batch_run(run.id).message
    assert plant.jobs.list()[run.id].state is JobState.STOPPED


def test_a_run_whose_process_hangs_before_it_has_begun_is_stopped_too(plant: Plant) -> None:
    running(plant, lambda _: Script(run_s=100 * HOUR))
    declared(plant, hours=0.5, schedule=None)
    run = plant.ledger.start_batch_run("growth.nightly", by=ANN)
    controller = plant.controller()
    plant.until(controller, lambda: plant.ledger.batch_run(run.id).submitted_at is not None)
    plant.advance(0.6 * HOUR)
    plant.until(controller, lambda: plant.ledger.batch_run(run.id).state == "failed")
    assert "longer than its hours" in plant.ledger.batch_run(run.id).message


def test_a_lost_job_ends_its_run(plant: Plant) -> None:
    declared(plant, schedule=None)
    run = plant.ledger.start_batch_run("growth.nightly", by=ANN)
    plant.ledger.mark_batch_run(run.id)  # a cluster that was restarted has forgotten it
    controller = plant.controller()
    plant.passes(controller, 1)
    assert plant.ledger.batch_run(run.id).state == "waiting"
    plant.advance(60)
    plant.passes(controller, 1)
    assert "does not know it any more" in plant.ledger.batch_run(run.id).message


def test_a_controller_that_is_killed_at_any_call_starts_a_run_once(plant: Plant) -> None:
    running(plant, good(plant))
    declared(plant)
    plant.advance(1.1 * HOUR)

    class Killed(Exception):
        pass

    for n in range(1, 40):
        calls = 0

        def meddle(*_: object, n: int = n) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                raise Killed

        with suppress(Killed):
            plant.controller(meddle).reconcile()
        plant.advance(20)  # until nobody leads
    controller = plant.controller()
    plant.until(controller, lambda: bool(runs(plant)) and runs(plant)[-1].state == "done")
    assert runs(plant)[-1].number == 1
    assert len([one for one in plant.jobs.list() if one.startswith("batch-")]) == len(runs(plant))


def test_old_runs_go_with_what_they_wrote(plant: Plant) -> None:
    running(plant, good(plant))
    name = declared(plant, keep_runs=1, schedule=None)
    controller = plant.controller()
    for n in range(3):
        run = plant.ledger.start_batch_run(name, by=ANN)
        folder = plant.settings.root / run.folder
        folder.mkdir(parents=True)
        (folder / "part-00000.parquet").write_bytes(b"x")
        plant.until(controller, lambda n=n: runs(plant)[0].number == n + 1 and runs(plant)[0].state == "done")  # type: ignore[misc]
    plant.advance(2 * HOUR)
    plant.passes(controller, 2)
    [kept] = runs(plant)
    assert kept.number == 3
    assert [one.name for one in (plant.settings.root / "logs").glob("batch-*")] == [kept.id]
    assert [one.name for one in (plant.settings.root / "batches" / name).iterdir()] == [Path(kept.folder).name]


def test_the_log_of_a_deleted_batch_goes_as_well(plant: Plant) -> None:
    running(plant, good(plant))
    name = declared(plant, schedule=None)
    controller, run = plant.controller(), plant.ledger.start_batch_run("growth.nightly", by=ANN)
    plant.until(controller, run_log(run, plant.settings).is_file)
    plant.ledger.delete_batch(name, by=ANN)
    plant.advance(1.1 * HOUR)
    plant.until(controller, lambda: not run_log(run, plant.settings).exists())


# --- declaring -----------------------------------------------------------------------


def principal(team: str | None = "growth", *scopes: Any) -> Principal:
    return Principal(name="token:x", team=team, scopes=frozenset(scopes or ("submit",)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": None}, "give either path or upload"),
        ({"upload": "0" * 64}, "give either path or upload"),
        ({"path": "rows.parquet"}, "is not absolute"),
        ({"path": None, "upload": "0" * 64}, "There is no upload"),
        ({"variant": "growth.none"}, "There is no variant 'growth.none'"),
        ({"variant": "churn"}, "variant"),
        ({"schedule": {"cron": "* * *"}}, "has 3 fields"),
        ({"schedule": {"cron": "* * * * *", "every": "6h"}}, "give either cron"),
        ({"hours": 0}, "hours"),
        ({"color": "red"}, "There is no such field"),
    ],
)
def test_what_cannot_be_declared_says_why(plant: Plant, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        declared(plant, **changes)


def test_over_the_network_rows_lie_where_the_settings_say(plant: Plant, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="may not be named"):
        declared(plant, asker=principal())
    with pytest.raises(NotFound, match="no team 'growth' that you may order for"):
        declared(plant, asker=principal("risk"))
    plant.settings = plant.settings.model_copy(update={"dataset_folders": str(tmp_path)})
    declared(plant, asker=principal(), path=f"{tmp_path}/*.parquet")
    assert not plant.ledger.batch("growth.nightly").anywhere
    declared(plant, "other", asker=principal(None, "admin"))
    assert plant.ledger.batch("growth.other").anywhere
    with pytest.raises(Conflict, match="already"):
        declared(plant)

"""Jobs that came past the controller: who may, how they wait, and what becomes of the request of a killed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factory.errors import InvalidRequest, StorageFault
from factory.ledger import Ledger, RequestRecord
from factory.operate.admission import Capacity
from factory.operate.adoption import JOB_CONFIG, Admitted, adopt, own_job
from factory.operate.controller import Controller
from factory.operate.jobs import JobSpec
from factory.settings import Settings
from factory.spec import Actor, RequestState, Scope, VariantRequest
from factory.testing.jobs import FakeJobs, Script

JOB = "raysubmit_7HxQ"
OPERATOR = Actor(who="operator")
ORDER: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
}


class Stopped(BaseException):
    """Stands for the signal that kills the waiting process."""


@pytest.fixture
def settings(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "home").mkdir()
    shutil.copy(template, tmp_path / "home" / "ledger.db")
    rows = "".join(f"{calls},{'yes' if calls % 3 else 'no'}\n" for calls in range(60))
    (tmp_path / "customers.csv").write_text(f"calls,left\n{rows}")
    monkeypatch.chdir(tmp_path)
    # One CPU, so that a request asks for no more than the simulated cluster has.
    return Settings(home=tmp_path / "home", cpus=1)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    with Ledger.open(settings.ledger) as opened:
        opened.create_team("growth", by=OPERATOR)
        opened.create_team("risk", by=OPERATOR)
        yield opened


@pytest.fixture
def jobs() -> FakeJobs:
    """A cluster of two CPUs on which the job waits; no script of it ends by itself."""
    cluster = FakeJobs(lambda _: Script(run_s=1e9), capacity=Capacity(2, 0, 8))
    cluster.submit(JobSpec(JOB, ("factory", "run", "request.yaml")))
    cluster.advance(5)
    return cluster


@pytest.fixture
def controller(ledger: Ledger, jobs: FakeJobs, settings: Settings) -> Controller:
    one = Controller(ledger, jobs, settings)
    one.reconcile()
    return one


@pytest.fixture
def waiting(ledger: Ledger, settings: Settings) -> Callable[..., tuple[Admitted | RequestRecord, list[str]]]:
    """Adopt the job's request; each pause calls the next of some steps, the last one again and again."""

    def wait(
        *steps: Callable[[], object], token: str | None = None, **changes: Any
    ) -> tuple[Admitted | RequestRecord, list[str]]:
        told: list[str] = []
        left = list(steps)

        def pause(seconds: float) -> None:
            assert 0 < seconds <= 5
            (left.pop(0) if len(left) > 1 else left[0])()

        found = adopt(
            ORDER | changes, JOB, ledger=ledger, settings=settings, token=token, tell=told.append, pause=pause
        )
        return found, told

    return wait


def only_request(ledger: Ledger) -> RequestRecord:
    (record,) = ledger.requests(team="growth")
    return record


def secret(ledger: Ledger, *scopes: Scope, team: str | None = "growth", **more: Any) -> str:
    return ledger.issue_token("ci", team=team, scopes=scopes, by=OPERATOR, **more).secret


# --- which process is a job --------------------------------------------------------


def test_a_job_knows_its_name_and_the_controllers_jobs_are_not_adopted(settings: Settings) -> None:
    inside = {JOB_CONFIG: json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": JOB, "job_name": JOB}})}
    assert own_job(settings, inside) == JOB
    assert own_job(settings.model_copy(update={"attempt": "r-1-1"}), inside) is None
    assert own_job(settings, {}) is None


@pytest.mark.parametrize("config", ["", "{", "[]", "7", "{}", '{"metadata": null}', '{"metadata": {}}'])
def test_a_process_of_another_kind_is_no_job(settings: Settings, config: str) -> None:
    assert own_job(settings, {JOB_CONFIG: config}) is None


def test_ray_calls_the_variable_so() -> None:
    constants = pytest.importorskip("ray._private.runtime_env.constants")
    common = pytest.importorskip("ray.dashboard.modules.job.common")
    assert (constants.RAY_JOB_CONFIG_JSON_ENV_VAR, common.JOB_ID_METADATA_KEY) == (JOB_CONFIG, "job_submission_id")


# --- waiting -----------------------------------------------------------------------


def test_it_registers_waits_and_goes_on_with_what_it_was_admitted_with(
    ledger: Ledger, jobs: FakeJobs, settings: Settings, controller: Controller, waiting: Any
) -> None:
    found, told = waiting(controller.reconcile)
    record = only_request(ledger)
    (attempt,) = ledger.attempts(record.id)
    assert isinstance(found, Admitted)
    assert (found.request_id, found.settings.attempt) == (record.id, attempt.submission_id)
    assert found.settings.granted_cpus == max(1, int(attempt.cpus))
    assert found.settings.root == settings.root
    assert (record.door, record.state, attempt.kind) == ("job", RequestState.QUEUED, "adopted")
    assert [event.payload for event in ledger.events(record.id) if event.kind == "adopted"] == [{"job": JOB}]
    assert told == [f"Request {record.id}: Waiting to be admitted."]
    assert list(jobs.specs) == [JOB], "no second job was submitted for it"
    controller.reconcile()
    assert ledger.attempts(record.id)[0].state == "running"


def test_a_controller_that_looks_at_once_makes_it_with_no_job_of_its_own(
    ledger: Ledger, jobs: FakeJobs, controller: Controller, waiting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Ledger.create_request

    def seen_at_once(*args: Any, **kwargs: Any) -> RequestRecord:
        made = create(*args, **kwargs)
        controller.reconcile()
        return made

    monkeypatch.setattr(Ledger, "create_request", seen_at_once)
    found, told = waiting(lambda: pytest.fail("it was admitted before it waited"))
    assert isinstance(found, Admitted)
    assert (told, list(jobs.specs)) == ([], [JOB])


def test_while_the_cluster_is_full_it_says_why_and_each_reason_once(
    ledger: Ledger, jobs: FakeJobs, controller: Controller, waiting: Any
) -> None:
    other = ledger.create_request(order_of("risk"), cpus=2.0, queued="Waiting.")
    controller.reconcile()

    jobs.advance(5)

    def end_the_other() -> None:
        ledger.advance(other.id, RequestState.CANCELLED, "Over.")
        jobs.kill(f"{other.id}-1")

    found, told = waiting(controller.reconcile, controller.reconcile, end_the_other, controller.reconcile)
    assert isinstance(found, Admitted)
    assert len(told) == len(set(told)) >= 2
    assert "CPU" in told[-1], told
    assert all(only_request(ledger).id in line for line in told)


def test_where_no_controller_runs_it_waits_for_one(
    ledger: Ledger, jobs: FakeJobs, settings: Settings, waiting: Any
) -> None:
    late = Controller(ledger, jobs, settings)
    found, told = waiting(lambda: None, late.reconcile)
    assert isinstance(found, Admitted)
    assert "No controller runs" in told[0]


def test_the_ledger_may_be_away_for_a_while(
    ledger: Ledger, controller: Controller, waiting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise StorageFault("The ledger is locked.")

    def away() -> None:
        monkeypatch.setattr(ledger, "attempts", gone)

    def back() -> None:
        monkeypatch.undo()
        controller.reconcile()

    found, told = waiting(away, lambda: None, back)
    assert isinstance(found, Admitted)
    assert [line.partition(": ")[2] for line in told] == ["Waiting to be admitted.", "The ledger is locked."]


def test_a_request_that_is_cancelled_meanwhile_comes_back_as_it_ended(
    ledger: Ledger, controller: Controller, waiting: Any
) -> None:
    found, _ = waiting(lambda: ledger.request_cancel(only_request(ledger).id, by=OPERATOR))
    assert isinstance(found, RequestRecord)
    assert found.state is RequestState.CANCELLED
    assert ledger.attempts(found.id) == []


def test_killed_while_it_waits_the_controller_makes_it_with_a_job_of_its_own(
    ledger: Ledger, jobs: FakeJobs, controller: Controller, waiting: Any
) -> None:
    def killed() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        waiting(killed)
    record = only_request(ledger)
    jobs.kill(JOB)
    controller.reconcile()
    (attempt,) = ledger.attempts(record.id)
    assert (attempt.kind, attempt.submission_id in jobs.specs) == ("controller", True)


def test_where_the_controller_was_first_it_waits_for_the_end(ledger: Ledger, waiting: Any) -> None:
    """Between a request's row and the job's name in it the controller may already have looked."""

    def admitted_as_any_other() -> None:
        ledger.admit(only_request(ledger).id)

    def made() -> None:
        ledger.reach(only_request(ledger).id, RequestState.REGISTERED, "Registered.")

    found, told = waiting(admitted_as_any_other, lambda: None, made)
    assert isinstance(found, RequestRecord)
    assert found.state is RequestState.REGISTERED
    assert f"{found.id}-1" in told[-1]


# --- who may -----------------------------------------------------------------------


def test_the_token_says_whose_request_it_is(ledger: Ledger, controller: Controller, waiting: Any) -> None:
    waiting(controller.reconcile, token=secret(ledger, "submit"))
    submitted_by = only_request(ledger).submitted_by
    assert submitted_by is not None
    assert submitted_by.startswith("token:ci/")
    (row,) = [row for row in ledger.audit_page().items if row.action == "request.submit"]
    assert (row.who, row.origin, row.team) == (submitted_by, f"job {JOB}", "growth")


def test_an_operators_token_is_good_for_every_team(ledger: Ledger, controller: Controller, waiting: Any) -> None:
    found, _ = waiting(controller.reconcile, token=secret(ledger, "admin", team=None))
    assert isinstance(found, Admitted)


TOKENS: dict[str, tuple[Callable[[Ledger], str | None], str]] = {
    "none where there are tokens": (lambda ledger: (secret(ledger, "submit"), None)[1], "says nobody"),
    "unknown": (lambda ledger: "mvf_" + "x" * 43, "not known"),
    "not even like one": (lambda ledger: "hunter2", "not known"),
    "only to read": (lambda ledger: secret(ledger, "read"), "may not submit"),
    "of another team": (lambda ledger: secret(ledger, "submit", team="risk"), "of team risk"),
    "revoked": (lambda ledger: revoked(ledger), "revoked"),
    "of another job": (lambda ledger: of_a_job(ledger), "may not submit"),
}


@pytest.mark.parametrize("what", TOKENS)
def test_a_token_that_opens_nothing(what: str, ledger: Ledger, controller: Controller, waiting: Any) -> None:
    make, said = TOKENS[what]
    token = make(ledger)
    before = len(ledger.requests())
    with pytest.raises(InvalidRequest, match=said) as refused:
        waiting(controller.reconcile, token=token)
    assert [detail.field for detail in refused.value.details] == ["FACTORY_TOKEN"]
    assert token is None or token not in str(refused.value.as_dict())
    assert len(ledger.requests()) == before


def test_a_document_that_is_wrong_is_refused_before_anything_is_stored(ledger: Ledger, waiting: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        waiting(lambda: None, families=["lightgmb"], seed=-1)
    assert {detail.field for detail in refused.value.details} == {"families.lightgmb", "seed"}
    assert ledger.requests() == []


def revoked(ledger: Ledger) -> str:
    issued = ledger.issue_token("ci", team="growth", scopes=["submit"], by=OPERATOR)
    ledger.revoke_token(issued.record.id, by=OPERATOR)
    return issued.secret


def of_a_job(ledger: Ledger) -> str:
    made = ledger.create_request(order_of("growth"))
    expires = datetime.now(UTC) + timedelta(hours=1)
    return secret(ledger, "submit", request_id=made.id, expires=expires)


def order_of(team: str) -> VariantRequest:
    return VariantRequest.model_validate(ORDER | {"team": team})

"""``factory run request.yaml`` as the entrypoint of a job that came past the controller, up to its exit code."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from factory.ledger import Ledger
from factory.operate.admission import Capacity
from factory.operate.adoption import JOB_CONFIG
from factory.operate.controller import Controller
from factory.operate.jobs import JobSpec
from factory.settings import Settings
from factory.spec import Actor, RequestState
from factory.testing.jobs import FakeJobs, Script

from .conftest import customers, factory

JOB = "raysubmit_7HxQ"
OPERATOR = Actor(who="operator")
ORDER = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
    "families": ["linear"],
    "budget": {"time_s": 4, "trials": 1},
    "gates": {"baseline": "constant"},
}


class Cluster:
    """A controller that looks again and again at a cluster on which this process's job runs."""

    def __init__(self, settings: Settings) -> None:
        self.ledger = Ledger.open(settings.ledger)
        self.jobs = FakeJobs(lambda _: Script(run_s=1e9), capacity=Capacity(2, 0, 8))
        self.jobs.submit(JobSpec(JOB, ("factory", "run", "order.yaml")))
        self.jobs.advance(5)
        self.controller = Controller(self.ledger, self.jobs, settings)
        self.paused = threading.Event()
        self._over = threading.Event()
        self.controller.reconcile()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            if not self.paused.is_set():
                self.controller.reconcile()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.ledger.close()


@pytest.fixture
def cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    customers().to_csv("customers.csv", index=False)
    Path("order.yaml").write_text(yaml.safe_dump(ORDER))
    monkeypatch.setenv("FACTORY_CPUS", "1")
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"metadata": {"job_submission_id": JOB}}))
    monkeypatch.setattr("factory.operate.adoption.LOOK_S", 0.05)
    found = Cluster(Settings(home=home, cpus=1))
    yield found
    found.close()


def test_it_waits_is_admitted_and_makes_its_variant(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.ledger.create_team("growth", by=OPERATOR)
    issued = cluster.ledger.issue_token("jobs", team="growth", scopes=["submit"], by=OPERATOR)
    refused = factory("run", "order.yaml")
    assert (refused.code, cluster.ledger.requests()) == (2, [])
    assert "FACTORY_TOKEN" in refused.said
    monkeypatch.setenv("FACTORY_TOKEN", issued.secret)
    answer = factory("run", "order.yaml")
    assert answer.code == 0, answer.err
    (record,) = cluster.ledger.requests()
    assert (record.door, record.state) == ("job", RequestState.REGISTERED)
    assert record.submitted_by == f"token:jobs/{issued.record.id}"
    (attempt,) = cluster.ledger.attempts(record.id)
    assert (attempt.kind, attempt.cpus) == ("adopted", 1.0)
    assert f"Request {record.id}: " in answer.said
    assert "growth.churn/1" in answer.out
    assert list(cluster.jobs.specs) == [JOB]
    cluster.jobs.kill(JOB, exit_code=0)
    cluster.controller.reconcile()
    assert cluster.ledger.attempts(record.id)[0].outcome == "done"


def test_a_request_that_is_cancelled_while_it_waits_ends_the_job_with_2(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.paused.set()
    issued = cluster.ledger.issue_token("jobs", team=None, scopes=["admin"], by=OPERATOR)
    monkeypatch.setenv("FACTORY_TOKEN", issued.secret)
    known = {record.id for record in cluster.ledger.requests()}

    def cancel() -> None:
        while not (new := [r for r in cluster.ledger.requests() if r.id not in known]):
            threading.Event().wait(0.02)
        cluster.ledger.request_cancel(new[0].id, by=OPERATOR)

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    answer = factory("run", "order.yaml", "--json")
    thread.join()
    assert answer.code == 2
    assert "was cancelled by operator" in answer.said

"""Logs for machines: what a job, the portal and the predictor write can be told to belong together."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from factory.ledger import Ledger
from factory.operate.intake import Intake
from factory.operate.job_log import job_log
from factory.operate.json_logs import about, known, trace_of
from factory.pipeline import Progress
from factory.settings import Settings
from factory.spec import Actor, RequestState, Trial, TrialState
from tests.ledger.conftest import make_order

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"00-{32 * '0'}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        (TRACE, None),
        ("", None),
    ],
)
def test_the_trace_of_a_call_is_what_its_header_says(header: str, trace: str | None) -> None:
    assert trace_of(header) == trace


def test_ids_are_known_within_and_forgotten_after() -> None:
    with about(trace=TRACE, call="c-1"):
        assert (known("trace"), known("call"), known("request")) == (TRACE, "c-1", None)
    assert known("trace") is None


def progress(request_id: str, trial: Trial | None = None) -> Progress:
    return Progress(request_id, RequestState.SEARCHING, "Searching.", trial)


def trial(number: int, state: TrialState) -> Trial:
    return Trial(number=number, family="linear", parameters={}, state=state, score=0.5, cost_s=1.5)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_job_tells_states_trials_and_warnings_with_all_ids(home: Settings, ledger: Ledger) -> None:
    request_id = ledger.create_request(make_order(), by=Actor(who="ann"), queued="Waits.", trace=TRACE).id
    ledger.admit(request_id)
    with job_log(request_id, ledger=ledger, settings=home) as tell:
        tell(progress(request_id))
        tell(progress(request_id, trial(0, TrialState.RUNNING)))
        tell(progress(request_id, trial(0, TrialState.SUCCEEDED)))
        logging.getLogger("factory.search.executor").warning("a worker died")
        logging.getLogger("elsewhere").warning("not ours")
    logging.getLogger("factory.search.executor").warning("too late")
    written = lines(home.root / "logs" / request_id / "1.jsonl")
    assert [line["message"] for line in written] == ["Searching.", "trial 0 of linear: succeeded", "a worker died"]
    assert {(line["request"], line["attempt"], line["trace"]) for line in written} == {(request_id, "1", TRACE)}
    assert (written[1]["trial"], written[1]["score"], written[1]["cost_s"]) == (0, 0.5, 1.5)


def test_what_is_no_attempt_or_cannot_be_written_is_made_all_the_same(home: Settings, ledger: Ledger) -> None:
    request_id = ledger.create_request(make_order(), queued="Waits.").id
    with job_log(request_id, ledger=ledger, settings=home) as tell:
        tell(progress(request_id))
    assert not (home.root / "logs").exists()
    ledger.admit(request_id)
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "logs").write_text("in the way")
    with job_log(request_id, ledger=ledger, settings=home) as tell:
        tell(progress(request_id))


def test_a_request_keeps_the_trace_that_it_came_in(home: Settings, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("age,left\n" + "\n".join(f"{n},{'yn'[n % 2]}" for n in range(100)))
    document = {"team": "growth", "name": "churn", "recipe": "tabular-auto"}
    document |= {"dataset": {"path": str(tmp_path / "c.csv"), "target": "left"}}  # type: ignore[dict-item]
    with about(trace=TRACE):
        taken = Intake(ledger, home).submit(document, door="api")
    assert ledger.events(taken.record.id)[0].payload == {"trace": TRACE}

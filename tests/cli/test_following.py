"""Following a request over HTTP until its end, and the exit codes that tell of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from factory.errors import InvalidData, TrainingFault
from factory.ledger import Ledger
from factory.spec import RequestState, Trial, TrialState, Variant

from .conftest import factory
from .orders import done, write_order
from .remote import OPERATOR


def drive(ledger: Ledger, team_name: str, end: Callable[[str], None]) -> threading.Thread:
    """Act on the next request of a name as a job's driver does; only its making is left out, which others test."""

    def act() -> None:
        while not (found := [r for r in ledger.requests(limit=50) if r.request.variant == team_name and not r.ended]):
            time.sleep(0.02)
        request_id = found[0].id
        ledger.reach(request_id, RequestState.PREPARING, "Reading and screening the data.")
        ledger.reach(request_id, RequestState.SEARCHING, "Searching [1] family.")
        trial = Trial(number=0, family="linear", parameters={"penalty": 1.0}, state=TrialState.SUCCEEDED)
        scored = {"score": 0.9, "folds": (0, 1), "fold_scores": (0.8, 1.0)}
        ledger.record_trial(request_id, trial.model_copy(update=scored))
        end(request_id)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def variant_of(request_id: str, name: str, state: str) -> Variant:
    scores = {"metric": "roc_auc", "score": 0.9, "score_low": 0.8, "score_high": 0.95}
    digests = {f"{what}_digest": "a" * 64 for what in ("recipe", "dataset", "bundle")}
    return Variant.model_validate(
        {"name": name, "version": 1, "request_id": request_id, "state": state, "task": "binary"}
        | {"recipe": "tabular-fast", "blend": {0: 1.0}, **scores, **digests}
    )


@pytest.mark.usefixtures("operator")
def test_a_request_that_is_waited_for_is_followed_to_its_end(ledger: Ledger) -> None:
    def made(request_id: str) -> None:
        ledger.reach(request_id, RequestState.EVALUATING, "Scoring.")
        ledger.record_variant(variant_of(request_id, "growth.followed", "registered"))
        ledger.reach(request_id, RequestState.REGISTERED, "Registered growth.followed/1.")

    driver = drive(ledger, "growth.followed", made)
    answer = done(factory("submit", write_order("followed.yaml", name="followed"), "--wait"))
    driver.join()
    lines = [line.split()[0] for line in answer.err.splitlines() if line[:1].isupper()]
    assert lines == ["RECEIVED", "QUEUED", "PREPARING", "SEARCHING", "EVALUATING", "REGISTERED"]
    assert "Searching [1] family." in answer.err
    for part in ("Leaderboard: 1 trial (1 succeeded)", "linear", "100%", "growth.followed/1", "Next: factory variants"):
        assert part in answer.out


@pytest.mark.usefixtures("operator")
def test_a_gates_no_is_exit_code_3(ledger: Ledger) -> None:
    def rejected(request_id: str) -> None:
        ledger.record_variant(variant_of(request_id, "growth.weak", "rejected"))
        ledger.advance(request_id, RequestState.REJECTED, "No variant passed its gate.")

    driver = drive(ledger, "growth.weak", rejected)
    answer = done(factory("submit", write_order("weak.yaml", name="weak"), "--wait", "--json"), 3)
    driver.join()
    assert answer.json["state"] == "rejected"
    assert [(v["name"], v["version"], v["state"]) for v in answer.json["variants"]] == [("growth.weak", 1, "rejected")]
    assert "aliases" not in answer.json["variant"]
    assert [(row["number"], row["weight"]) for row in answer.json["leaderboard"]] == [(0, 1.0)]


ENDS: dict[str, tuple[Callable[[Ledger, str], object], int, str]] = {
    "user": (lambda ledger, id_: ledger.fail(id_, InvalidData("One class only.", hint="Give two.")), 2, "One class"),
    "system": (lambda ledger, id_: ledger.fail(id_, TrainingFault("No trial succeeded.")), 1, "No trial succeeded."),
    "cancelled": (lambda ledger, id_: ledger.request_cancel(id_, by=OPERATOR), 2, "was cancelled by operator"),
}


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("how", ENDS)
def test_a_request_that_ends_otherwise_ends_the_command_as_in_process(how: str, ledger: Ledger) -> None:
    end, code, said = ENDS[how]
    driver = drive(ledger, f"growth.{how}", lambda request_id: end(ledger, request_id))
    answer = done(factory("submit", write_order(f"{how}.yaml", name=how), "--wait"), code)
    driver.join()
    assert said in answer.said


@pytest.mark.usefixtures("operator")
def test_why_a_request_waits_is_told_while_it_does(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.cli import _following

    class Why:
        rule, sentence, eta_s = "share", "waiting for 2 CPUs: team growth holds 4 of 4; about 6 minutes", 360.0

    told = threading.Event()
    monkeypatch.setattr(_following, "LOOK_S", 0.05)
    show = _following.Watcher._show

    def showing(watcher: Any, message: str, trial: Trial | None = None) -> None:
        show(watcher, message, trial)
        if message == Why.sentence:
            told.set()

    monkeypatch.setattr(_following.Watcher, "_show", showing)

    def held(request_id: str) -> None:
        ledger.hold({request_id: Why()})
        assert told.wait(30)
        ledger.request_cancel(request_id, by=OPERATOR)

    def act() -> None:
        while not (found := [r for r in ledger.requests(limit=50) if r.request.variant == "growth.held"]):
            time.sleep(0.02)
        held(found[0].id)

    driver = threading.Thread(target=act, daemon=True)
    driver.start()
    answer = done(factory("submit", write_order("held.yaml", name="held"), "--wait"), 2)
    driver.join()
    assert answer.said.count(Why.sentence) == 1

"""Trial history: finished trials are immutable and outlive a kill."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
from collections.abc import Callable

import pytest
from sqlalchemy import event

from factory.errors import Conflict, NotFound
from factory.ledger import Ledger
from factory.spec import CurvePoint, Task, Traits, Trial, TrialState, VariantRequest

from .conftest import file_of, make_order, make_trial, make_variant


@pytest.fixture
def request_id(ledger: Ledger, order: VariantRequest) -> str:
    return ledger.create_request(order).id


def test_trials_come_back_equal_and_in_order(ledger: Ledger, request_id: str) -> None:
    curve = (CurvePoint(step=1, train=0.5), CurvePoint(step=2, validation=0.25))
    trials = [make_trial(n).model_copy(update={"curve": curve, "score": 0.1 + n / 3}) for n in (10, 2, 1)]
    for trial in trials:
        ledger.record_trial(request_id, trial)
    stored = ledger.trials(request_id)
    assert stored == trials[::-1]
    types = {name: type(value) for name, value in stored[0].parameters.items()}
    assert types == {"num_leaves": int, "learning_rate": float, "extra_trees": bool, "max_bin": type(None)}


def test_segments_have_numbers_of_their_own(ledger: Ledger, request_id: str) -> None:
    for segment in ("", "Asia"):
        ledger.record_trial(request_id, make_trial(0, segment=segment))
    assert [t.segment for t in ledger.trials(request_id)] == ["", "Asia"]
    assert [t.segment for t in ledger.trials(request_id, segment="Asia")] == ["Asia"]
    assert ledger.trials(request_id, segment="Europe") == []


def test_running_trial_changes_until_it_is_finished(ledger: Ledger, request_id: str) -> None:
    ledger.record_trial(request_id, make_trial(state=TrialState.CREATED))
    ledger.record_trial(request_id, make_trial(state=TrialState.RUNNING))
    done = make_trial()
    ledger.record_trial(request_id, done)
    ledger.record_trial(request_id, done)
    for change in ({"score": 0.9}, {"state": TrialState.RUNNING, "score": None}, {"parameters": {}}):
        with pytest.raises(Conflict, match=rf"Trial 0 .* {next(iter(change))}"):
            ledger.record_trial(request_id, done.model_copy(update=change))
    assert ledger.trials(request_id) == [done]


def with_folds(*folds: int, **fields: object) -> Trial:
    """Return a finished trial that was fitted on these folds, with scores that follow from them."""
    scores = tuple(0.8 + fold / 100 for fold in folds)
    measured = {"folds": folds, "fold_scores": scores, "score": sum(scores) / len(scores), "cost_s": 1.5 * len(folds)}
    return make_trial().model_copy(update=measured | fields)


def test_a_finished_trial_may_gain_folds(ledger: Ledger, request_id: str) -> None:
    ledger.record_trial(request_id, make_trial(state=TrialState.RUNNING))
    for trial in (with_folds(0), with_folds(0, 1), with_folds(0, 1, 2, 5), with_folds(0, 1, 2, 3, 4, 5)):
        ledger.record_trial(request_id, trial)
        assert ledger.trials(request_id) == [trial]


@pytest.mark.parametrize(
    "changed",
    [
        with_folds(0),
        with_folds(0, 2),
        with_folds(0, 1, cost_s=9.0),
        with_folds(0, 1, state=TrialState.KILLED),
        with_folds(0, 1, 2, fold_scores=(0.8, 0.5, 0.9)),
        with_folds(0, 1, 2, parameters={"num_leaves": 32}),
        with_folds(0, 1, 2, family="xgboost"),
        with_folds(0, 1, 2, seed=9),
    ],
    ids=["loses one", "swaps one", "same ones", "killed", "other score", "other parameters", "other family", "seed"],
)
def test_folds_that_a_trial_has_do_not_change(ledger: Ledger, request_id: str, changed: Trial) -> None:
    known = with_folds(0, 1)
    ledger.record_trial(request_id, known)
    with pytest.raises(Conflict, match=r"Trial 0 .* is finished and cannot change"):
        ledger.record_trial(request_id, changed)
    assert ledger.trials(request_id) == [known]


def test_a_trial_that_does_not_name_its_folds_does_not_change(ledger: Ledger, request_id: str) -> None:
    """So they were stored before there was a race over folds."""
    old = make_trial().model_copy(update={"folds": ()})
    ledger.record_trial(request_id, old)
    ledger.record_trial(request_id, old)
    with pytest.raises(Conflict):
        ledger.record_trial(request_id, with_folds(0, 1, 2))
    assert ledger.trials(request_id) == [old]


@pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.KILLED, TrialState.OUT_OF_MEMORY])
def test_a_trial_that_ended_without_a_fold_gains_none(ledger: Ledger, request_id: str, state: TrialState) -> None:
    ended = make_trial(state=state)
    ledger.record_trial(request_id, ended)
    with pytest.raises(Conflict):
        ledger.record_trial(request_id, with_folds(0))
    assert ledger.trials(request_id) == [ended]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_score_that_is_no_number_is_kept_and_stays_immutable(ledger: Ledger, request_id: str, score: float) -> None:
    trial = make_trial().model_copy(update={"score": score})
    ledger.record_trial(request_id, trial)
    ledger.record_trial(request_id, trial)
    [stored] = ledger.trials(request_id)
    assert stored.score is not None
    assert math.isnan(stored.score) if math.isnan(score) else stored.score == score


def test_trial_of_an_unknown_request_is_refused(ledger: Ledger, request_id: str) -> None:
    with pytest.raises(NotFound, match="nearest"):
        ledger.record_trial(request_id + "x", make_trial())


def test_recorded_trials_survive_sigkill(
    ledger: Ledger, url: str, request_id: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys
from factory.ledger import Ledger
from factory.spec import Trial
ledger = Ledger.open(sys.argv[1])
for number in range(100_000):
    ledger.record_trial(sys.argv[2], Trial(number=number, family="constant", parameters={}, state="succeeded"))
    print(number, flush=True)
"""
    writer = start(code, url, request_id)
    assert writer.stdout is not None
    for _ in range(50):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    acknowledged = 49 + sum(line.endswith("\n") for line in writer.stdout)
    numbers = [t.number for t in ledger.trials(request_id)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged
    if url.startswith("sqlite"):
        connection = sqlite3.connect(file_of(url))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_recording_a_trial_is_one_short_transaction(ledger: Ledger, request_id: str) -> None:
    """The figure is in docs/decisions/ledger.md; what it hangs on is how often the database is asked."""
    curve = tuple(CurvePoint(step=n, train=0.1, validation=0.2) for n in range(200))
    ledger.record_trial(request_id, make_trial(0))
    statements: list[str] = []
    event.listen(ledger._engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    ledger.record_trial(request_id, make_trial(1).model_copy(update={"curve": curve}))
    changes = [statement.split()[0] for statement in statements if not statement.startswith("BEGIN")]
    assert changes == ["SELECT", "SELECT", "INSERT", "INSERT"]


def traits(**fields: object) -> Traits:
    return Traits.model_validate({"task": "binary", "n_rows": 9, "n_columns": 2, "columns": ("a1", "b2")} | fields)


def test_related_searches_are_those_of_the_same_team_recipe_and_task(ledger: Ledger) -> None:
    ids = {}
    for name, fields in {
        "old": {},
        "new": {"recipe": "tabular-auto@0123456789abcdef"},
        "theirs": {"team": "risk"},
        "other recipe": {"recipe": "tabular-fast"},
        "other task": {},
        "unfinished": {},
    }.items():
        ids[name] = ledger.create_request(make_order(**fields)).id
        ledger.record_traits(ids[name], traits(task="regression" if name == "other task" else "binary"))
        ledger.record_trial(ids[name], make_trial(0, state=TrialState.RUNNING))
        if name != "unfinished":
            ledger.record_trial(ids[name], make_trial(1))
    ledger.create_request(make_order())
    found = ledger.past_searches(team="growth", recipe="tabular-auto", task=Task.BINARY)
    assert [s.request_id for s in found] == [ids["new"], ids["old"]]
    assert [[t.number for t in s.trials] for s in found] == [[1], [1]]
    assert found[0].traits == traits()
    assert len(ledger.past_searches(team="growth", recipe="tabular-auto", task=Task.BINARY, limit=1)) == 1


def test_a_past_search_says_what_became_of_its_trials(ledger: Ledger, request_id: str) -> None:
    for number in range(4):
        ledger.record_trial(request_id, make_trial(number))
        ledger.record_trial(request_id, make_trial(number, segment="Asia"))
    blend = {"blend": {0: 0.25, 2: 0.75}, "kind": "warm_start"}
    ledger.record_variant(make_variant(request_id).model_copy(update=blend))
    asia = make_variant(request_id, name="growth.churn.asia")
    ledger.record_variant(asia.model_copy(update={"segment": "Asia", "blend": {3: 1.0}}))
    found = ledger.past_search(request_id)
    assert (found.variant, found.blend, found.kind, found.traits) == (
        "growth.churn", {0: 0.25, 2: 0.75}, "warm_start", None,
    )  # fmt: skip
    assert ledger.past_search(request_id, segment="Asia").blend == {3: 1.0}
    assert len(ledger.past_search(request_id, most_trials=2).trials) == 2
    ledger.record_traits(request_id, traits())
    ledger.record_traits(request_id, traits(n_rows=10))
    assert ledger.past_search(request_id).traits == traits(n_rows=10)
    with pytest.raises(NotFound):
        ledger.past_search("nobody")

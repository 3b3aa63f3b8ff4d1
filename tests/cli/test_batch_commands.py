"""Batches on the command line: over HTTP and on the ledger of the home, with the same words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from factory.ledger import Ledger
from factory.operate.batches import run_log
from factory.settings import Settings
from factory.spec import Actor, Task, Variant, VariantRequest
from tests.serving import portal

from .conftest import Answer, factory

SETUP = Actor(who="setup")


def done(answer: Answer, code: int = 0) -> Answer:
    assert answer.code == code, answer.err
    return answer


@pytest.fixture(scope="module")
def ledger(home: Path) -> Iterator[Ledger]:
    with Ledger.open(Settings(home=home).ledger) as opened:
        opened.create_team("growth", by=SETUP)
        asked = {"team": "growth", "name": "churn", "recipe": "tabular-fast", "dataset": {"path": "x", "target": "y"}}
        request = opened.create_request(VariantRequest.model_validate(asked))
        opened.record_variant(
            Variant(
                name="growth.churn", version=1, request_id=request.id, task=Task.BINARY, metric="roc_auc", score=0.8,
                score_low=0.7, score_high=0.9, recipe="tabular-fast", recipe_digest="0" * 64,
                dataset_digest="1" * 64, bundle_digest="2" * 64, created=datetime.now(UTC),
            )
        )  # fmt: skip
        yield opened


@pytest.fixture(scope="module")
def url(home: Path, ledger: Ledger) -> Iterator[str]:
    with portal(Settings(home=home)) as address:
        yield address


@pytest.mark.parametrize("local", [("--local",), ()], ids=["local", "http"])
def test_a_batch_is_declared_run_and_deleted(
    local: tuple[str, ...], home: Path, url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not local:
        monkeypatch.setenv("FACTORY_URL", url)
        secret = ledger.issue_token("ann", team=None, scopes=["admin"], by=SETUP).secret
        monkeypatch.setenv("FACTORY_TOKEN", secret)
    name = "growth.nightly"
    words = ("create", name, "--variant", "growth.churn", "--data", "/data/rows.parquet")
    cron = ("--cron", "30 4 * * *", "--time-zone", "Europe/Berlin", "--keep", "id")
    made = done(factory("batches", *words, *cron, *local))
    assert "growth.nightly is declared. It runs 30 4 * * * (Europe/Berlin), next 20" in made.out
    assert "There is a batch 'growth.nightly' already" in done(factory("batches", *words, *local), 2).err
    listed = done(factory("batches", "list", "--json", *local)).json
    assert [(one["name"], one["wish"]["keep"]) for one in listed] == [(name, ["id"])]
    assert "growth.churn" in done(factory("batches", "list", "--team", "growth", *local)).out
    assert "is paused" in done(factory("batches", "pause", name, *local)).out
    assert "It runs 30 4" in done(factory("batches", "resume", name, *local)).out
    assert "has not run yet" in done(factory("batches", "logs", name, *local), 2).err
    run = done(factory("batches", "run", name, "--json", *local)).json
    assert "one runs at a time" in done(factory("batches", "run", name, *local), 2).err
    assert "is under way" in done(factory("batches", "delete", name, *local), 2).err
    kept = run_log(ledger.batch_run(run["id"]), Settings(home=home))
    kept.parent.mkdir(parents=True)
    kept.write_text("predicting\n")
    assert done(factory("batches", "logs", name, *local)).out == "predicting\n"
    ledger.end_batch_run(run["id"], "failed", "There is no table at it.")
    assert "There is no table at it." in done(factory("batches", "show", name, *local)).out
    shown = done(factory("batches", "show", name, "--json", *local)).json
    assert [one["state"] for one in shown["runs"]] == ["failed"]
    assert "is deleted" in done(factory("batches", "delete", name, *local)).out
    assert "There is no batch 'growth.nightly'" in done(factory("batches", "show", name, *local), 2).err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nightly", "--variant", "growth.churn", "--data", "/x"), "is not team.name"),
        (("growth.a", "--variant", "growth.churn"), "give either path or upload"),
        (("growth.a", "--variant", "growth.churn", "--data", "/x", "--cron", "* *"), "has 2 fields"),
        (
            ("growth.a", "--variant", "growth.churn", "--data", "/x", "--cron", "* * * * *", "--every", "1h"),
            "either cron",
        ),
        (("growth.a", "--variant", "growth.none", "--data", "/x"), "There is no variant 'growth.none'"),
    ],
)
def test_what_cannot_be_declared_says_why(words: tuple[str, ...], says: str, ledger: Ledger) -> None:
    assert says in done(factory("batches", "create", *words, "--local"), 2).said

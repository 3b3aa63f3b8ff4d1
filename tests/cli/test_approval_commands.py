"""Promotions that a second person approves, on the command line: over HTTP and on the ledger of the home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.ledger import Ledger
from factory.remote import Client
from factory.settings import Settings
from factory.spec import Actor, Variant, VariantRequest
from tests.serving import portal

from .conftest import Answer, factory

SETUP = Actor(who="setup")
DIGESTS = {f"{name}_digest": "a" * 64 for name in ("recipe", "dataset", "bundle")}


def done(answer: Answer, code: int = 0) -> Answer:
    assert answer.code == code, answer.err
    return answer


@pytest.fixture(scope="module")
def ledger(home: Path) -> Iterator[Ledger]:
    recipes = home.parent / "recipes"
    recipes.mkdir()
    (recipes / "careful.yaml").write_text("{name: careful, title: Careful, families: [linear], approval: true}")

    class Mirror:
        """MLflow's aliases; it takes seconds to import, and nothing here is about it."""

        def __init__(self, _settings: object) -> None:
            pass

        def set_alias(self, *_: object) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch, Ledger.open(Settings(home=home).ledger) as opened:
        patch.setenv("FACTORY_RECIPES", str(recipes))
        patch.setattr("factory.operate.promotion.Registry", Mirror)
        opened.create_team("growth", by=SETUP)
        yield opened


@pytest.fixture
def version(ledger: Ledger) -> int:
    """Return the number of a version that nobody has approved."""
    document = {"team": "growth", "name": "churn", "recipe": "careful", "dataset": {"path": "a.csv", "target": "y"}}
    request_id = ledger.create_request(VariantRequest.model_validate(document)).id
    number = len(ledger.variants("growth.churn")) + 1
    ledger.record_variant(
        Variant(
            name="growth.churn", version=number, request_id=request_id, task="binary", metric="roc_auc", score=0.8,
            score_low=0.7, score_high=0.9, recipe="careful", approval=True, **DIGESTS,
        )
    )  # fmt: skip
    return number


@pytest.fixture
def secrets(ledger: Ledger) -> tuple[str, str]:
    """Return the tokens of two members."""
    first, second = (
        ledger.issue_token(name, team="growth", scopes=["read", "deploy"], by=SETUP).secret for name in ("ann", "bob")
    )
    return first, second


def test_what_one_member_proposes_another_one_approves(
    version: int, secrets: tuple[str, str], ledger: Ledger, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with portal(Settings(home=home)) as url:
        monkeypatch.setenv("FACTORY_URL", url)
        monkeypatch.setenv("FACTORY_TOKEN", secrets[0])
        said = done(factory("variants", "promote", f"growth.churn/{version}", "--why", "Better.")).out
        (proposal,) = done(factory("variants", "proposals", "--json")).json
        assert f"factory variants approve {proposal['id']}" in said
        assert "same hands" in done(factory("variants", "approve", proposal["id"], "--why", "Mine."), 2).err
        monkeypatch.setenv("FACTORY_TOKEN", secrets[1])
        assert proposal["id"] in done(factory("variants", "proposals")).out
        said = done(factory("variants", "approve", proposal["id"], "--why", "Seen.")).out
        assert f"growth.churn/{version} is approved" in said
        assert ledger.alias("growth.churn", "champion") == version
        assert done(factory("variants", "proposals", "--json")).json == []
        assert done(factory("variants", "proposals", "--all", "--json")).json[0]["state"] == "approved"
        with Client() as client:
            assert client.proposal(proposal["id"]).decided_why == "Seen."
            assert [p.id for p in client.proposals(name="growth.churn", state="approved")] == [proposal["id"]]


def test_the_user_of_this_machine_is_one_person_too(version: int, ledger: Ledger) -> None:
    name = f"growth.churn/{version}"
    done(factory("variants", "promote", name, "--why", "Better.", "--local"))
    (proposal,) = done(factory("variants", "proposals", "--json", "--local")).json
    done(factory("variants", "approve", proposal["id"], "--why", "Mine.", "--local"), 2)
    assert "is rejected" in done(factory("variants", "reject", proposal["id"], "--why", "No.", "--local")).out
    assert ledger.proposal(proposal["id"]).state == "rejected"
    assert (
        "is champion now"
        in done(factory("variants", "promote", name, "--why", "The old one is broken.", "--override", "--local")).out
    )
    assert ledger.proposals("growth.churn")[-1].state == "overridden"

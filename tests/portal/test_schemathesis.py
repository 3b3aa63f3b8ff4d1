"""What the OpenAPI document says is what the API does: Schemathesis calls every route with all its checks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig

from factory.errors import InvalidData
from factory.ledger import Ledger
from factory.operate.attending import log_path
from factory.settings import Settings
from factory.spec import BatchWish, DeploymentWish, Task, Trial
from factory.testing.jobs import FakeJobs
from factory.variants.background import Background
from factory.variants.bundle import Bundle
from serve.portal import context
from serve.portal.app import create_app
from tests.portal.conftest import SETUP, World
from tests.schemathesis_calls import complaints_of
from tests.serve.conftest import customers, make_bundle
from tests.serving import predictor, running

OPERATING = [
    "create_team",
    "change_team",
    "archive_team",
    "end_sessions",
    "list_teams",
    "show_metrics",
    "list_audit",
    "list_tokens",
]
BEYOND_A_SCHEMA = {
    # A cursor is one that the list has given, an entity tag one that was read.
    **{
        name: ["400"]
        for name in ("list_requests", "list_trials", "list_datasets", "list_variants", "list_audit", "list_proposals")
    },
    # What a recipe, the data or another field of the same document allows cannot be said by a JSON schema.
    "submit_request": ["400"],
    "upload_dataset": ["400", "422"],
    "retry_request": ["400"],
    "create_batch": ["400"],
    "show_due_times": ["400"],
    # Which columns a table has.
    "screen_dataset": ["422"],
    # Which columns a variant has, and that numbers have 64 bits.
    "try_version": ["400", "422"],
    "set_deployment": ["400", "412"],
    "publish_recipe": ["400", "412"],
    # Nor that a text can be printed.
    "create_team": ["400"],
    "change_team": ["400", "412"],
    "put_member": ["400"],
    # A moment to come cannot be said either.
    "create_token": ["400"],
    "rotate_token": ["400"],
}
FULL = "FACTORY_TEST_FULL" in os.environ
"""Whether a real server is called, with more examples and all boundaries of all parameters."""
ENDED, TEAM = "r-20261127-100000-0zseed", "growth"


def config(digest: str, token: str, proposal: str, *, secret: str, only: Sequence[str]) -> SchemathesisConfig:
    """Return what lets Schemathesis call few times, and leads it to things that there are most of the time."""
    values: dict[str, list[Any]] = {
        "request": [ENDED],
        "digest": [digest],
        "variant": ["growth.churn"],
        "version": [1],
        "recipe": ["tabular-fast"],
        "batch": ["growth.nightly"],
        "team": [TEAM],
        "subject": ["ann"],
        "token": [token],
        "proposal": [proposal],
    }
    places = {
        "/requests/": ("request_id", "request"),
        "/datasets/": ("digest", "digest"),
        "/variants/": ("name", "variant"),
        "/deployments/": ("name", "variant"),
        "/recipes/": ("name", "recipe"),
        "/batches/": ("name", "batch"),
        "/teams/": ("name", "team"),
        "/tokens/": ("token_id", "token"),
        "/proposals/": ("proposal_id", "proposal"),
        "/people/": ("subject", "subject"),
    }
    often = {"probability": 0.7}
    operations: list[dict[str, Any]] = [
        {
            "include-path-regex": f"^/api/v1{place}",
            "parameters": {
                f"path.{parameter}": {"dictionary": dictionary} | often,
                "path.version": {"dictionary": "version"} | often,
                "path.subject": {"dictionary": "subject"} | often,
            },
        }
        for place, (parameter, dictionary) in places.items()
    ]
    usual = ["2xx", "3xx", "401", "403", "404", "409", "429"]
    operations += [
        {
            "include-operation-id": name,
            "checks": {"positive_data_acceptance": {"expected-statuses": [*usual, *statuses]}},
        }
        for name, statuses in BEYOND_A_SCHEMA.items()
    ]
    if only:
        operations.append({"exclude-operation-id": list(only), "enabled": False})
    generation = {"max-examples": 20 if FULL else 3, "deterministic": True, "no-shrink": True, "database": "none"}
    return SchemathesisConfig.from_dict(
        {
            "dictionaries": {name: {"values": some} for name, some in values.items()},
            "operations": operations,
            "auth": {"openapi": {"token": {"bearer": secret}}},
            "max-stream-events": 5,
            "generation": generation,
            "phases": {"coverage": {"enabled": FULL}, "stateful": {"enabled": False}},
        }
    )


@pytest.fixture(scope="module")
def seeded(template: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A portal in which there is something of everything; MLflow is not asked."""

    class Mirror:
        def __init__(self, _settings: object) -> None:
            pass

        def set_alias(self, *_: object) -> None:
            pass

    home = tmp_path_factory.mktemp("seeded")
    shutil.copy(template[0], home / "ledger.db")
    chosen = Settings(_env_file=None, home=home, requests_a_minute=10**6)
    with (
        pytest.MonkeyPatch.context() as patch,
        Ledger.open(chosen.ledger) as ledger,
        predictor(ledger, explaining_bundle()) as url,
    ):
        patch.setattr("serve.portal.trying.running_predictor", lambda _: SimpleNamespace(url=url))
        patch.setattr("factory.operate.promotion.Registry", Mirror)
        patch.setattr(context, "FAILED_SIGN_INS", 10**6)
        jobs = FakeJobs()
        world = World(create_app(chosen, jobs=jobs), chosen, ledger, jobs, template[1])
        _fill(world)
        yield world
        world.app.state.portal.close()


def explaining_bundle() -> Bundle:
    made = make_bundle(["age", "city"], target="churned", task=Task.BINARY)
    return replace(made, background=Background.of(customers(40), made.columns, seed=0))


def _fill(world: World) -> None:
    ledger = world.ledger
    from factory.spec import VariantRequest

    order = VariantRequest.model_validate(world.order())
    ledger.create_request(order, request_id=ENDED, queued="Waits.", by=SETUP, door="api", quote={"wall_s": None})
    ledger.record_trial(ENDED, Trial(number=0, family="linear", parameters={"alpha": 1}, state="succeeded", score=0.8))
    ledger.admit(ENDED)
    ledger.end_attempt(f"{ENDED}-1", "user_fault")
    path = log_path(world.settings, ENDED, 1)
    path.parent.mkdir(parents=True)
    path.write_text("one\n")
    ledger.fail(ENDED, InvalidData("No."))
    variant = world.made()
    world.made()
    card = world.settings.workspace(variant.request_id) / "pooled" / "card.html"
    card.parent.mkdir(parents=True)
    card.write_text("<p>card</p>")
    ledger.set_alias("growth.churn", "champion", 1, who="x", why="y", by=SETUP)
    ledger.add_member(TEAM, "ann", scopes=["read"], by=SETUP)
    ledger.share("variant", "growth.churn", team=TEAM, with_team="risk", by=SETUP)
    wish = BatchWish(team=TEAM, name="nightly", variant="growth.churn", path="/data/rows.csv")
    ledger.create_batch(wish, anywhere=True, by=SETUP)
    ledger.end_batch_run(ledger.start_batch_run("growth.nightly", by=SETUP).id, "done", "Done.", rows=1)


def called(seeded: World, who: str, *, only: Sequence[str] = ()) -> tuple[set[str], list[str]]:
    """Let Schemathesis call the API; return the operations that were called, and what it complains of."""
    token = seeded.ledger.issue_token("seed", team=TEAM, scopes=["read"], by=SETUP).record.id
    version = seeded.ledger.variant("growth.churn", 2)
    proposal = seeded.ledger.propose(version, DeploymentWish(), why="x", by=SETUP).id
    chosen = config(seeded.upload(), token, proposal, secret=seeded.secrets[who], only=only)
    if not FULL:
        return complaints_of(schemathesis.openapi.from_asgi("/openapi.json", seeded.app, config=chosen))
    with running(lambda _: seeded.app, lifespan="off") as url:
        return complaints_of(schemathesis.openapi.from_url(f"{url}/openapi.json", config=chosen))


def test_a_team_finds_what_is_documented(seeded: World) -> None:
    labels, complaints = called(seeded, "growth/admin")
    assert complaints == [], "\n\n".join(complaints)
    documented = seeded.app.openapi()["paths"]
    assert labels == {f"{method.upper()} {path}" for path, operations in documented.items() for method in operations}


def test_operators_find_what_is_documented(seeded: World) -> None:
    labels, complaints = called(seeded, "operator", only=OPERATING)
    assert complaints == [], "\n\n".join(complaints)
    assert len(labels) == len(OPERATING)

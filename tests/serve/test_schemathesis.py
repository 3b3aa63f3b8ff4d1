"""What the predictor's OpenAPI document says is what it does: Schemathesis calls every route, and nothing is a 5xx."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig

from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import Task
from factory.variants.background import Background
from serve.app import Predictor
from serve.core import Core
from serve.limits import Limits
from serve.online import FeatureReaders
from serve.recording import Recorder
from tests.schemathesis_calls import complaints_of

from .conftest import SETUP, Shelf, customers, make_bundle

FULL = "FACTORY_TEST_FULL" in os.environ
"""Whether all boundaries are tried, with a hundred examples of each."""
VARIANT = "growth.churn"
ROWS = [
    "invoke",
    "invoke_of_version",
    "invoke_v1",
    "explained",
    "explained_of_version",
    "explained_v1",
    "infer",
    "infer_of_version",
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Predictor, str]]:
    folder = tmp_path_factory.mktemp("shelf")
    made = make_bundle(["age", "city"], target="churned", task=Task.BINARY)
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        shelf = Shelf(folder / "bundles", ledger)
        shelf.put(VARIANT, replace(made, background=Background.of(customers(40), made.columns, seed=0)))
        secret = ledger.issue_token("seed", team=None, scopes=["read"], by=SETUP).secret
        core = Core(
            ledger,
            load=shelf.load,
            features=FeatureReaders(Settings(home=folder)),
            limits=Limits(rows=100, body_mb=1, a_minute=1e6),
            recorder=Recorder(Path(folder / "served"), percent=0, days=1),
        )
        yield Predictor(core), secret
        core.close()


def config(secret: str) -> SchemathesisConfig:
    often = {"probability": 0.8}
    operations: list[dict[str, Any]] = [
        {
            "include-path-regex": "^/(variants|v1|v2/models)/",
            "parameters": {
                "path.name": {"dictionary": "name"} | often,
                "path.version": {"dictionary": "version"} | often,
            },
        }
    ]
    # Which columns a variant has, that rows are of one length, and how many may be sent, a JSON schema cannot say.
    operations += [
        {
            "include-operation-id": name,
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "401", "404", "409", "413", "422"]}
            },
        }
        for name in ROWS
    ]
    return SchemathesisConfig.from_dict(
        {
            "dictionaries": {"name": {"values": [VARIANT, f"{VARIANT}@champion"]}, "version": {"values": [1]}},
            "operations": operations,
            "auth": {"openapi": {"token": {"bearer": secret}}},
            "generation": {
                "max-examples": 100 if FULL else 5,
                "deterministic": True,
                "no-shrink": True,
                "database": "none",
            },
            "phases": {"coverage": {"enabled": FULL}, "stateful": {"enabled": False}},
        }
    )


def test_every_route_does_what_is_documented(app: tuple[Predictor, str]) -> None:
    predictor, secret = app
    schema = schemathesis.openapi.from_asgi("/openapi.json", predictor, config=config(secret))
    labels, complaints = complaints_of(schema)
    assert complaints == [], "\n\n".join(complaints)
    paths = schema.raw_schema["paths"]
    documented = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    # Schemathesis leaves out the document itself, which it has read.
    assert labels | {"GET /openapi.json"} == documented

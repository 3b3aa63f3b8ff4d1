"""A portal over a real ledger of two teams with tokens of every scope, called in this process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi import FastAPI

from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import SCOPES, Actor, Quota, Variant, VariantRequest
from factory.testing.jobs import FakeJobs
from serve.portal.app import create_app
from tests.portal.providing import Running, providing
from tests.serving import running

SETUP = Actor(who="setup")


def fields_of(error: dict[str, Any]) -> set[str]:
    return {detail["field"] for detail in error["details"]}


@dataclass(frozen=True)
class Client:
    """Calls an application as an HTTP client with a token would."""

    app: FastAPI
    secret: str | None
    address: str = "10.0.0.7"
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        return asyncio.run(self.send(method, url, **arguments))

    async def send(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        headers = dict(self.headers)
        if self.secret is not None:
            headers["authorization"] = f"Bearer {self.secret}"
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(self.address, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://portal/api/v1", headers=headers) as client:
            return await client.request(method, url, **arguments)

    def get(self, url: str, **arguments: Any) -> httpx.Response:
        return self("GET", url, **arguments)

    def post(self, url: str, **arguments: Any) -> httpx.Response:
        return self("POST", url, **arguments)

    def put(self, url: str, **arguments: Any) -> httpx.Response:
        return self("PUT", url, **arguments)

    def patch(self, url: str, **arguments: Any) -> httpx.Response:
        return self("PATCH", url, **arguments)

    def delete(self, url: str, **arguments: Any) -> httpx.Response:
        return self("DELETE", url, **arguments)


@dataclass(frozen=True)
class World:
    """A portal, what it stands on, and tokens to call it with.

    Attributes:
        secrets: Token by team and scope: ``growth/read``, ``risk/admin``; ``operator`` sees all teams.
    """

    app: FastAPI
    settings: Settings
    ledger: Ledger
    jobs: FakeJobs
    secrets: dict[str, str]
    uploads: dict[tuple[str, int], str] = field(default_factory=dict)

    def __call__(self, who: str | None = "growth/submit", **arguments: Any) -> Client:
        return Client(self.app, None if who is None else self.secrets[who], **arguments)

    def upload(self, team: str = "growth", *, seed: int = 0) -> str:
        """Upload a table of customers as a team, once, and return its digest."""
        if (team, seed) in self.uploads:
            return self.uploads[team, seed]
        response = self(f"{team}/submit").post(
            "/datasets", params={"filename": "customers.csv"}, content=customers(seed).to_csv(index=False).encode()
        )
        assert response.status_code in (200, 201), response.text
        digest: str = response.json()["dataset"]["digest"]
        self.uploads[team, seed] = digest
        return digest

    def order(self, team: str = "growth", **changes: Any) -> dict[str, Any]:
        """Return a request of a team for data that it has uploaded."""
        dataset = {"upload": self.upload(team), "target": "churned"}
        base = {"team": team, "name": "churn", "recipe": "tabular-auto", "dataset": dataset, "budget": {"time_s": 60}}
        return base | changes

    def submitted(self, team: str = "growth", **changes: Any) -> str:
        """Submit a request as a team, and return its id."""
        response = self(f"{team}/submit").post("/requests", json=self.order(team, **changes))
        assert response.status_code == 202, response.text
        request_id: str = response.json()["id"]
        return request_id

    def made(self, name: str = "growth.churn", *, state: str = "registered", **changes: Any) -> Variant:
        """Put a version of a variant into the ledger, as a request leaves it."""
        team, _, short = name.partition(".")
        dataset = {"path": "customers.parquet", "target": "churned"}
        order = {"team": team, "name": short.partition(".")[0], "recipe": "tabular-auto", "dataset": dataset}
        request_id = self.ledger.create_request(VariantRequest.model_validate(order)).id
        return self.ledger.record_variant(
            Variant(
                name=name,
                version=len(self.ledger.variants(name)) + 1,
                request_id=request_id,
                state=state,
                task="binary",
                metric="roc_auc",
                recipe_digest="a" * 64,
                dataset_digest="b" * 64,
                bundle_digest="c" * 64,
                **{"recipe": "tabular-auto", "score": 0.84, "score_low": 0.82, "score_high": 0.86} | changes,
            )
        )


def customers(seed: int = 0, n_rows: int = 300) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": random.integers(18, 90, n_rows),
            "income": random.normal(40, 9, n_rows).round(2),
            "city": random.choice(["Bern", "Genf"], n_rows),
            "churned": random.choice(["no", "yes"], n_rows),
        }
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A ledger's file with two teams, and the tokens that it knows."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    secrets = {}
    with Ledger.open(f"sqlite:///{path}") as ledger:
        bootstrap = ledger.bootstrap_token(by=SETUP)
        assert bootstrap is not None
        secrets["operator"] = bootstrap.secret
        for team in ("growth", "risk"):
            ledger.create_team(team, title=team.title(), quota=Quota(cpus=4), by=SETUP)
            for scope in SCOPES:
                scopes = (scope,) if scope in ("read", "admin") else ("read", scope)
                secrets[f"{team}/{scope}"] = ledger.issue_token(scope, team=team, scopes=scopes, by=SETUP).secret
            only = ledger.issue_token("only", team=team, scopes=("submit",), by=SETUP)
            secrets[f"{team}/only_submit"] = only.secret
    return path, secrets


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(template: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[MakeWorld]:
    opened: list[World] = []

    def make(*, jobs: FakeJobs | None = None, **settings: Any) -> World:
        home = tmp_path / f"home{len(opened)}"
        home.mkdir(mode=0o700)
        shutil.copy(template[0], home / "ledger.db")
        chosen = Settings(_env_file=None, home=home, **settings)
        jobs = jobs or FakeJobs()
        app = create_app(chosen, jobs=jobs)
        world = World(app, chosen, Ledger.open(chosen.ledger), jobs, template[1])
        opened.append(world)
        return world

    yield make
    for world in opened:
        world.app.state.portal.close()
        world.ledger.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int | None]]:
    """What MLflow is told; it takes seconds to import, and tests that use this are not about it."""
    told: list[tuple[str, str, int | None]] = []

    class Mirror:
        def __init__(self, _settings: object) -> None:
            pass

        def set_alias(self, name: str, alias: str, version: int | None) -> None:
            told.append((name, alias, version))

    monkeypatch.setattr("factory.operate.promotion.Registry", Mirror)
    return told


@pytest.fixture(scope="module")
def process() -> Iterator[Running]:
    """A provider that runs; :func:`provider` has it as at its start."""
    with providing() as running:
        yield running


@pytest.fixture
def provider(process: Running) -> Running:
    process.does()
    return process


def yaml_of(document: dict[str, Any]) -> bytes:
    """Return a document as YAML, which JSON is."""
    return json.dumps(document).encode()


@pytest.fixture
def address(world: World) -> Iterator[str]:
    """A real server of the application."""
    with running(lambda _: world.app, lifespan="off") as url:
        yield f"{url}/api/v1"

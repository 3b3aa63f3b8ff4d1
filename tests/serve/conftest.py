"""Small real variants in a real ledger, and a client that calls the ASGI application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from factory.data.dataset import Dataset, from_frame
from factory.data.features import join
from factory.data.preparation import Preparation
from factory.families.base import Family, FitContext, Sample, Shape
from factory.ledger import Ledger
from factory.plugins import load as load_plugin
from factory.settings import Settings
from factory.spec import Actor, DeploymentWish, FileDataset, Task, Variant, VariantRequest
from factory.variants.bundle import Bundle, Member
from factory.variants.contents import folder_size_mb
from factory.variants.inputs import input_columns
from factory.variants.registry import Registry
from serve import remembered
from serve.app import Predictor
from serve.core import Core
from serve.limits import Limits
from serve.loaded import Loaded, Times
from tests.serving import NoFeatures

SETUP = Actor(who="setup")
SERVICE = "country_v1"
TIMESTAMP = "event_timestamp"
"""Of the example's features and entities."""


def customers(n_rows: int = 240, *, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, categories, a flag, dates, and two targets that they explain partly."""
    random = np.random.default_rng(seed)
    age = random.integers(18, 80, n_rows)
    income = np.where(random.random(n_rows) < 0.1, np.nan, random.lognormal(10, 1, n_rows))
    city = random.choice(["Bern", "Genf", "Zürich", None], n_rows)
    member = random.random(n_rows) < 0.5
    since = pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 1500, n_rows), unit="D")
    signal = 0.06 * (age - 50) + np.where(city == "Bern", 1.5, 0) + 0.8 * member + random.normal(0, 1, n_rows)
    inputs = {"age": age, "income": income, "city": city, "member": member, "since": since}
    return pd.DataFrame({**inputs, "churned": np.where(signal > 0.5, "yes", "no"), "spend": 20 * signal + 100})


def make_bundle(columns: list[str], *, target: str, task: Task, family: str = "linear") -> Bundle:
    """Fit one model of a family on the customers."""
    dataset = from_frame(customers()[[*columns, target]], FileDataset(path="c.parquet", target=target, task=task))
    return fitted(dataset, task=task, family=family, ignored=(target,))


def life_bundle(settings: Settings) -> tuple[Bundle, pd.DataFrame]:
    """Fit one model on the example's entities joined to their features; return it with the entities."""
    entities = pd.read_parquet(settings.feature_store / "data" / "entities" / "life_expectancy.parquet")
    joined = join(entities, timestamp=TIMESTAMP, feature_service=SERVICE, settings=settings)
    reference = FileDataset(path="x.parquet", target=entities.columns[-1], task=Task.REGRESSION)
    return fitted(from_frame(joined.frame, reference), task=Task.REGRESSION), entities


def fitted(dataset: Dataset, *, task: Task, family: str = "linear", ignored: tuple[str, ...] = ()) -> Bundle:
    """Fit one model of a family, with the first parameters of its portfolio."""
    preparation = Preparation.fit(dataset.frame, dataset.types)
    plugin = load_plugin("families", family)
    assert isinstance(plugin, Family)
    model = plugin.fit(
        Sample(preparation.transform(dataset.frame), dataset.y),
        validation=None,
        parameters=plugin.portfolio(task, shape=Shape(len(dataset.y)))[0].parameters,
        context=FitContext(task=task, n_classes=len(dataset.classes), seed=0),
    )
    return Bundle(
        task=task,
        classes=dataset.classes,
        columns=input_columns(dataset.frame, dataset.types),
        preparations=(preparation,),
        members=(Member(family=family, model=model, preparation=0, weight=1.0),),
        ignored=ignored,
    )


def variant_of(name: str, version: int, *, request_id: str, task: Task, digest: str) -> Variant:
    return Variant(
        name=name,
        version=version,
        request_id=request_id,
        task=task,
        metric="roc_auc",
        score=0.8,
        score_low=0.7,
        score_high=0.9,
        recipe="tabular-fast",
        recipe_digest="0" * 64,
        dataset_digest="1" * 64,
        bundle_digest=digest,
        created=datetime.now(UTC),
    )


def order(name: str) -> VariantRequest:
    team, _, short = name.partition(".")
    dataset = {"path": "customers.parquet", "target": "churned"}
    return VariantRequest.model_validate({"team": team, "name": short, "recipe": "tabular-fast", "dataset": dataset})


@dataclass(frozen=True)
class Shelf:
    """Bundles in folders, and the ledger that knows them."""

    folder: Path
    ledger: Ledger

    @cached_property
    def secret(self) -> str:
        """Of a token that may call every variant."""
        return self.ledger.issue_token("tests", team=None, scopes=["predict"], by=SETUP).secret

    def put(self, name: str, bundle: Bundle, *, champion: bool = True) -> Variant:
        request_id = self.ledger.create_request(order(name)).id
        version = len(self.ledger.variants(name)) + 1
        digest = bundle.save(self.path(name, version))
        variant = variant_of(name, version, request_id=request_id, task=bundle.task, digest=digest)
        stored = self.ledger.record_variant(variant)
        if champion:
            self.ledger.set_alias(name, "champion", version, who="test", why="first")
        return stored

    def path(self, name: str, version: int) -> Path:
        return self.folder / name / str(version)

    def load(self, variant: Variant) -> Loaded:
        folder = self.path(variant.name, variant.version)
        bundle = Bundle.load(folder, digest=variant.bundle_digest)
        return Loaded(variant, bundle, {str(folder): folder_size_mb(folder)}, Times.of(bundle))


@dataclass(frozen=True)
class Caller:
    """Calls an application as an HTTP client would."""

    app: Predictor
    secret: str | None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"} if self.secret else {}

    def client(self) -> httpx.AsyncClient:
        """Return a client for calls within one event loop."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", headers=self.headers)

    def __call__(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, url, **arguments)

        return asyncio.run(send())

    def get(self, url: str, **arguments: Any) -> httpx.Response:
        return self("GET", url, **arguments)

    def post(self, url: str, **arguments: Any) -> httpx.Response:
        return self("POST", url, **arguments)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no caller be told what was known before because this machine is busy."""
    monkeypatch.setattr(remembered, "WAITED_S", 60.0)
    monkeypatch.setattr(remembered, "ASKED_S", 60.0)


@pytest.fixture(scope="session")
def churn() -> Bundle:
    return make_bundle(["age", "income", "city", "member", "since"], target="churned", task=Task.BINARY)


@pytest.fixture(scope="session")
def spend() -> Bundle:
    return make_bundle(["age", "income"], target="spend", task=Task.REGRESSION)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, churn: Bundle, spend: Bundle) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        shelf = Shelf(folder / "bundles", ledger)
        shelf.put("growth.churn", churn)
        shelf.put("growth.spend", spend)
        yield shelf


@pytest.fixture
def own_shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        yield Shelf(tmp_path / "bundles", ledger)


MakePredictor = Callable[..., Caller]


@pytest.fixture(scope="module")
def make_caller() -> MakePredictor:
    def make(
        shelf: Shelf,
        *,
        load: Any = None,
        features: Any = None,
        warm_up: Any = lambda: None,
        mirror: Any = lambda *_: None,
        **limits: Any,
    ) -> Caller:
        core = Core(
            shelf.ledger,
            load=load or shelf.load,
            features=features or NoFeatures(),
            limits=Limits(**({"rows": 50, "body_mb": 0.1} | limits)),
            warm_up=warm_up,
            mirror=mirror,
        )
        return Caller(Predictor(core), shelf.secret)

    return make


@pytest.fixture(scope="module")
def caller(shelf: Shelf, make_caller: MakePredictor) -> Caller:
    return make_caller(shelf)


@pytest.fixture(scope="module")
def registered_home(tmp_path_factory: pytest.TempPathFactory, churn: Bundle) -> Settings:
    """A home whose MLflow registry and ledger know growth.churn; its champion is deployed."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, serve_port=0, max_request_mb=1)
    digest = churn.save(home / "made")
    with Ledger.open(settings.ledger) as ledger:
        request_id = ledger.create_request(order("growth.churn")).id
        wanted = variant_of("growth.churn", 0, request_id=request_id, task=churn.task, digest=digest)
        example = customers().drop(columns=["churned", "spend"]).head(3)
        made = Registry(settings).register(home / "made", variant=wanted, example=example, metrics={})
        ledger.record_variant(made)
        ledger.set_alias(made.name, "champion", made.version, who="test", why="first")
        ledger.set_deployment(made.name, DeploymentWish(), version=made.version)
    return settings

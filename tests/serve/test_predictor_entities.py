"""Entities over HTTP: a real Feast store with the example's features, and a variant trained on them."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from factory.data.features import materialize
from factory.data.online import OnlineReader
from factory.errors import ServiceFault
from factory.settings import Settings
from factory.spec import OnlinePolicy, Variant
from factory.variants.bundle import Bundle
from serve.loaded import Loaded
from serve.online import FeatureReaders
from tests.serve.conftest import SERVICE, life_bundle

pytestmark = pytest.mark.slow

PATH = "/variants/growth.life/invocations"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    OnlineReader(settings, SERVICE)
    materialize(settings)
    return settings


@pytest.fixture(scope="module")
def bundle(settings: Settings) -> Bundle:
    return life_bundle(settings)[0]


@pytest.fixture
def caller(settings, bundle, own_shelf, make_caller):
    own_shelf.put("growth.life", bundle)

    def load(variant: Variant) -> Loaded:
        loaded = own_shelf.load(variant)
        with_service = variant.model_copy(update={"feature_service": SERVICE})
        return Loaded(with_service, loaded.bundle, loaded.sizes, loaded.times)

    return make_caller(own_shelf, load=load, features=FeatureReaders(settings))


def test_entities_are_predicted_with_their_features(caller, settings, bundle):
    entities = [{"country": "Peru", "continent": "Americas"}, {"country": "Atlantis", "continent": "Europe"}]
    answer = caller.post(PATH, json={"entities": entities})
    assert answer.status_code == 200, answer.text
    assert {entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")} == {
        "load",
        "features",
        "predict",
    }
    values = OnlineReader(settings, SERVICE).read([{"country": row["country"]} for row in entities]).values
    assert all(np.isnan(column[1]) for column in values.values() if column.dtype.kind == "f")
    columns = {**values, "continent": np.array(["Americas", "Europe"], dtype=object)}
    expected = bundle.predict_raw({column.name: columns[column.name] for column in bundle.columns})
    predictions = [row["prediction"] for row in answer.json()["predictions"]]
    assert predictions == expected.tolist()
    assert 40 < predictions[0] < 95
    rows = [{name: column[0] for name, column in columns.items()}]
    as_columns = caller.post(PATH, json={"dataframe_records": rows}).json()["predictions"]
    assert as_columns[0]["prediction"] == predictions[0]


@pytest.mark.parametrize(
    ("entity", "status", "field"),
    [
        ({"continent": "Americas"}, 400, "entities[0].country"),
        ({"country": 7, "continent": "Americas"}, 400, "entities[0].country"),
        ({"country": "Peru", "continent": "Americas", "capital": "Lima"}, 400, "entities[0].capital"),
        ({"country": "Peru"}, 422, "continent"),
    ],
)
def test_entities_that_are_wrong(caller, entity, status, field):
    response = caller.post(PATH, json={"entities": [entity]})
    assert response.status_code == status, response.text
    assert [detail["field"] for detail in response.json()["error"]["details"]] == [field]


def test_a_store_that_is_down_is_a_503_until_it_is_back(caller, settings):
    body = {"entities": [{"country": "Peru", "continent": "Americas"}]}
    good = caller.post(PATH, json=body).json()
    database: Path = settings.feature_store / "online.db"
    kept = database.with_suffix(".kept")
    shutil.copy(database, kept)
    database.write_bytes(b"this is no database " * 500)
    response = caller.post(PATH, json=body)
    assert response.status_code == 503, response.text
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "service_fault"
    shutil.copy(kept, database)
    assert caller.post(PATH, json=body).json() == good


def test_a_service_that_is_gone_is_not_the_callers_fault(settings):
    with pytest.raises(ServiceFault, match="no feature service 'country_v0'"):
        FeatureReaders(settings).warm_up("country_v0")


# --- the recipe's policy ----------------------------------------------------------------

PERU = {"country": "Peru", "continent": "Americas"}
NOWHERE = {"country": "Atlantis", "continent": "Europe"}


@pytest.fixture
def with_policy(settings, bundle, own_shelf, make_caller):
    """Make a caller of a variant whose recipe has a policy, with a reader of its own."""
    own_shelf.put("growth.life", bundle)

    def make(readers: FeatureReaders | None = None, **policy):
        def load(variant: Variant) -> Loaded:
            loaded = own_shelf.load(variant)
            changes = {"feature_service": SERVICE, "online": OnlinePolicy(**policy)}
            return Loaded(variant.model_copy(update=changes), loaded.bundle, loaded.sizes, loaded.times)

        return make_caller(own_shelf, load=load, features=readers or FeatureReaders(settings))

    return make


def test_missing_features_are_refused_where_the_recipe_does(with_policy):
    caller = with_policy(missing="refuse")
    assert caller.post(PATH, json={"entities": [PERU]}).status_code == 200
    error = caller.post(PATH, json={"entities": [PERU, NOWHERE]}).json()["error"]
    assert error["code"] == "invalid_data"
    assert [d["field"] for d in error["details"]] == ["entities[1]"]
    assert "Atlantis" in error["details"][0]["message"]
    assert "missing: " in error["details"][0]["message"]
    assert "materialize" in error["hint"]


def test_stale_features_are_refused_where_the_recipe_does(with_policy, settings, monkeypatch):
    late = datetime.now(UTC) + timedelta(days=365 * 200)
    read = OnlineReader.read
    monkeypatch.setattr(OnlineReader, "read", lambda self, rows: read(self, rows, now=late))
    reader = OnlineReader(settings, SERVICE)
    assert any(view.ttl for view in reader.definition.views)
    assert with_policy().post(PATH, json={"entities": [PERU]}).status_code == 200
    refused = with_policy(stale="refuse").post(PATH, json={"entities": [PERU]})
    assert refused.status_code == 422
    assert "stale: " in refused.json()["error"]["message"]


def test_features_that_are_sent_count_instead_of_the_stores(with_policy, settings):
    caller = with_policy(missing="refuse")
    reader = OnlineReader(settings, SERVICE)
    known = {name: column[0] for name, column in reader.read([{"country": "Peru"}]).values.items()}
    known = {name: value.item() if hasattr(value, "item") else value for name, value in known.items()}
    plain = caller.post(PATH, json={"entities": [PERU]}).json()
    assert caller.post(PATH, json={"entities": [NOWHERE | known | {"continent": "Americas"}]}).json() == plain
    number = next(name for name, value in known.items() if isinstance(value, float))
    assert caller.post(PATH, json={"entities": [PERU | {number: known[number] * 3 + 1}]}).json() != plain
    wrong = caller.post(PATH, json={"entities": [PERU | {number: "many"}]})
    assert wrong.status_code == 422
    assert [d["field"] for d in wrong.json()["error"]["details"]] == [number]


def test_the_last_features_answer_while_the_store_is_away(with_policy, settings, monkeypatch):
    readers = FeatureReaders(settings)
    last, strict = with_policy(readers, store_down="last"), with_policy(FeatureReaders(settings))
    before = last.post(PATH, json={"entities": [PERU]})
    assert strict.post(PATH, json={"entities": [PERU]}).status_code == 200

    def away(*_, **__):
        raise ConnectionError("refused")

    monkeypatch.setattr(OnlineReader, "read", away)
    during = last.post(PATH, json={"entities": [PERU]})
    assert (during.status_code, during.json()) == (200, before.json())
    assert last.post(PATH, json={"entities": [PERU, NOWHERE]}).status_code == 503
    assert strict.post(PATH, json={"entities": [PERU]}).status_code == 503
    assert last.app.core.metrics().count(b'state="last"') >= 1


def test_what_a_caller_has_sent_is_not_kept_for_others(with_policy, settings, monkeypatch):
    caller = with_policy(FeatureReaders(settings), store_down="last")
    plain = caller.post(PATH, json={"entities": [PERU]}).json()
    reader = OnlineReader(settings, SERVICE)
    number = next(n for n, column in reader.read([{"country": "Peru"}]).values.items() if column.dtype.kind == "f")
    assert caller.post(PATH, json={"entities": [PERU | {number: 1e9}]}).status_code == 200
    assert caller.post(PATH, json={"entities": [PERU | {number: "many"}]}).status_code == 422

    def away(*_, **__):
        raise ConnectionError("refused")

    monkeypatch.setattr(OnlineReader, "read", away)
    assert caller.post(PATH, json={"entities": [PERU]}).json() == plain
    assert caller.post(PATH, json={"entities": [PERU | {number: 1e9}]}).json() != plain


def test_a_store_that_hangs_is_a_503_within_the_deadline(with_policy, settings, monkeypatch):
    caller = with_policy(FeatureReaders(settings))
    assert caller.post(PATH, json={"entities": [PERU]}).status_code == 200
    monkeypatch.setattr("serve.core.FEATURES_S", 0.2)
    monkeypatch.setattr(OnlineReader, "read", lambda *_, **__: time.sleep(1.0))
    answer = caller.post(PATH, json={"entities": [PERU]})
    assert answer.status_code == 503
    assert "did not answer in time" in answer.json()["error"]["message"]

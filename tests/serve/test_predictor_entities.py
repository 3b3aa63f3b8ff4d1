"""Entities over HTTP: a real Feast store with the example's features, and a variant trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from factory.data.features import materialize
from factory.data.online import OnlineReader
from factory.errors import ServiceFault
from factory.settings import Settings
from factory.spec import Variant
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
        return Loaded(with_service, loaded.bundle, loaded.size_mb, loaded.row_ms)

    return make_caller(own_shelf, load=load, features=FeatureReaders(settings))


def test_entities_are_predicted_with_their_features(caller, settings, bundle):
    entities = [{"country": "Peru", "continent": "Americas"}, {"country": "Atlantis", "continent": "Europe"}]
    answer = caller.post(PATH, json={"entities": entities})
    assert answer.status_code == 200, answer.text
    assert {entry.split(";")[0] for entry in answer.headers["server-timing"].split(", ")} == {"features", "predict"}
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

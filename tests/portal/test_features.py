"""The catalogue of features, and ordering a variant with features from the store."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from factory.data.features import ServiceEntry, ViewEntry
from factory.errors import ServiceFault
from factory.ledger import Upload
from factory.settings import Settings
from serve.portal import catalogue
from tests.answers import error_of
from tests.portal.conftest import World, fields_of
from tests.portal.test_pages import SCRIPT, Visitor

FRESH = datetime(2026, 11, 1, tzinfo=UTC)


def service(name: str, **changes: object) -> ServiceEntry:
    view = ViewEntry(
        name="country_year",
        owner="world-data",
        entities=("country",),
        features={"gdp_per_capita": "FLOAT64", "population": "INT64"},
        ttl_s=86_400,
        oldest=datetime(1952, 1, 1, tzinfo=UTC),
        newest=FRESH,
    )
    base = {"name": name, "description": "What is known of a country", "definition": "d" * 64}
    return ServiceEntry(**{**base, "entities": ("country",), "views": (view,), **changes})


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Each look at a store of two services; it takes Feast seconds, and these tests are not about it."""
    made: list[Settings] = []

    def look(settings: Settings) -> tuple[ServiceEntry, ...]:
        made.append(settings)
        return (service("country_v1"), service("shop_v1", description=SCRIPT, owner="sales", views=()))

    monkeypatch.setattr(catalogue, "catalogue", look)
    return made


def test_services_are_listed_and_looked_at_once_a_minute(
    looks: list[Settings], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world("risk/read").get("/feature-services").json()
    assert [item["name"] for item in found["items"]] == ["country_v1", "shop_v1"]
    one = world("growth/read").get("/feature-services/country_v1").json()
    assert one["views"][0]["features"] == {"gdp_per_capita": "FLOAT64", "population": "INT64"}
    assert looks == [world.settings]
    error = error_of(world("growth/read").get("/feature-services/country_v2"), 404)
    assert "Did you mean 'country_v1'?" in error["message"]
    error_of(world(None).get("/feature-services"), 401)
    monkeypatch.setattr(catalogue, "LOOK_AGAIN_S", -1)
    world("risk/read").get("/feature-services")
    assert len(looks) == 2


def test_a_store_that_is_gone_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Settings) -> tuple[ServiceEntry, ...]:
        raise ServiceFault("Feast could not open the registry.", hint="Try again.")

    monkeypatch.setattr(catalogue, "catalogue", gone)
    error_of(world("growth/read").get("/feature-services"), 503)
    page = Visitor(world).signed_in().get("/features")
    assert page.response.status_code == 503
    assert "could not open the registry" in page.text
    form = Visitor(world).signed_in().get(f"/new/form?dataset={world.upload()}")
    assert form.response.status_code == 200, "the form is there without the store"


@pytest.mark.parametrize(
    ("like", "names"), [("", 2), ("gdp_per COUNTRY", 1), ("sales", 1), ("world-data", 1), ("nothing", 0)]
)
def test_the_catalogue_is_searched(like: str, names: int, looks: list[Settings], world: World) -> None:
    page = Visitor(world).signed_in().get(f"/features?like={like}")
    assert page.text.count('href="/features/') == names
    assert SCRIPT not in page.text


def test_a_service_shows_what_it_brings_and_who_uses_it(looks: list[Settings], world: World) -> None:
    world.made("growth.rate", feature_service="country_v1")
    world.made("risk.rate", feature_service="country_v1")
    page = Visitor(world).signed_in().get("/features/country_v1").text
    for text in (
        "gdp_per_capita",
        "world-data",
        "growth.rate/1",
        "never made ready",
        'href="/new?features=country_v1"',
    ):
        assert text in page
    assert "risk.rate" not in page
    version = Visitor(world).signed_in().get("/variants/growth.rate/versions/1").text
    assert 'href="/features/country_v1"' in version, "the lineage leads to it"


def test_an_entity_table_is_ordered_with_a_service(looks: list[Settings], world: World) -> None:
    content = b"country,event_timestamp,rate\n" + b"".join(
        b"C%d,2020-01-0%d,%d\n" % (k, k % 9 + 1, k) for k in range(40)
    )
    answer = world("growth/submit").post("/datasets", params={"filename": "rates.csv"}, content=content)
    upload = Upload.model_validate(answer.json()["dataset"])
    visitor = Visitor(world).signed_in()
    assert f"features=country_v1&amp;dataset={upload.digest}" in visitor.get("/new?features=country_v1").text
    page = visitor.get(f"/new/form?features=country_v1&dataset={upload.digest}")
    assert 'value="country_v1"' in page.text
    assert "<option selected>event_timestamp</option>" in page.text
    choice = visitor.get("/features/choice?dataset.feature_service=country_v1").text
    assert '<option value="country_v1" selected>' in choice
    form = {"team": "growth", "recipe": "tabular-auto", "name": "rate", "key": "k", "dataset__upload": upload.digest}
    form |= {"dataset__target": "rate", "dataset__timestamp": "event_timestamp", "csrf": page.csrf}
    sent = visitor.post("/new", **form, dataset__feature_service="country_v1")
    assert sent.response.status_code == 303, sent.text
    request = world.ledger.request(sent.response.headers["location"].rpartition("/")[2]).request
    assert request.dataset.join == ("country_v1", "event_timestamp")
    plain = visitor.post("/new", **form | {"key": "other", "name": "plain"}, dataset__feature_service="")
    request = world.ledger.request(plain.response.headers["location"].rpartition("/")[2]).request
    assert request.dataset.join is None, "a moment alone joins nothing"


def test_what_cannot_be_joined_is_refused_at_once(world: World) -> None:
    dataset = {"upload": world.upload(), "target": "churned"}
    order = world.order(dataset=dataset | {"feature_service": "country_v1"})
    error = error_of(world("growth/submit").post("/requests", json=order), 400)
    assert fields_of(error) == {"/dataset/timestamp"}
    assert "There is no column 'event_timestamp'" in error["message"]
    for wrong in ({"timestamp": "age"}, {"feature_service": "country_v1", "timestamp": "age", "scoring": "s.parquet"}):
        error_of(world("growth/submit").post("/requests", json=world.order(dataset=dataset | wrong)), 400)

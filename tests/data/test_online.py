"""Online reads and their comparison with offline values, on SQLite and on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from redis import Redis

from factory.data import feature_store
from factory.data.feature_check import check
from factory.data.feature_store import apply, open_store
from factory.data.features import catalogue, join, materialize
from factory.data.online import CellStatus, OnlineReader
from factory.errors import Conflict, InvalidRequest
from factory.settings import Settings
from tests.topics.brokers import server

FILLED = datetime(2005, 6, 1, tzinfo=UTC)

SENSORS = """
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Int64, String

DATA = Path(__file__).resolve().parent / "data"
site = Entity(name="site", join_keys=["site"], value_type=ValueType.STRING)
unit = Entity(name="unit", join_keys=["unit"], value_type=ValueType.INT64)

def source(name):
    path = str(DATA / f"{name}.parquet")
    return FileSource(name=name, path=path, timestamp_field="at", created_timestamp_column="made")

readings = FeatureView(
    name="readings", entities=[site, unit], ttl=timedelta(hours=2), source=source("readings"),
    schema=[Field(name="level", dtype=Float32), Field(name="mode", dtype=String), Field(name="alarm", dtype=Bool)],
)
sites = FeatureView(
    name="sites", entities=[site], ttl=timedelta(0), source=source("sites"), schema=[Field(name="level", dtype=Int64)],
)
sensor_v1 = FeatureService(name="sensor_v1", features=[readings, sites])
"""

SQLITE = "{type: sqlite, path: data/online.db}"
STORE = """
project: sensors
provider: local
entity_key_serialization_version: 3
offline_store: {type: duckdb}
online_store: %s
registry: {registry_type: sql, path: "sqlite:///data/registry.db", cache_ttl_seconds: 0}
"""


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2020-01-01T{clock}").replace(tzinfo=UTC)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def online_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The online store as ``feature_store.yaml`` names it."""
    if request.param == "sqlite":
        yield SQLITE
        return
    with server("redis", tmp_path_factory.mktemp("redis")) as url:
        yield f'{{type: redis, connection_string: "{urlsplit(url).netloc}"}}'


@pytest.fixture
def sensors(tmp_path: Path, online_store: str) -> Settings:
    """Two join keys, two views that share a feature's name, text, flags, nulls, a corrected row, a view without TTL."""
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    (repository / "feature_store.yaml").write_text(STORE % online_store)
    if online_store != SQLITE:
        with Redis(port=int(online_store.rpartition(":")[2].rstrip('"}'))) as redis:
            redis.flushall()
    (repository / "features.py").write_text(SENSORS)
    readings = pd.DataFrame(
        [
            ("a", 1, "10:00", "10:00", 1.5, "x", True),
            ("a", 1, "11:00", "11:00", 2.5, None, False),
            ("a", 2, "11:00", "11:00", 9.0, "y", True),
            ("a", 2, "11:00", "11:30", 3.5, "y", True),
            ("b", 1, "09:00", "09:00", float("nan"), "z", None),
        ],
        columns=["site", "unit", "at", "made", "level", "mode", "alarm"],
    ).astype({"level": "float32", "alarm": "boolean"})
    sites = pd.DataFrame([("a", "08:00", "08:00", 7)], columns=["site", "at", "made", "level"])
    for name, frame in {"readings": readings, "sites": sites}.items():
        for column in ("at", "made"):
            frame[column] = pd.Series([at(v) for v in frame[column]]).astype("datetime64[us, UTC]")
        frame.to_parquet(repository / "data" / f"{name}.parquet", index=False)
    settings = Settings(home=tmp_path / "home", feature_repo=repository)
    apply(settings)
    return settings


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    materialize(settings, until=FILLED)
    return settings


def test_read_gives_what_a_join_at_that_moment_gives(sensors: Settings) -> None:
    materialize(sensors, until=at("12:00"))
    rows = [{"site": s, "unit": u} for s, u in [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("a", 1)]]
    reader = OnlineReader(sensors, "sensor_v1")
    assert reader.entity_keys == ("site", "unit")
    assert reader.definition.columns == ("readings__level", "readings__mode", "readings__alarm", "sites__level")
    for moment in ("12:00", "13:00", "13:00:01"):
        online = reader.read(rows, now=at(moment)).frame()
        offline = join(
            pd.DataFrame(rows).assign(t=at(moment)), timestamp="t", feature_service="sensor_v1", settings=sensors
        ).frame
        for column in reader.definition.columns:
            left = online[column].astype(object).where(online[column].notna(), None)
            right = offline[column].astype(object).where(offline[column].notna(), None)
            assert left.tolist() == right.tolist(), (moment, column)
    assert reader.read(rows, now=at("12:00")).values["readings__level"][:2].tolist() == [2.5, 3.5]


def test_status_tells_present_missing_and_stale(sensors: Settings) -> None:
    materialize(sensors, until=at("12:00"))
    read = OnlineReader(sensors, "sensor_v1").read(
        [{"site": "a", "unit": 1}, {"site": "b", "unit": 1}, {"site": "c", "unit": 5}], now=at("13:30")
    )
    stale, missing, present = CellStatus.STALE, CellStatus.MISSING, CellStatus.PRESENT
    assert read.status["readings__level"].tolist() == [stale, missing, missing]
    assert read.status["readings__mode"].tolist() == [missing, missing, missing]
    assert read.status["sites__level"].tolist() == [present, missing, missing]
    assert read.values["sites__level"][0] == 7
    assert np.isnan(read.values["readings__level"]).all()
    assert read.event_timestamps["readings__level"][0] == np.datetime64("2020-01-01T11:00")
    assert np.isnat(read.event_timestamps["readings__level"][2])
    assert read.count(stale) == 2


def test_no_read_of_redis_waits_for_ever(sensors: Settings) -> None:
    store = open_store(sensors).config.online_store
    if store.type == "sqlite":
        pytest.skip("only a server is waited for")
    assert store.connection_string.endswith(",socket_timeout=5,socket_connect_timeout=5")
    store.connection_string = "a:1,socket_timeout=0.5,db=3"
    feature_store._bound_redis(open_store(sensors).config)
    assert store.connection_string == "a:1,socket_timeout=0.5,db=3,socket_connect_timeout=5"
    feature_store._bound_redis(open_store(sensors).config, patient=False)
    assert store.connection_string == "a:1,socket_timeout=0.5,db=3,socket_connect_timeout=5,retry=null"


def test_a_connection_that_redis_has_closed_costs_no_read_and_no_pause(
    sensors: Settings, online_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if online_store == SQLITE:
        pytest.skip("only a server closes connections")
    materialize(sensors, until=at("12:00"))
    reader, asked = OnlineReader(sensors, "sensor_v1"), [{"site": "a", "unit": 1}]
    before = reader.read(asked, now=at("12:00"))
    monkeypatch.setattr("redis.retry.sleep", lambda _: pytest.fail("The driver pauses."))
    with Redis(port=int(online_store.rpartition(":")[2].rstrip('"}'))) as redis:
        assert redis.client_kill_filter(_type="normal", skipme=True) > 0
    assert reader.read(asked, now=at("12:00")).values == before.values


def test_bad_entity_rows_are_all_named(sensors: Settings) -> None:
    reader = OnlineReader(sensors, "sensor_v1")
    with pytest.raises(InvalidRequest) as caught:
        reader.read([{"site": 5, "unit": 1}, {"site": "a", "units": 1}, {"site": "a", "unit": True}])
    assert [d.field for d in caught.value.details] == [
        "entities[0].site",
        "entities[1].units",
        "entities[1].unit",
        "entities[2].unit",
    ]
    assert "Did you mean 'unit'" in caught.value.details[1].message
    with pytest.raises(InvalidRequest, match="At least one entity"):
        reader.read([])


def test_materialize_goes_on_where_it_stopped(sensors: Settings) -> None:
    first = {done.view: done for done in materialize(sensors, until=at("10:30"))}
    assert first["readings"].since == at("10:30") - timedelta(hours=2)
    reader = OnlineReader(sensors, "sensor_v1")
    row = [{"site": "a", "unit": 1}]
    assert reader.read(row, now=at("10:30")).values["readings__level"][0] == 1.5
    second = {done.view: done for done in materialize(sensors, until=at("12:00"))}
    assert second["readings"].since == at("10:30")
    assert reader.read(row, now=at("12:00")).values["readings__level"][0] == 2.5
    assert all(done.skipped for done in materialize(sensors, until=at("12:00")))
    moments = [view.materialized for service in catalogue(sensors) for view in service.views]
    assert moments == [at("12:00"), at("12:00")]


def test_late_rows_are_found_by_check_and_mended_by_a_full_materialization(sensors: Settings) -> None:
    materialize(sensors, until=at("12:00"))
    assert check(sensors, "sensor_v1").ok
    assert sensors.feature_repo is not None
    path = sensors.feature_repo / "data" / "readings.parquet"
    late = pd.read_parquet(path)
    extra = late.iloc[[1]].assign(at=pd.Series([at("11:45")], index=[1]).astype("datetime64[us, UTC]"), level=8.0)
    pd.concat([late, extra.astype(late.dtypes)]).to_parquet(path, index=False)

    materialize(sensors, until=at("12:30"))
    result = check(sensors, "sensor_v1")
    assert [(d.entity, d.feature, d.online, d.offline) for d in result.differences] == [
        ({"site": "a", "unit": "1"}, "level", 2.5, 8.0)
    ]
    materialize(sensors, until=at("12:30"), full=True)
    assert check(sensors, "sensor_v1").ok


def test_check_needs_a_materialized_store(sensors: Settings) -> None:
    with pytest.raises(Conflict, match="never filled for readings, sites"):
        check(sensors, "sensor_v1")


def test_check_finds_nothing_and_then_a_planted_difference(example: Settings) -> None:
    clean = check(example, "country_v1")
    assert clean.ok
    assert clean.cells == 142 * 6
    assert {view.moment for view in clean.views} == {FILLED}

    store = open_store(example)
    health = pd.read_parquet(example.feature_store / "data" / "country_health.parquet")
    row = health[(health["country"] == "Peru") & (health["event_timestamp"] == "2002-12-31")]
    assert len(row) == 1
    store.write_to_online_store("country_health", row.assign(life_expectancy=12.25))
    planted = check(example, "country_v1")
    assert not planted.ok
    assert planted.n_differences == 1
    difference = planted.differences[0]
    assert (difference.entity, difference.view, difference.feature) == (
        {"country": "Peru"},
        "country_health",
        "life_expectancy",
    )
    assert (difference.online, difference.offline) == (12.25, 69.906)

    materialize(example, until=FILLED, full=True)
    assert check(example, "country_v1").ok


def test_check_samples_with_a_seed(example: Settings) -> None:
    result = check(example, "country_v1", sample=10, seed=3)
    assert [view.entities for view in result.views] == [10, 10]
    assert result.cells == 60


def test_reader_follows_a_changed_definition_when_refreshed(sensors: Settings) -> None:
    materialize(sensors, until=at("12:00"))
    reader = OnlineReader(sensors, "sensor_v1")
    row = [{"site": "a", "unit": 1}]
    assert reader.read(row, now=at("13:30")).status["readings__level"][0] == CellStatus.STALE
    assert not reader.refresh()
    assert sensors.feature_repo is not None
    (sensors.feature_repo / "features.py").write_text(SENSORS.replace("hours=2", "hours=4"))
    apply(sensors)
    assert reader.refresh()
    assert reader.read(row, now=at("13:30")).values["readings__level"][0] == 2.5

"""Joins against hand-written point-in-time joins, on real Feast stores in temporary folders."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from factory.data.feature_store import apply
from factory.data.features import catalogue, join, materialize
from factory.errors import Conflict, InvalidData, InvalidRequest
from factory.settings import Settings

YEAR = timedelta(days=365)

STORE = """
project: {name}
provider: local
entity_key_serialization_version: 3
offline_store: {{type: duckdb}}
online_store: {{type: sqlite, path: data/online.db}}
registry: {{registry_type: sql, path: "sqlite:///data/registry.db", cache_ttl_seconds: 0}}
"""

CDNOW = """
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

DATA = Path(__file__).resolve().parent / "data"
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)

def view(name, days, **features):
    return FeatureView(
        name=name, entities=[customer], ttl=timedelta(days=days),
        schema=[Field(name=n, dtype=t) for n, t in features.items()],
        source=FileSource(name=name, path=str(DATA / f"{name}.parquet"), timestamp_field="known_at"),
    )

totals = view("totals", 180, orders=Int64, spent=Float64)
latest = view("latest", 45, amount=Float64, quantity=Int64)
customer_v1 = FeatureService(name="customer_v1", features=[totals, latest])
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def surveys(example: Settings) -> dict[str, pd.DataFrame]:
    catalogue(example)
    folder = example.feature_store / "data"
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def cdnow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, pd.DataFrame], Path]:
    """A store over customers' running totals and latest order; a day's orders are known from the next day on."""
    if not (folder := os.environ.get("FACTORY_TEST_DATA")):
        pytest.skip("FACTORY_TEST_DATA is not set; it names the folder with cdnow_events.parquet")
    events = pd.read_parquet(Path(folder) / "cdnow_events.parquet")
    days = events.groupby(["customer_id", "event_time"], as_index=False).agg(
        n=("amount", "size"), amount=("amount", "sum"), quantity=("quantity", "sum")
    )
    days["known_at"] = (days["event_time"] + pd.Timedelta(days=1)).astype("datetime64[us]").dt.tz_localize("UTC")
    running = days.groupby("customer_id")[["n", "amount"]].cumsum()
    key = days[["customer_id", "known_at"]]
    sources = {
        "totals": key.assign(orders=running["n"], spent=running["amount"]),
        "latest": key.assign(amount=days["amount"], quantity=days["quantity"]),
    }
    repository = tmp_path_factory.mktemp("cdnow")
    (repository / "data").mkdir()
    (repository / "feature_store.yaml").write_text(STORE.format(name="cdnow"))
    (repository / "features.py").write_text(CDNOW)
    for name, frame in sources.items():
        frame.to_parquet(repository / "data" / f"{name}.parquet", index=False)
    settings = Settings(home=tmp_path_factory.mktemp("home"), feature_repo=repository)
    apply(settings)
    return settings, sources, Path(folder)


def by_hand(
    entities: pd.DataFrame, source: pd.DataFrame, *, key: str, moment: str, known: str, ttl: timedelta
) -> pd.DataFrame:
    """The newest value not later than the moment and not older than the TTL, in the entity table's order."""
    left = entities[[key, moment]].assign(row=np.arange(len(entities)))
    left[moment] = pd.to_datetime(left[moment], utc=True).astype("datetime64[us, UTC]")
    joined = pd.merge_asof(
        left.sort_values(moment),
        source.sort_values(known),
        left_on=moment,
        right_on=known,
        by=key,
        direction="backward",
        tolerance=pd.Timedelta(ttl),
        allow_exact_matches=True,
    )
    return joined.sort_values("row", ignore_index=True)


def assert_same(joined: pd.DataFrame, expected: pd.DataFrame, columns: list[str]) -> None:
    for column in columns:
        left, right = joined[column].to_numpy(dtype=float), expected[column].to_numpy(dtype=float)
        np.testing.assert_array_equal(left, right, err_msg=column)


def test_join_equals_a_join_by_hand_on_the_example(example: Settings, surveys: dict[str, pd.DataFrame]) -> None:
    """Moments before the first survey, exactly on one, between two, at the end of the TTL, after it; duplicates."""
    countries = surveys["country_health"]["country"].unique()
    last = pd.Timestamp("2007-12-31", tz="UTC")
    moments = [
        pd.Timestamp("1950-06-01", tz="UTC"),
        pd.Timestamp("1977-12-31", tz="UTC"),
        pd.Timestamp("1977-12-30 23:59:59.999999", tz="UTC"),
        pd.Timestamp("1990-03-05 12:30", tz="UTC"),
        last + 30 * YEAR,
        last + 30 * YEAR + pd.Timedelta(microseconds=1),
    ]
    entities = pd.DataFrame([(c, m) for c in countries for m in moments], columns=["country", "asked_at"])
    entities = pd.concat([entities, entities.iloc[:100]]).sample(frac=1, random_state=1)
    entities["target"] = np.arange(len(entities))
    result = join(entities, timestamp="asked_at", feature_service="country_comparison_v1", settings=example)

    assert result.frame["target"].tolist() == entities["target"].tolist()
    assert result.keys["country"].tolist() == entities["country"].tolist()
    assert "country" not in result.frame
    assert "asked_at" not in result.frame
    missing = np.zeros(len(entities), dtype=int)
    for name, columns in {
        "country_economy": ["gdp_per_capita", "gdp_growth"],
        "country_health": ["life_expectancy", "life_expectancy_change"],
        "country_standing": ["life_expectancy_to_continent", "gdp_rank_in_continent"],
    }.items():
        expected = by_hand(
            entities, surveys[name], key="country", moment="asked_at", known="event_timestamp", ttl=30 * YEAR
        )
        assert_same(result.frame, expected, columns)
        missing += expected[columns].isna().sum(axis=1).to_numpy()
    np.testing.assert_array_equal(result.missing_per_row, missing)
    assert result.lineage.rows_with_missing == (missing > 0).sum()
    assert sum(result.lineage.missing.values()) == missing.sum()
    assert result.lineage.interval == (datetime(1952, 12, 31, tzinfo=UTC), datetime(2007, 12, 31, tzinfo=UTC))
    assert result.lineage.entity_keys == ("country",)


def test_join_equals_a_join_by_hand_on_cdnow(cdnow: tuple[Settings, dict[str, pd.DataFrame], Path]) -> None:
    settings, sources, folder = cdnow
    labels = pd.read_parquet(folder / "cdnow_labels.parquet").sample(frac=1, random_state=0, ignore_index=True)
    result = join(labels, timestamp="as_of", feature_service="customer_v1", settings=settings)

    ttls = {"totals": (180, ["orders", "spent"]), "latest": (45, ["amount", "quantity"])}
    for name, (days, columns) in ttls.items():
        expected = by_hand(
            labels, sources[name], key="customer_id", moment="as_of", known="known_at", ttl=timedelta(days=days)
        )
        assert_same(result.frame, expected, columns)
        assert expected[columns[0]].isna().any()
        assert expected[columns[0]].notna().any()
    assert result.frame["buys_next_90d"].tolist() == labels["buys_next_90d"].tolist()
    assert result.absent_rows == 0

    # Once more from the raw events, without any join: those strictly before the moment.
    events = pd.read_parquet(folder / "cdnow_events.parquet")
    for row in np.random.default_rng(0).choice(len(labels), size=150, replace=False):
        mine = events[events["customer_id"] == labels["customer_id"][row]]
        mine = mine[mine["event_time"] < labels["as_of"][row]]
        fresh = len(mine) and mine["event_time"].max() + timedelta(days=181) >= labels["as_of"][row]
        assert result.frame["orders"][row] == len(mine) if fresh else np.isnan(result.frame["orders"][row])
        if fresh:
            assert result.frame["spent"][row] == pytest.approx(mine["amount"].sum())


def test_unknown_keys_are_counted_and_named(example: Settings) -> None:
    entities = pd.DataFrame({"country": ["France", "Atlantis", None, "Mu", "Mu"], "t": ["1990-01-01"] * 5})
    result = join(entities, timestamp="t", feature_service="country_v1", settings=example)
    assert result.absent_rows == 4
    assert result.absent_examples == ("country='Atlantis'", "country=None", "country='Mu'")
    assert result.missing_per_row.tolist() == [0, 6, 6, 6, 6]


def test_no_known_key_is_an_error_that_shows_both_sides(example: Settings) -> None:
    entities = pd.DataFrame({"country": ["FRA", "DEU"], "t": pd.to_datetime(["1990-01-01"] * 2)})
    with pytest.raises(InvalidData, match="None of the entity table's 2 rows") as caught:
        join(entities, timestamp="t", feature_service="country_v1", settings=example)
    assert "FRA" in caught.value.details[0].message
    assert caught.value.details[0].message.count("country=") > 2


def test_moments_outside_the_data_are_an_error_that_names_the_interval(example: Settings) -> None:
    entities = pd.DataFrame({"country": ["France"], "t": pd.to_datetime(["1930-01-01"])})
    with pytest.raises(InvalidData, match="finds a value") as caught:
        join(entities, timestamp="t", feature_service="country_v1", settings=example)
    assert "1952-12-31 to 2007-12-31" in caught.value.details[0].message


def test_unknown_service_names_the_nearest(example: Settings) -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'country_v1'") as caught:
        join(pd.DataFrame(), timestamp="t", feature_service="county_v1", settings=example)
    assert "country_comparison_v1" in caught.value.hint


def test_all_problems_of_an_entity_table_are_reported_together(example: Settings) -> None:
    entities = pd.DataFrame({"contry": ["France"], "t": [1990], "population": [1]})
    with pytest.raises(InvalidData) as caught:
        join(entities, timestamp="t", feature_service="country_v1", settings=example)
    problems = {detail.field: detail.message for detail in caught.value.details}
    assert set(problems) == {"country", "t", "population"}
    assert "Did you mean 'contry'" in problems["country"]
    assert "1 of 1 values are no date, such as" in problems["t"]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("t", ["1990-01-01", "soon"], "1 of 2 values are no date, such as 'soon'"),
        ("t", ["1990-01-01", None], "1 of 2 values are no date"),
        ("country", [1, 2], "keeps this entity key as String; received int64, such as 1"),
    ],
)
def test_bad_values_are_named(example: Settings, column: str, values: list[object], said: str) -> None:
    entities = pd.DataFrame({"country": ["France", "Spain"], "t": ["1990-01-01", "1991-01-01"]}).assign(
        **{column: values}
    )
    with pytest.raises(InvalidData, match=said):
        join(entities, timestamp="t", feature_service="country_v1", settings=example)


def test_missing_timestamp_column(example: Settings) -> None:
    entities = pd.DataFrame({"country": ["France"], "event_timestmp": ["1990-01-01"]})
    with pytest.raises(InvalidData, match="Did you mean 'event_timestmp'"):
        join(entities, timestamp="event_timestamp", feature_service="country_v1", settings=example)


def test_moments_in_another_zone_mean_the_same_instant(example: Settings) -> None:
    utc = pd.Series(pd.to_datetime(["1977-12-31 00:00", "1977-12-30 23:30"], utc=True))
    entities = pd.DataFrame({"country": ["France", "France"], "t": utc.dt.tz_convert("Asia/Tokyo")})
    joined = join(entities, timestamp="t", feature_service="country_v1", settings=example).frame
    assert joined["life_expectancy"].tolist() == [73.83, 72.38]


def test_catalogue_tells_owner_tags_and_freshness(example: Settings) -> None:
    services = {service.name: service for service in catalogue(example)}
    assert set(services) == {"country_v1", "country_comparison_v1"}
    service = services["country_v1"]
    assert service.owner == "data-platform@example.org"
    assert service.tags["stage"] == "production"
    assert [view.name for view in service.views] == ["country_economy", "country_health"]
    assert service.views[1].features == {"life_expectancy": "Float64", "life_expectancy_change": "Float64"}
    assert service.views[0].newest == datetime(2007, 12, 31, tzinfo=UTC)
    assert service.views[0].ttl_s == (30 * YEAR).total_seconds()
    assert services["country_comparison_v1"].definition != service.definition


def test_own_repository_must_be_applied_and_apply_says_what_changed(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    (repository / "feature_store.yaml").write_text(STORE.format(name="own"))
    (repository / "features.py").write_text(CDNOW)
    row = {"customer_id": ["c1"], "known_at": pd.to_datetime(["1997-01-02"], utc=True).astype("datetime64[us, UTC]")}
    for name, columns in {
        "totals": {"orders": [1], "spent": [2.0]},
        "latest": {"amount": [2.0], "quantity": [1]},
    }.items():
        pd.DataFrame(row | columns).to_parquet(repository / "data" / f"{name}.parquet")
    settings = Settings(home=tmp_path / "home", feature_repo=repository)
    with pytest.raises(Conflict, match="no feature service"):
        catalogue(settings)

    first = apply(settings)
    assert {(c.action, c.kind, c.name) for c in first.changes} >= {
        ("created", "entity", "customer"),
        ("created", "feature view", "totals"),
        ("created", "feature service", "customer_v1"),
    }
    assert apply(settings).changes == ()
    before = catalogue(settings)[0].definition

    (repository / "features.py").write_text(CDNOW.replace('"latest", 45', '"latest", 30'))
    assert ("updated", "latest") in {(c.action, c.name) for c in apply(settings).changes}
    assert catalogue(settings)[0].definition != before
    assert (repository / "data" / "registry.db").exists()

    less = CDNOW.replace("[totals, latest]", "[totals]").replace("latest = view(", "unused = dict(name=")
    less = less.replace('dict(name="latest", 45, ', 'dict(name="latest", ')
    (repository / "features.py").write_text(less)
    assert ("deleted", "latest") in {(c.action, c.name) for c in apply(settings).changes}
    assert [view.name for view in catalogue(settings)[0].views] == ["totals"]


def test_broken_repositories_are_the_users_to_mend(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", feature_repo=tmp_path)
    with pytest.raises(InvalidRequest, match=r"no feature_store\.yaml"):
        catalogue(settings)
    (tmp_path / "feature_store.yaml").write_text(STORE.format(name="own"))
    (tmp_path / "features.py").write_text("1 / 0")
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        apply(settings)
    (tmp_path / "feature_store.yaml").write_text("provider: local")
    with pytest.raises(InvalidRequest, match="project"):
        apply(settings)


def test_materialize_names_unknown_views(example: Settings) -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'country_health'"):
        materialize(example, views=("country_helth",))

"""On-demand views: one function for training rows and for calls, taken from the repository."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from factory.data import feature_functions
from factory.data.feature_check import check
from factory.data.feature_columns import FeatureColumn, canonical
from factory.data.feature_store import apply, open_store
from factory.data.features import JoinedFeatures, catalogue, join
from factory.data.on_demand import InputColumn, OnDemandView, compute
from factory.data.on_demand_definition import on_demand_view
from factory.data.online import CellStatus, OnlineReader
from factory.errors import Conflict, InvalidData, InvalidRequest, SystemFault
from factory.settings import Settings
from tests.data.on_demand_repository import DEFINITIONS, at, make_repository, refuse_functions, write

COLUMNS = ("level", "mode", "load", "over", "said", "each", "left")
ROWS = [
    {"site": "a", "amount": 3.5},
    {"site": "b", "amount": 1.0},
    {"site": "c", "amount": 2},
    {"site": "d", "amount": None},
    {"site": "nowhere", "amount": 7.0},
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_repository(tmp_path_factory.mktemp("on_demand"))


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """A repository that the test may change."""
    return make_repository(tmp_path)


def trained(settings: Settings, service: str = "load_v1", rows: list = ROWS, clock: str = "12:00") -> JoinedFeatures:
    table = pd.DataFrame(rows).assign(t=at(clock))
    return join(table, timestamp="t", feature_service=service, settings=settings)


def same(online: np.ndarray, offline: pd.Series) -> bool:
    if online.dtype == object:
        return online.tolist() == offline.astype(object).where(offline.notna(), None).tolist()
    return bool(np.allclose(online, pd.to_numeric(offline).to_numpy(np.float64, na_value=np.nan), 1e-9, 0, True))


@pytest.mark.parametrize("clock", ["12:00", "13:00", "13:15"])
def test_a_call_is_computed_as_a_training_row_is(settings: Settings, clock: str) -> None:
    reader = OnlineReader(settings, "load_v1")
    assert reader.definition.columns == COLUMNS
    assert (reader.entity_keys, reader.request_fields) == (("site",), ("amount",))
    online = reader.complete(reader.read(ROWS, now=at(clock)), ROWS)
    offline = trained(settings, clock=clock).frame
    assert tuple(online.values) == COLUMNS
    assert list(offline.columns) == ["amount", *COLUMNS]
    for name in COLUMNS:
        assert same(online.values[name], offline[name]), (name, online.values[name], offline[name].tolist())
    for i, row in enumerate(ROWS):  # a row does not depend on those that are sent with it
        alone = reader.complete(reader.read([row], now=at(clock)), [row])
        for name in COLUMNS:
            assert same(alone.values[name], offline[name].iloc[[i]]), (name, row)


def test_values_and_states_of_computed_features(settings: Settings) -> None:
    reader = OnlineReader(settings, "load_v1")
    read = reader.read(ROWS, now=at("12:30"))
    assert read.values["limits:limit"][:1].tolist() == [4.5]  # computed from, and no feature of the service
    done = reader.complete(read, ROWS)
    level = float(np.float32(2.7))
    assert done.values["load"][0] == pytest.approx((level * 3.5 + 0.0) / 4.5, rel=1e-12)
    assert np.isnan(done.values["load"][1:]).all()  # null, stale, null, unknown
    assert done.values["said"].tolist() == ["y4", None, None, "w0", None]
    assert done.values["over"].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]
    assert done.values["left"][2] == 0.25
    present, gone, stale = CellStatus.PRESENT, CellStatus.MISSING, CellStatus.STALE
    assert done.status["level"].tolist() == [present, gone, stale, present, gone]
    assert done.status["load"].tolist() == [present, gone, gone, gone, gone]
    assert np.isnat(done.event_timestamps["load"]).all()


def test_what_is_known_of_keys_is_told_by_stored_features(settings: Settings) -> None:
    joined = trained(settings)
    assert joined.absent_rows == 1
    assert joined.lineage.views == ("readings", "limits")
    assert set(joined.lineage.on_demand) == {"load", "told", "left"}
    assert all(len(digest) == 64 for digest in joined.lineage.on_demand.values())
    with pytest.raises(InvalidData, match="None of the entity table's 1 rows"):
        trained(settings, rows=[{"site": "nowhere", "amount": 1.0}])


def test_a_service_without_on_demand_views_is_read_as_ever(settings: Settings) -> None:
    reader = OnlineReader(settings, "plain_v1")
    read = reader.read([{"site": "a"}], now=at("12:00"))
    assert reader.complete(read, [{"site": "a"}]) is read
    assert [one.features for one in reader.definition.reads] == [reader.definition.service]
    assert trained(settings, "plain_v1", rows=[{"site": "a"}]).lineage.on_demand == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"site": "a"}, "This value is required for the on-demand views left, load; null stands for none"),
        ({"site": "a", "amount": "many"}, "Received 'many'; this value is of type Float64"),
        ({"site": "a", "amount": True}, "Received True"),
        ({"site": "a", "amount": 1.0, "amounts": 2.0}, "Did you mean 'amount'"),
    ],
)
def test_values_that_a_row_must_bring(settings: Settings, row: dict, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        OnlineReader(settings, "load_v1").read([row])
    assert caught.value.details[0].field in ("entities[0].amount", "entities[0].amounts")
    assert message in caught.value.details[0].message


def test_an_entity_table_without_such_a_column_is_refused(settings: Settings) -> None:
    with pytest.raises(InvalidData, match=r"amount: On-demand views need it \(left, load\), and it is no column"):
        trained(settings, rows=[{"site": "a"}])
    with pytest.raises(InvalidData, match="amount: Received 'many'"):
        trained(settings, rows=[{"site": "a", "amount": "many"}])


def test_the_registrys_function_is_never_run(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_functions(monkeypatch)
    # A view that is read without its function is still the same.
    assert not {change.name for change in apply(own).changes} & {"load", "told", "left"}
    trained(own)
    reader = OnlineReader(own, "load_v1")
    assert not reader.refresh()
    assert reader.complete(reader.read(ROWS), ROWS).values["load"].shape == (5,)
    trained(own, "plain_v1", rows=[{"site": "a"}])
    held = open_store(own).registry.get_any_feature_view("load", "sensors")
    with pytest.raises(RuntimeError, match="not run"):
        held.feature_transformation.udf(None)


def test_a_repository_that_differs_from_what_was_applied_is_refused(
    own: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = OnlineReader(own, "load_v1")
    write(own, DEFINITIONS.replace('inputs["amount"] +', 'inputs["amount"] -'), applied=False)
    assert not before.refresh()  # the applied text counts
    monkeypatch.setattr(feature_functions, "_KNOWN", {})  # as in a process that starts now
    with pytest.raises(Conflict, match="'load' differs from what was applied"):
        OnlineReader(own, "load_v1")
    with pytest.raises(Conflict, match="'load' differs from what was applied"):
        trained(own)
    assert OnlineReader(own, "plain_v1").definition.columns
    write(own, "", applied=False)
    with pytest.raises(Conflict, match="'load' is not in the repository"):
        OnlineReader(own, "load_v1")


def test_a_reader_takes_a_function_that_was_applied_anew(own: Settings) -> None:
    reader, row = OnlineReader(own, "load_v1"), [{"site": "d", "amount": 2.0}]
    before = trained(own).lineage
    plus = reader.complete(reader.read(row, now=at("12:00")), row).values["load"][0]
    write(own, DEFINITIONS.replace('inputs["amount"] +', 'inputs["amount"] -'))
    assert reader.refresh()
    minus = reader.complete(reader.read(row, now=at("12:00")), row).values["load"][0]
    assert (plus - minus) == pytest.approx(2 / 0.3)
    after = trained(own).lineage
    assert before.digest != after.digest
    assert {n for n in before.on_demand if before.on_demand[n] != after.on_demand[n]} == {"load"}


def test_a_failing_function_is_one_clear_error(own: Settings) -> None:
    write(own, DEFINITIONS.replace("    said = [", '    assert "z" not in inputs["mode"], "no z"\n    said = ['))
    reader = OnlineReader(own, "load_v1")
    good, bad = [{"site": "a", "amount": 1.0}], [{"site": "c", "amount": 1.0}]
    assert reader.complete(reader.read(good, now=at("12:00")), good).values["said"].tolist() == ["y4"]
    with pytest.raises(SystemFault) as caught:
        reader.complete(reader.read(bad, now=at("12:00")), bad)
    assert type(caught.value) is SystemFault  # nobody tries again, as with a store that is away
    assert caught.value.message == (
        "The on-demand feature view 'told' could not be computed: its function failed: AssertionError: no z."
    )
    with pytest.raises(SystemFault, match="'told' could not be computed"):
        trained(own, rows=bad)


def test_a_function_that_does_not_give_its_schema_is_not_applied(own: Settings) -> None:
    before = OnlineReader(own, "load_v1")
    for old, new in [
        ('"each":', '"one":'),
        ('"said": said', '"said": inputs["pumps"]'),
        ("    said = [", "    1 / 0\n    said = ["),
    ]:
        with pytest.raises(InvalidRequest, match="'told' does not give its schema for a made-up row"):
            write(own, DEFINITIONS.replace(old, new))
    assert not before.refresh()


def test_a_renamed_view_is_read_under_its_own_keys(own: Settings) -> None:
    service = (
        'far_v1 = FeatureService(name="far_v1", owner="me", features=[\n'
        '    readings[["level"]].with_name("far").with_join_key_map({"site": "origin"}), told[["said"]]])\n'
    )
    write(own, DEFINITIONS + service)
    rows = [{"site": "a", "origin": "d"}, {"site": "d", "origin": "nowhere"}]
    reader = OnlineReader(own, "far_v1")
    assert reader.entity_keys == ("site", "origin") or reader.entity_keys == ("origin", "site")
    online = reader.complete(reader.read(rows, now=at("12:00")), rows)
    offline = trained(own, "far_v1", rows=rows).frame
    assert online.values["said"].tolist() == offline["said"].tolist() == ["y4", "w0"]
    assert online.values["level"][0] == pytest.approx(0.1)
    assert same(online.values["level"], offline["level"])


def test_catalogue_and_check_know_views_that_are_computed(settings: Settings) -> None:
    entry = next(service for service in catalogue(settings) if service.name == "load_v1")
    assert [(view.name, view.computed) for view in entry.views] == [
        ("readings", None),
        ("load", "pandas"),
        ("told", "python"),
        ("left", "python"),
    ]
    found = check(settings, "load_v1")
    assert found.ok
    assert {view.view for view in found.views} == {"readings", "limits"}


# --- what a function gives ---------------------------------------------------------------


def view_of(function, mode="python", dtype="Int64") -> OnDemandView:
    return OnDemandView(
        name="v",
        mode=mode,
        inputs=(InputColumn("x", ("x",), "Int64"),),
        features=(FeatureColumn("y", "y", dtype),),
        text_digest="",
        function=function,
        view=None,
    )


@pytest.mark.parametrize(
    ("mode", "dtype", "function", "problem"),
    [
        ("python", "Int64", lambda given: [1, 2], "gave a list, not a dictionary"),
        ("python", "Int64", lambda given: {"z": [1, 2]}, "gave no 'y', which is in its schema"),
        ("python", "Int64", lambda given: {"y": [1]}, "gave 1 values of 'y' for 2 rows"),
        ("python", "Int64", lambda given: {"y": 1}, "gave a int for 'y', not one value a row"),
        ("python", "Int64", lambda given: {"y": [1, 1.5]}, "gave 1.5 for 'y', which is of type Int64"),
        ("python", "Bool", lambda given: {"y": [True, 2]}, "gave 2 for 'y', which is of type Bool"),
        ("python", "String", lambda given: {"y": ["a", 1]}, "gave 1 for 'y', which is of type String"),
        ("python", "Float64", lambda given: {"y": ["1", 2.0]}, "gave '1' for 'y', which is of type Float64"),
        ("python row", "Int64", lambda given: {"z": 1}, "gave no 'y', which is in its schema"),
        ("python row", "Int64", lambda given: 3, "gave a int, not a dictionary"),
        ("pandas", "Int64", lambda given: {"y": [1, 2]}, "gave a dict, not a data frame"),
        ("pandas", "Int64", lambda given: given.assign(y=[1.0, 2.5]), "gave 2.5 for 'y', which is of type Int64"),
        ("pandas", "Int64", lambda given: given.assign(y="a"), "gave 'a' for 'y', which is of type Int64"),
        ("pandas", "Int64", lambda given: given.assign(y=1).head(1), "gave 1 values of 'y' for 2 rows"),
    ],
)
def test_what_a_function_gives_is_looked_at(mode, dtype, function, problem) -> None:
    with pytest.raises(SystemFault, match=r"The on-demand feature view 'v'") as caught:
        compute([view_of(function, mode, dtype)], {"x": np.array([1.0, np.nan])}, 2)
    assert problem in caught.value.message


def test_what_a_function_is_given() -> None:
    seen: list = []
    compute([view_of(lambda given: seen.append(given) or {"y": given["x"]})], {"x": np.array([1.0, np.nan])}, 2)
    assert seen == [{"x": [1, None]}]
    assert isinstance(seen[0]["x"][0], int)
    column = np.array([1.0, np.nan])

    def change(given: pd.DataFrame) -> pd.DataFrame:
        given["x"] += 1
        return given.assign(y=given["x"])

    assert compute([view_of(change, "pandas")], {"x": column}, 2)["y"][0] == 2.0
    assert column[0] == 1.0  # others are computed from it too


def test_values_have_one_form() -> None:
    assert canonical(pd.Series([1, None], dtype="Int64"), "Int64")[0] == 1.0
    assert canonical(pd.Series([True, None], dtype="boolean"), "Bool")[0] == 1.0
    assert canonical(pd.Series([0.1]), "Float32")[0] == np.float64(np.float32(0.1))
    moments = ["2020-01-01T10:00:00", at("10:00"), None, pd.Timestamp("2020-01-01T11:00:00+01:00")]
    assert canonical(moments, "UnixTimestamp").tolist() == [at("10:00"), at("10:00"), None, at("10:00")]
    assert canonical(pd.Series(pd.to_datetime(["2020-01-01T10:00"])), "UnixTimestamp").tolist() == [at("10:00")]
    for values, dtype in [([1 + 2j], "Float64"), ([10**400], "Int64"), (["x"], "UnixTimestamp"), ([1], "String")]:
        with pytest.raises(ValueError, match="^" + re.escape(repr(values[0])) + "$"):
            canonical(values, dtype)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mode": "substrait"}, "it is of mode 'substrait'; allowed: pandas, python"),
        ({"aggregations": [1]}, "it aggregates rows"),
        ({"enabled": False}, "it is disabled"),
        ({"dtype": "Array(Float64)"}, "'amount', which it is computed from, is of type Array(Float64)"),
        ({"given": "UnixTimestamp"}, "'y' is of type UnixTimestamp"),
    ],
)
def test_views_that_cannot_be_computed_are_refused(settings: Settings, changes: dict, problem: str) -> None:
    field = SimpleNamespace(name="amount", dtype=changes.pop("dtype", "Float64"))
    projection = SimpleNamespace(
        name="v", name_alias=None, features=[SimpleNamespace(name="y", dtype=changes.pop("given", "Float64"))]
    )
    plain = {"name": "v", "mode": "python", "singleton": False, "aggregations": [], "enabled": True}
    sources = {"order": SimpleNamespace(schema=[field])}
    view = SimpleNamespace(**(plain | changes), source_request_sources=sources, source_feature_view_projections={})
    with pytest.raises(InvalidRequest) as caught:
        on_demand_view(view, projection, {}, service="s", full=False, settings=settings)
    assert problem in caught.value.message

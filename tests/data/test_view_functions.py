"""Batch and stream views with a function: they are read, and nothing that the registry holds of them is run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from factory.data.feature_store import apply, open_store
from factory.data.features import catalogue, join, materialize
from factory.errors import InvalidRequest
from factory.settings import Settings
from tests.data.on_demand_repository import DEFINITIONS, at, make_repository, refuse_functions, write

pytestmark = pytest.mark.filterwarnings("ignore:.*feature views are experimental:RuntimeWarning")

WITH_FUNCTIONS = (
    DEFINITIONS
    + """
from feast import BatchFeatureView, PushSource, StreamFeatureView

def halved(inputs):
    return inputs.assign(limit=inputs["limit"] / 2)

TEXT = "def halved(inputs):\\n    return inputs.assign(limit=inputs['limit'] / 2)\\n"
common = dict(
    entities=[site], ttl=timedelta(days=30), schema=[Field(name="limit", dtype=Float64)], mode="pandas",
    udf=halved, udf_string=TEXT, online=True,
)
batch = BatchFeatureView(name="batch", source=limits.batch_source, **common)
stream = StreamFeatureView(
    name="stream", source=PushSource(name="push", batch_source=limits.batch_source), timestamp_field="at", **common
)
halves_v1 = FeatureService(name="halves_v1", features=[batch, stream.with_name("streamed")], owner="me")
"""
)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store with such views; what would run their functions is an error."""

    made = make_repository(tmp_path)
    refuse_functions(monkeypatch)
    write(made, WITH_FUNCTIONS)
    return made


def test_views_are_read_without_their_functions(settings: Settings) -> None:
    assert "halves_v1" in {service.name for service in catalogue(settings)}
    changed = {name for change in apply(settings).changes for name in change.properties}
    assert changed <= {"batch_source", "stream_source"}  # whose moments of creation Feast compares
    rows = pd.DataFrame({"site": ["a"], "t": [at("12:00")]})
    joined = join(rows, timestamp="t", feature_service="halves_v1", settings=settings)
    assert joined.frame.notna().all(axis=None)


def test_what_is_stored_of_a_view_stays_when_it_is_written_back(settings: Settings) -> None:
    registry = open_store(settings).registry
    for read, name in ((registry.get_feature_view, "batch"), (registry.get_stream_feature_view, "stream")):
        view = read(name, "sensors")
        spec = view.to_proto().spec
        registry.apply_feature_view(view, "sensors")
        again = read(name, "sensors").to_proto().spec
        assert again == spec
        assert again.feature_transformation.user_defined_function.body_text.startswith("def halved")


def test_they_are_filled_by_feast_itself(settings: Settings) -> None:
    done = materialize(settings, until=at("12:00"))
    assert {view.view: view.foreign for view in done} == {"batch": True, "limits": False, "readings": False}
    with pytest.raises(InvalidRequest, match="'batch' come through a function") as raised:
        materialize(settings, until=at("12:00"), views=("batch", "limits"))
    assert "feast materialize" in raised.value.hint

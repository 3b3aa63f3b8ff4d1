"""A feature repository with on-demand views of each mode, for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dill
import pandas as pd
import pytest

from factory.data.feature_store import apply
from factory.data.features import materialize
from factory.settings import Settings

DEFINITIONS = """
from datetime import timedelta
from pathlib import Path
import numpy as np
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int64, String

DATA = Path(__file__).resolve().parent / "data"
site = Entity(name="site", join_keys=["site"], value_type=ValueType.STRING)

def source(name):
    return FileSource(name=name, path=str(DATA / f"{name}.parquet"), timestamp_field="at")

readings = FeatureView(
    name="readings", entities=[site], ttl=timedelta(hours=2), source=source("readings"),
    schema=[
        Field(name="level", dtype=Float32), Field(name="mode", dtype=String), Field(name="alarm", dtype=Bool),
        Field(name="pumps", dtype=Int64),
    ],
)
limits = FeatureView(
    name="limits", entities=[site], ttl=timedelta(days=30), source=source("limits"),
    schema=[Field(name="limit", dtype=Float64)],
)
order = RequestSource(name="order", schema=[Field(name="amount", dtype=Float64)])

@on_demand_feature_view(
    sources=[readings[["level", "alarm"]], limits, order],
    schema=[Field(name="load", dtype=Float64), Field(name="over", dtype=Bool)],
)
def load(inputs: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame()
    out["load"] = (inputs["level"] * inputs["amount"] + inputs["readings__alarm"]) / inputs["limits__limit"]
    out["over"] = inputs["level"] > inputs["limit"]
    return out

@on_demand_feature_view(
    sources=[readings], schema=[Field(name="said", dtype=String), Field(name="each", dtype=Int64)], mode="python",
)
def told(inputs):
    said = [f"{mode}{pumps}" if mode and pumps is not None else None
            for mode, pumps in zip(inputs["mode"], inputs["pumps"])]
    return {"said": said, "each": [None if p is None else p * 2 for p in inputs["pumps"]]}

@on_demand_feature_view(
    sources=[limits, order], schema=[Field(name="left", dtype=Float64)], mode="python", singleton=True,
)
def left(inputs):
    known = inputs["limit"] is not None and inputs["amount"] is not None
    return {"left": inputs["limit"] - inputs["amount"] if known else None}

load_v1 = FeatureService(name="load_v1", features=[readings[["level", "mode"]], load, told, left], owner="me")
plain_v1 = FeatureService(name="plain_v1", features=[readings], owner="me")
"""

STORE = """
project: sensors
provider: local
entity_key_serialization_version: 3
offline_store: {type: duckdb}
online_store: {type: sqlite, path: data/online.db}
registry: {registry_type: sql, path: "sqlite:///data/registry.db", cache_ttl_seconds: 0}
"""

READINGS = [
    ("a", "10:00", 1.1, "x", True, 3),
    ("a", "11:00", 2.7, "y", False, 4),
    ("b", "11:00", None, None, None, None),
    ("c", "10:15", 5.3, "z", True, 1),
    ("d", "11:30", 0.1, "w", True, 0),
]
LIMITS = [("a", "08:00", 4.5), ("c", "08:00", 2.25), ("d", "09:00", 0.3)]


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2020-01-01T{clock}").replace(tzinfo=UTC)


def make_repository(folder: Path, definitions: str = DEFINITIONS) -> Settings:
    """Write the repository with its data, apply it, and fill the online store up to noon."""
    repository = folder / "repository"
    (repository / "data").mkdir(parents=True)
    (repository / "feature_store.yaml").write_text(STORE)
    readings = pd.DataFrame(READINGS, columns=["site", "at", "level", "mode", "alarm", "pumps"])
    readings = readings.astype({"level": "float32", "alarm": "boolean", "pumps": "Int64"})
    limits = pd.DataFrame(LIMITS, columns=["site", "at", "limit"])
    for name, frame in {"readings": readings, "limits": limits}.items():
        frame["at"] = pd.Series([at(clock) for clock in frame["at"]]).astype("datetime64[us, UTC]")
        frame.to_parquet(repository / "data" / f"{name}.parquet", index=False)
    settings = Settings(home=folder / "home", feature_repo=repository)
    write(settings, definitions)
    materialize(settings, until=at("12:00"))
    return settings


def refuse_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to read a function of the registry, from its pickle or from its text."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("what the registry holds was run")

    monkeypatch.setattr(dill, "loads", refuse)
    for module in ("udf_rehydrate.resolve_udf", "udf_rehydrate.rehydrate_udf_from_source"):
        monkeypatch.setattr(f"feast.transformation.{module}", refuse)


def write(settings: Settings, definitions: str, *, applied: bool = True) -> None:
    """Replace the definitions of the repository."""
    assert settings.feature_repo is not None
    (settings.feature_repo / "features.py").write_text(definitions)
    if applied:
        apply(settings)

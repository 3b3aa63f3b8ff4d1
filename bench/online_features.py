"""What twenty features from Redis add to one row over HTTP: the same variant asked by its columns, and by an entity.

The feature store is a repository of its own with a thousand entities, its
online store a Redis that is started here.  wrk calls the predictor, one client.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from bench.claim import bare_parser
from bench.factory_run import newest, run
from bench.record import WORK, save
from bench.served import Target, measured, one_row, predictor
from factory.data.feature_store import apply
from factory.data.features import materialize
from factory.settings import Settings
from tests.topics.brokers import redis

FOLDER = WORK / "online_features"
N_FEATURES, N_ENTITIES = 20, 1_000
FEATURES = tuple(f"f{i}" for i in range(N_FEATURES))
MOST_MS = 3.0
SECONDS = 15
ENTITY, AT = "customer", "event_timestamp"

COLUMNS = {
    "system": "asked by",
    "good_a_second": "answers a second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "failed": "failed",
    "adds_ms": "p50 more, ms",
    "met": "met",
}
NOTE = (
    f"wrk, one client, one row, {SECONDS} s each after a warm-up; a small LightGBM model on {N_FEATURES} numbers of "
    f"{N_ENTITIES:,} entities, Feast's Redis store on this machine. Met: the features add at most {MOST_MS:g} ms to "
    "the median, and no call fails."
)

_STORE = """
project: bench
provider: local
entity_key_serialization_version: 3
offline_store: {{type: duckdb}}
online_store: {{type: redis, connection_string: "127.0.0.1:{port}"}}
registry: {{registry_type: sql, path: "sqlite:///data/registry.db", cache_ttl_seconds: 0}}
"""
_VIEWS = """
from datetime import timedelta
from pathlib import Path
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

path = str(Path(__file__).resolve().parent / "data" / "customers.parquet")
customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.INT64)
source = FileSource(name="customers", path=path, timestamp_field="event_timestamp")
view = FeatureView(
    name="customers", entities=[customer], ttl=timedelta(days=3650), source=source,
    schema=[Field(name=f"f{i}", dtype=Float64) for i in range(20)],
)
customer_v1 = FeatureService(name="customer_v1", features=[view])
"""


def main() -> int:
    """Measure both; return 1 where the features take longer than they may."""
    chosen = bare_parser(__doc__, quick="two seconds each").parse_args()
    seconds = 2 if chosen.quick else SECONDS
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with redis(FOLDER) as address:
        port = urlsplit(address).port or 0
        repository, home = FOLDER / "repository", FOLDER / "home"
        values = make(repository, home, port=port)
        with predictor(FOLDER / "predictor", home=home, feature_repo=repository) as (_, url, token):
            rows = [
                {**row, "met": not row["failed"]}
                for asked, target in targets(url, token, values).items()
                for row in measured(asked, target, FOLDER, clients=(1,), seconds=seconds)
            ]
    adds = rows[1]["p50_ms"] - rows[0]["p50_ms"]
    rows[1] |= {"adds_ms": round(adds, 2), "met": bool(adds <= MOST_MS and not rows[1]["failed"])}
    save("online_features", rows, columns=COLUMNS, note=NOTE, documented=len(sys.argv) == 1)
    return 0 if all(row["met"] for row in rows) else 1


def targets(url: str, token: str, values: Sequence[float]) -> dict[str, Target]:
    """Return the calls by ``columns`` and by ``entity``, whose answers are the same."""
    call = one_row(url, token)
    records = {"dataframe_records": [dict(zip(FEATURES, values, strict=True))]}
    bodies = {"columns": records, "entity": {"entities": [{ENTITY: 7}]}}
    return {asked: replace(call, body=json.dumps(body).encode()) for asked, body in bodies.items()}


def make(repository: Path, home: Path, *, port: int) -> list[float]:
    """Make a feature repository, fill its online store, train ``bench.served`` on it; return one entity's features."""
    (repository / "data").mkdir(parents=True)
    (repository / "feature_store.yaml").write_text(_STORE.format(port=port))
    (repository / "features.py").write_text(_VIEWS)
    random = np.random.default_rng(0)
    values = random.normal(size=(N_ENTITIES, N_FEATURES))
    known = pd.DataFrame(values, columns=list(FEATURES))
    known[ENTITY], known[AT] = np.arange(N_ENTITIES), pd.Timestamp("2026-01-01", tz="UTC")
    known.to_parquet(repository / "data" / "customers.parquet", index=False)
    settings = Settings(home=home, feature_repo=repository)
    apply(settings)
    materialize(settings, until=datetime.now(UTC))
    asked = pd.DataFrame({ENTITY: np.arange(N_ENTITIES), AT: pd.Timestamp("2026-02-01", tz="UTC")})
    asked["y"] = values[:, :5].sum(axis=1) + random.normal(size=N_ENTITIES)
    asked.to_parquet(repository / "entities.parquet", index=False)
    document = {
        "name": "served",
        "recipe": "tabular-fast",
        "dataset": {
            "entities": str(repository / "entities.parquet"),
            "timestamp": AT,
            "feature_service": "customer_v1",
            "target": "y",
            "task": "regression",
        },
        "families": ["lightgbm"],
        "spaces": {"lightgbm": {"learning_rate": 0.3, "num_leaves": 8}},
        "budget": {"time_s": 60, "trials": 1},
    }
    variables = {"FACTORY_FEATURE_REPO": str(repository)}
    run(document, folder=repository / "making", home=home, timeout_s=300, variables=variables)
    came = newest(home)
    if came is None or not came.variants:
        raise SystemExit((repository / "making" / "run.log").read_text())
    return [float(value) for value in values[7]]


if __name__ == "__main__":
    sys.exit(main())

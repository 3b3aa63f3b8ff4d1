"""A variant in the words of MLflow: its lineage as tags, its scores and curves as metrics.

Only the names and limits of MLflow are known here; :mod:`factory.variants.registry`
talks to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from factory.spec import CurvePoint, Variant

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

TAG = "factory."
"""Prefix of our tags in MLflow."""
ONCE = TAG + "once"
"""Tag that no two versions share."""
BATCH = 1000
"""MLflow's limit of metrics in one call."""
_LINEAGE = (
    "request_id", "segment", "state", "kind", "task", "metric", "score", "score_low", "score_high", "recipe",
    "recipe_digest", "dataset_digest", "bundle_digest", "feature_service", "feature_service_digest", "parent", "seed",
    "seeded_by", "trials_to_parity", "cost_s", "size_mb", "latency_ms",
)  # fmt: skip
_CURVE_POINTS = 60
"""Points of a learning curve that go to MLflow; each is a row of its database."""
_PARAMETERS, _PARAMETER_CHARACTERS = 100, 6000
"""MLflow's limits of parameters in one call, and of one's length."""


def once(variant: Variant) -> str:
    """Return what tells one making of a variant from all others; a digest, since a filter cannot hold quotes."""
    return hashlib.sha256(
        json.dumps([variant.request_id, variant.segment, variant.bundle_digest]).encode()
    ).hexdigest()[:32]


def lineage(variant: Variant) -> dict[str, str]:
    """Return a variant's lineage as tags; what it does not have is left out."""
    fields = variant.model_dump(mode="json", include=set(_LINEAGE))
    fields["seeded_by"] = ",".join(variant.seeded_by)
    given = {TAG + key: str(value) for key, value in fields.items() if value not in (None, "")}
    return {**given, ONCE: once(variant)}


def completed(variant: Variant, made: Any, *, artifacts: str) -> Variant:
    """Return a variant with what MLflow's model version says of it, and where its files are."""
    number = int(made.version)
    return variant.model_copy(
        update={
            "version": number,
            "model_uri": f"models:/{variant.name}/{number}",
            "artifacts": artifacts,
            "created": datetime.fromtimestamp(made.creation_timestamp / 1000, tz=UTC),
        }
    )


def as_metrics(
    metrics: Mapping[str, float], curves: Mapping[str, Sequence[CurvePoint]], *, model_id: str
) -> Iterator[Metric]:
    """Yield the scores, which belong to the model, and thinned learning curves; what is not finite is left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for name, value in metrics.items():
        if math.isfinite(value):
            yield Metric(_key(name), value, now, 0, model_id=model_id)
    for key, value, step in _curve_points(curves):
        yield Metric(key, value, now, step)


def as_parameters(parameters: Mapping[str, object]) -> list[Param]:
    """Return parameters as MLflow takes them."""
    from mlflow.entities import Param

    return [Param(_key(key), str(value)[:_PARAMETER_CHARACTERS]) for key, value in parameters.items()][:_PARAMETERS]


def _curve_points(curves: Mapping[str, Sequence[CurvePoint]]) -> Iterator[tuple[str, float, int]]:
    for name, curve in curves.items():
        step = max(1, math.ceil(len(curve) / _CURVE_POINTS))
        for point in [*curve[:-1:step], *curve[-1:]]:
            for side, value in (("train", point.train), ("validation", point.validation)):
                if value is not None and math.isfinite(value):
                    yield _key(f"curve/{name}/{side}"), value, point.step


def _key(name: str) -> str:
    """Keep what MLflow allows in a metric's or parameter's name."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]

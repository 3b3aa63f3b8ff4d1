"""Requests that are quoted, and those that were made before, as quotes find them in the ledger."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import update

from factory.data.dataset import from_frame
from factory.data.traits import traits_of
from factory.ledger import Ledger, schema
from factory.operate.quotes import Quote, Rates, quote
from factory.search.plan import check_request
from factory.settings import Settings
from factory.spec import FileDataset, RequestState, Trial, Variant, VariantRequest

RATES = Rates(cpu_hour=0.1, gpu_hour=3.0, gb_hour=0.01, currency="EUR")


def frame(n_rows: int = 400, *, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, n_rows),
            "income": rng.normal(40, 9, n_rows),
            "city": rng.choice(["Bern", "Genf"], n_rows),
            "churned": rng.choice(["no", "yes"], n_rows),
        }
    )


def document(table: Path | str, **fields: Any) -> dict[str, Any]:
    base = {"team": "growth", "name": "churn", "recipe": "tabular-auto"}
    return base | {"dataset": {"path": str(table), "target": "churned"}, "budget": {"time_s": 60}} | fields


def made(
    ledger: Ledger,
    request: dict[str, Any],
    *,
    took_s: float,
    rows: pd.DataFrame | None = None,
    score: float = 0.8,
    fold_s: float = 1.0,
    version: int = 1,
    attempts: int = 1,
    start_s: float | None = None,
) -> str:
    """Put a request that was made into the ledger, as the pipeline leaves it; return its id."""
    order = VariantRequest.model_validate(request)
    rows = frame() if rows is None else rows
    dataset = from_frame(rows, FileDataset(path="t.parquet", target=order.dataset.target))
    regression = dataset.task == "regression"
    metric = "neg_root_mean_squared_error" if regression else "roc_auc"
    record = ledger.create_request(order)
    for _ in range(attempts):
        ledger.claim(record.id).release()
    start = None if start_s is None else {"start_s": start_s}
    ledger.reach(record.id, RequestState.PREPARING, "Reading.", payload=start)
    ledger.record_traits(record.id, traits_of(dataset).model_copy(update={"metric": metric, "constant_score": 0.5}))
    for number in range(4):
        trial = Trial(number=number, family="lightgbm", parameters={}, state="succeeded", score=score or 0.5)
        ledger.record_trial(
            record.id, trial.model_copy(update={"folds": (0,), "fold_scores": (score or 0.5,)} | {"cost_s": fold_s})
        )
    half = abs(score) * 0.01
    ledger.record_variant(
        Variant(
            name=order.variant,
            version=version,
            request_id=record.id,
            task=dataset.task,
            metric=metric,
            score=score,
            score_low=score - half,
            score_high=score + half,
            recipe="tabular-auto",
            recipe_digest="a" * 64,
            dataset_digest="b" * 64,
            bundle_digest="c" * 64,
            cost_s=4 * fold_s,
            blend={0: 0.5, 1: 0.5},
        )
    )
    ledger.reach(record.id, RequestState.REGISTERED, "Registered.")
    at = schema.events.c
    began = next(e.time for e in ledger.events(record.id) if e.state is RequestState.PREPARING)
    with ledger._write() as connection:  # the clock is not waited for
        ended = (at.request_id == record.id) & (at.state == "registered")
        connection.execute(update(schema.events).where(ended).values(time=began + timedelta(seconds=took_s)))
    return record.id


def quoted(request: dict[str, Any], ledger: Ledger, home: Settings, **more: Any) -> Quote:
    order, recipe = check_request(request, settings=home)
    return quote(order, recipe, ledger=ledger, settings=home, **({"rates": RATES, "cpus": 2} | more))

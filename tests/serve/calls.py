"""What tests of the predictor call it with, and what its answers look like."""

from __future__ import annotations

from typing import Any

import pandas as pd

from factory.variants.bundle import Bundle

CHURN = "/variants/growth.churn/invocations"
ROW = {"age": 41, "income": 52_000.5, "city": "Bern", "member": True, "since": "2021-03-04"}
INFER = "/v2/models/growth.spend/infer"


def expected(bundle: Bundle, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    frame = pd.DataFrame(rows)
    return bundle.predict({name: frame[name].to_numpy(dtype=object) for name in frame}).to_dict("records")


def one(path: str = CHURN, **change: Any) -> dict[str, Any]:
    return {"url": path, "json": {"dataframe_records": [ROW | change]}}

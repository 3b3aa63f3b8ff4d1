"""What tests of the predictor call it with, and what its answers look like."""

from __future__ import annotations

from typing import Any

import httpx
import pandas as pd

from factory.variants.bundle import Bundle

CHURN = "/variants/growth.churn/invocations"
ROW = {"age": 41, "income": 52_000.5, "city": "Bern", "member": True, "since": "2021-03-04"}
INFER = "/v2/models/growth.spend/infer"


def expected(bundle: Bundle, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    frame = pd.DataFrame(rows)
    return bundle.predict({name: frame[name].to_numpy(dtype=object) for name in frame}).to_dict("records")


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check the one error shape and return what is in it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "hint", "details"}
    assert error["message"]
    assert error["hint"]
    assert all(set(detail) == {"field", "message"} for detail in error["details"])
    return error


def one(path: str = CHURN, **change: Any) -> dict[str, Any]:
    return {"url": path, "json": {"dataframe_records": [ROW | change]}}

"""What portal and predictor have in common in what they answer."""

from __future__ import annotations

from typing import Any

import httpx


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

"""docs/serving.md names every route and every code that the predictor can answer with."""

from __future__ import annotations

from pathlib import Path

from factory.errors import FactoryError, Preempted, TrainingFault, UserFault
from serve.errors import STATUS, PreconditionFailed
from serve.handlers import ROUTES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_route_is_documented():
    for method, pattern, _ in ROUTES:
        assert f"`{method} /{'/'.join(pattern)}`" in PAGE


def test_every_code_is_documented_with_its_status():
    not_answered = {FactoryError, UserFault, TrainingFault, Preempted}
    portals = {PreconditionFailed}
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line[2:5].isdigit()]
    for kind, status in STATUS.items():
        if kind not in not_answered | portals:
            assert any(row.startswith(f"| {status} |") and f"`{kind.code}`" in row for row in rows), kind.code

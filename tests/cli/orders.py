"""A request that commands submit, and how what they say is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .conftest import Answer, factory

ORDER: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
    "families": ["linear"],
    "budget": {"time_s": 4, "trials": 1},
}


def done(answer: Answer, code: int = 0) -> Answer:
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    return answer


def refused(answer: Answer, *parts: str, code: int = 2) -> None:
    assert [part for part in parts if part not in done(answer, code).said] == [], answer.err


def write_order(path: str, **changes: Any) -> Path:
    Path(path).write_text(yaml.safe_dump(ORDER | changes))
    return Path(path)


def both(*words: str | Path) -> tuple[Answer, Answer]:
    """Return what a command says over HTTP, and on the ledger of the home."""
    return factory(*words), factory(*words, "--local")

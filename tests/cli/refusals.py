"""What a command says that refuses something, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory.ledger import Ledger, RequestRecord
from factory.settings import Settings
from factory.spec import RequestState

from .conftest import Answer

REQUEST: dict[str, Any] = {
    "team": "growth",
    "name": "churn",
    "recipe": "tabular-fast",
    "dataset": {"path": "customers.csv", "target": "left"},
}


def refused(answer: Answer, *parts: str, code: int = 2) -> None:
    """One error and one hint, with all parts in it, and no traceback."""
    assert answer.code == code, answer.err
    assert [part for part in parts if part not in answer.said] == [], answer.err
    starts = [line.partition(": ")[0] for line in answer.err.splitlines()]
    assert (starts.count("Error"), starts.count("Hint")) == (1, 1)
    assert "Traceback" not in answer.err
    assert answer.out.count("\n") <= 1, "no more than the line with the request's id"


def requests(home: Path) -> list[RequestRecord]:
    if not (home / "ledger.db").exists():
        return []
    with Ledger.open(Settings(home=home).ledger) as ledger:
        assert ledger.variants() == []
        assert ledger.deployments() == []
        return ledger.requests(limit=1000)


def nothing_registered(home: Path) -> None:
    """MLflow was not even opened, and what was stored ended as failed by the user's fault."""
    assert not (home / "mlflow.db").exists()
    assert not (home / "artifacts").exists()
    for record in requests(home):
        assert (record.state, record.fault) == (RequestState.FAILED, "user")
        assert record.driver is None

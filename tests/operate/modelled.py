"""What the model of the controller works with, and what has to hold of it at any moment."""

from __future__ import annotations

import atexit
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from factory.ledger import Attempt, Ledger, RequestRecord
from factory.operate.admission import Capacity
from factory.operate.attending import FAULTS
from factory.spec import Actor, VariantRequest

CAPACITY = Capacity(cpus=3, gpus=1, memory_gb=16)
MOST_OF_FREE = 3
ANN = Actor(who="ann@example.com")


@cache
def template() -> Path:
    path = Path(mkdtemp(prefix="factory-model-")) / "ledger.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    Ledger.open(f"sqlite:///{path}").close()
    return path


def document(team: str, *, gpus: int = 0, priority: str = "normal") -> VariantRequest:
    return VariantRequest.model_validate(
        {
            "team": team,
            "name": "churn",
            "recipe": "tabular-auto",
            "dataset": {"path": "customers.parquet", "target": "churned"},
            "budget": {"time_s": 200, "memory_gb": 4},
            "resources": {"workers": 1, "gpus_per_worker": gpus},
            "priority": priority,
        }
    )


def no_more_is_held_than_there_is(open_: Sequence[Attempt]) -> None:
    assert max(Counter(attempt.request_id for attempt in open_).values(), default=0) <= 1
    for kind in ("cpus", "gpus", "memory_gb"):
        assert sum(getattr(attempt, kind) or 0.0 for attempt in open_) <= getattr(CAPACITY, kind) + 1e-6, kind
    assert sum(attempt.team == "free" for attempt in open_) <= MOST_OF_FREE


def faults_are_whose_they_are(record: RequestRecord, attempts: list[Attempt]) -> None:
    """What a user can mend is not tried again; what is ours is, until it has failed three times in a row."""
    outcomes = [attempt.outcome for attempt in attempts]
    assert not set(outcomes[:-1]) & {"done", "user_fault", "timed_out", "cancelled"}, outcomes
    in_a_row = 0
    for outcome in outcomes:
        in_a_row = in_a_row + 1 if outcome in ("system_fault", "lost") else in_a_row * (outcome == "preempted")
        assert in_a_row <= FAULTS, outcomes
    if record.fault == "system":
        assert record.error is not None
        hung = record.error.message.startswith("The job did not end")
        assert hung or in_a_row >= FAULTS - (None in outcomes), outcomes

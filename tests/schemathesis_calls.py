"""Lets Schemathesis call what a schema documents, and says in words what it complains of."""

from __future__ import annotations

from typing import Any

from schemathesis import engine
from schemathesis.engine import events


def complaints_of(schema: Any) -> tuple[set[str], list[str]]:
    """Call everything; return the operations that were called, and each complaint once."""
    labels: set[str] = set()
    n_cases = 0
    complaints: dict[str, str] = {}
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            n_cases += len(event.recorder.cases)
            labels |= {node.value.operation.label for node in event.recorder.cases.values()}
            for case_id, checks in event.recorder.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        key = f"{event.recorder.label}: {check.name}: {failure.title}"
                        said = event.recorder.interactions[case_id].response
                        body = "" if said is None else said.content[:400].decode("utf-8", "replace")
                        complaints.setdefault(
                            key, f"{key}\n{failure.message}\n{check.failure_info.code_sample}\n{body}"
                        )
        elif isinstance(event, events.NonFatalError):
            complaints.setdefault(event.label, f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    print(f"{n_cases:,} calls of {len(labels)} operations")
    return labels, list(complaints.values())

"""MLflow's aliases against the ledger's, which decide: one that was moved by hand is reported, not followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from factory.errors import Detail


def differences(ledger: Mapping[str, Mapping[Any, int]], mirrored: Callable[[str], Mapping[str, int]]) -> list[Detail]:
    """Compare the ledger's aliases with their mirror.

    Args:
        ledger: Version by alias, by variant name.
        mirrored: Returns those that MLflow has of a name.
    """
    found = []
    for name, expected in ledger.items():
        there = mirrored(name)
        for alias in sorted({*expected, *there}):
            if expected.get(alias) != there.get(alias):
                message = f"The ledger says {_said(expected.get(alias))}, MLflow says {_said(there.get(alias))}."
                found.append(Detail(f"{name}@{alias}", message))
    return found


def _said(version: int | None) -> str:
    return f"version {version}" if version is not None else "no version"

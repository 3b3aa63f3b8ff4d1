"""Durable state: requests, events, trial history, variants, aliases, deployments.

:class:`Ledger` is the whole interface.  SQLite (WAL) is the embedded default.
"""

from factory.ledger.claims import Claim
from factory.ledger.records import (
    AliasChange,
    Deployment,
    Driver,
    ErrorRecord,
    Event,
    PastSearch,
    RequestRecord,
)
from factory.ledger.store import Ledger

__all__ = [
    "AliasChange",
    "Claim",
    "Deployment",
    "Driver",
    "ErrorRecord",
    "Event",
    "Ledger",
    "PastSearch",
    "RequestRecord",
]

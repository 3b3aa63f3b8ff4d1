"""The first token of a ledger, shown once."""

from __future__ import annotations

from factory.ledger import Ledger
from factory.spec import Actor


def first_token(ledger: Ledger, *, by: str) -> str | None:
    """Return an operator's token where the ledger has no token at all.

    Args:
        ledger: The state.
        by: The command that makes it, for the audit log.
    """
    issued = ledger.bootstrap_token(by=Actor(who=by))
    return issued.secret if issued is not None else None

"""Who speaks to the portal of the tests of commands."""

from __future__ import annotations

from factory.ledger import Ledger
from factory.spec import Actor, Scope

OPERATOR = Actor(who="operator")


def secret(ledger: Ledger, *scopes: Scope, team: str | None) -> str:
    return ledger.issue_token("tests", team=team, scopes=scopes, by=OPERATOR).secret

"""Sessions of browsers: what they open is looked up at each call, and their secrets are stored nowhere."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from factory.errors import InvalidRequest, NotFound
from factory.ledger import AuditQuery, Ledger, Refusal, SignedIn, schema
from factory.ledger.moments import now
from factory.spec import Actor, Grant

from .conftest import ANN

BOB = Actor(who="person:oidc|7", origin="10.0.0.8")


@pytest.fixture(autouse=True)
def teams(ledger: Ledger) -> None:
    for name in ("growth", "shop"):
        ledger.create_team(name, by=ANN)


def soon() -> datetime:
    return now() + timedelta(hours=1)


def opened(ledger: Ledger, secret: str) -> SignedIn:
    found = ledger.authenticate_session(secret)
    assert isinstance(found, SignedIn), found
    return found


def test_a_person_may_what_the_ledger_says_now(ledger: Ledger) -> None:
    ledger.add_member("growth", "oidc|7", scopes=["read", "submit"], by=ANN)
    secret = ledger.start_session("oidc|7", email="bob@example.com", expires=soon(), by=BOB).secret
    who = opened(ledger, secret).principal
    assert (who.name, who.team, who.scopes) == ("person:oidc|7", "growth", {"read", "submit"})
    ledger.add_member("growth", "oidc|7", scopes=["read"], by=ANN)
    assert opened(ledger, secret).principal.scopes == {"read"}
    ledger.remove_member("growth", "oidc|7", by=ANN)
    assert ledger.authenticate_session(secret) is Refusal.NO_TEAM
    ledger.add_member("shop", "oidc|7", scopes=["deploy"], by=ANN)
    assert opened(ledger, secret).principal.team == "shop"
    ledger.archive_team("shop", by=ANN)
    assert ledger.authenticate_session(secret) is Refusal.NO_TEAM


def test_a_person_of_several_teams_acts_for_one_of_them(ledger: Ledger) -> None:
    for team, scope in (("growth", "read"), ("shop", "admin")):
        ledger.add_member(team, "oidc|7", scopes=[scope], by=ANN)
    secret = ledger.start_session("oidc|7", expires=soon(), by=BOB).secret
    found = opened(ledger, secret)
    assert (found.principal.team, found.places) == ("growth", {"growth": ("read",), "shop": ("admin",)})
    ledger.switch_session(secret, "shop")
    assert (opened(ledger, secret).principal.team, opened(ledger, secret).principal.may("deploy")) == ("shop", True)
    for team in ("*", "nobody"):
        with pytest.raises(NotFound, match="for this session"):
            ledger.switch_session(secret, team)
    ledger.remove_member("shop", "oidc|7", by=ANN)
    assert opened(ledger, secret).principal.team == "growth"


def test_groups_give_teams_and_all_teams(ledger: Ledger) -> None:
    grants = [Grant(team=None, scopes=("admin",)), Grant(team="shop", scopes=("read",))]
    secret = ledger.start_session("oidc|7", grants=grants, expires=soon(), by=BOB).secret
    assert (opened(ledger, secret).principal.team, opened(ledger, secret).principal.may("publish")) == (None, True)
    ledger.switch_session(secret, "shop")
    assert opened(ledger, secret).principal.scopes == {"read"}


def test_an_unknown_person_gets_no_session(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="is in no team"):
        ledger.start_session("oidc|8", expires=soon(), by=BOB)
    with pytest.raises(NotFound, match="in no team"):
        ledger.start_session("oidc|8", grants=[Grant(team="gone", scopes=("read",))], expires=soon(), by=BOB)
    with ledger._read() as connection:
        assert connection.execute(select(schema.sessions)).all() == []


def test_sessions_end_by_themselves_and_are_taken_away(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.add_member("growth", "oidc|7", scopes=["read"], by=ANN)
    secret = ledger.start_session("oidc|7", expires=soon(), by=BOB).secret
    later = now() + timedelta(hours=2)
    monkeypatch.setattr("factory.ledger.moments.clock", lambda: later)
    assert ledger.authenticate_session(secret) is Refusal.NO_SESSION
    ledger.start_session("oidc|7", expires=later + timedelta(hours=1), by=BOB)
    with ledger._read() as connection:
        assert len(connection.execute(select(schema.sessions)).all()) == 1
    with pytest.raises(InvalidRequest, match="expires"):
        ledger.start_session("oidc|7", expires=later, by=BOB)


def test_signing_out_here_or_everywhere(ledger: Ledger) -> None:
    ledger.add_member("growth", "oidc|7", scopes=["read"], by=ANN)
    ledger.add_member("growth", "oidc|8", scopes=["read"], by=ANN)
    first, second, third = (ledger.start_session("oidc|7", expires=soon(), by=BOB).secret for _ in range(3))
    other = ledger.start_session("oidc|8", expires=soon(), by=BOB).secret
    assert ledger.end_session(first, by=BOB) == 1
    assert ledger.end_session(first, by=BOB) == 0
    assert isinstance(ledger.authenticate_session(second), SignedIn)
    assert ledger.end_session(second, everywhere=True, by=BOB) == 2
    assert ledger.authenticate_session(third) is Refusal.NO_SESSION
    assert ledger.end_sessions_of("oidc|8", by=ANN) == 1
    assert ledger.authenticate_session(other) is Refusal.NO_SESSION
    actions = [row.action for row in ledger.audit_page(AuditQuery(subject="oidc|7"), sort="id").items]
    assert actions == ["member.add", *["session.start"] * 3, *["session.end"] * 2]


def test_a_token_given_once_opens_as_long_as_it_is_good(ledger: Ledger) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read", "deploy"], by=ANN)
    secret = ledger.start_token_session(issued.record.id, expires=soon(), by=ANN).secret
    found = opened(ledger, secret)
    assert found.principal == ledger.authenticate(issued.secret)
    assert found.places == {"growth": ("read", "deploy")}
    ledger.revoke_token(issued.record.id, by=ANN)
    assert ledger.authenticate_session(secret) is Refusal.REVOKED


def test_the_secret_is_stored_nowhere(ledger: Ledger) -> None:
    ledger.add_member("growth", "oidc|7", scopes=["read"], by=ANN)
    started = ledger.start_session("oidc|7", expires=soon(), by=BOB)
    assert started.secret not in repr(started)
    with ledger._read() as connection:
        rows = [str(row) for table in schema.metadata.sorted_tables for row in connection.execute(select(table))]
    assert [row for row in rows if started.secret in row or started.secret.removeprefix("mvs_") in row] == []


@pytest.mark.parametrize("secret", ["", "mvs_", "mvs_x", "mvf_x", "mvs_" + "x" * 500, "mvs_ä"])
def test_what_is_no_session_opens_nothing(secret: str, ledger: Ledger) -> None:
    assert ledger.authenticate_session(secret) is Refusal.NO_SESSION

"""Teams, people and tokens: who may do what; secrets are shown once and stored nowhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text, update

from factory.errors import Conflict, InvalidRequest, NotFound, StorageFault
from factory.ledger import AuditQuery, Ledger, Refusal, schema
from factory.ledger.moments import now
from factory.spec import Actor, Principal, Quota

from .conftest import ANN, file_of, make_order


@pytest.fixture(autouse=True)
def team(ledger: Ledger) -> str:
    return ledger.create_team("growth", title="Growth", quota=Quota(cpus=4, weight=2), by=ANN).name


def actions(ledger: Ledger, subject: str) -> list[str]:
    return [row.action for row in ledger.audit_page(AuditQuery(subject=subject), sort="id").items]


# --- teams -------------------------------------------------------------------


def test_team_is_stored_with_its_quota(ledger: Ledger) -> None:
    team = ledger.team("growth")
    assert (team.title, team.quota, team.archived_at) == ("Growth", Quota(cpus=4, weight=2), None)
    assert ledger.create_team("shop", by=ANN).title == "shop"
    assert [t.name for t in ledger.teams()] == ["growth", "shop"]
    assert actions(ledger, "growth") == ["team.create"]


def test_team_of_a_taken_or_odd_name_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Conflict, match="growth"):
        ledger.create_team("growth", by=ANN)
    for name in ("", "Growth", "a b", "a" * 64, "../x", "growth\n"):
        with pytest.raises(InvalidRequest, match="name"):
            ledger.create_team(name, by=ANN)
    with pytest.raises(InvalidRequest, match="title"):
        ledger.create_team("shop", title="x" * 256, by=ANN)
    assert len(ledger.teams()) == 1


def test_unknown_team_names_the_nearest(ledger: Ledger) -> None:
    for act in (
        lambda: ledger.team("grwoth"),
        lambda: ledger.change_team("grwoth", title="x", by=ANN),
        lambda: ledger.members("grwoth"),
        lambda: ledger.add_member("grwoth", "ann", scopes=["read"], by=ANN),
        lambda: ledger.issue_token("ci", team="grwoth", scopes=["read"], by=ANN),
    ):
        with pytest.raises(NotFound, match="Did you mean 'growth'"):
            act()


def test_change_is_made_on_what_the_caller_knows(ledger: Ledger) -> None:
    known = ledger.team("growth")
    changed = ledger.change_team("growth", quota=Quota(gpus=1), if_digest=known.digest, by=ANN)
    assert changed == ledger.team("growth")
    assert (changed.title, changed.quota) == ("Growth", Quota(gpus=1))
    with pytest.raises(Conflict, match="meanwhile"):
        ledger.change_team("growth", title="Other", if_digest=known.digest, by=ANN)
    assert ledger.team("growth") == changed
    [row] = ledger.audit_page(AuditQuery(action="team.change")).items
    assert (row.detail["quota"]["gpus"], row.detail["before"]["cpus"]) == (1, 4)


def test_archived_team_takes_nothing_new(ledger: Ledger) -> None:
    secret = ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN).secret
    assert ledger.archive_team("growth", by=ANN).archived_at is not None
    assert ledger.teams() == []
    assert [t.name for t in ledger.teams(archived=True)] == ["growth"]
    assert ledger.authenticate(secret) is Refusal.ARCHIVED
    for act in (
        lambda: ledger.archive_team("growth", by=ANN),
        lambda: ledger.change_team("growth", title="x", by=ANN),
        lambda: ledger.add_member("growth", "ann", scopes=["read"], by=ANN),
        lambda: ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN),
    ):
        with pytest.raises(Conflict, match="archived"):
            act()


def test_person_may_be_in_several_teams(ledger: Ledger) -> None:
    ledger.create_team("shop", by=ANN)
    ledger.add_member("growth", "oidc|7", email="bob@example.com", scopes=["submit", "read"], by=ANN)
    member = ledger.add_member("shop", "oidc|7", scopes=["admin"], by=ANN)
    assert [(m.team, m.scopes) for m in ledger.memberships("oidc|7")] == [
        ("growth", ("read", "submit")),
        ("shop", ("admin",)),
    ]
    assert ledger.members("shop") == [member]
    ledger.add_member("growth", "oidc|7", email="bob@example.org", scopes=["read"], by=ANN)
    assert [(m.email, m.scopes) for m in ledger.members("growth")] == [("bob@example.org", ("read",))]
    ledger.remove_member("growth", "oidc|7", by=ANN)
    with pytest.raises(NotFound, match="not in team growth"):
        ledger.remove_member("growth", "oidc|7", by=ANN)
    ledger.archive_team("shop", by=ANN)
    assert ledger.memberships("oidc|7") == []
    assert actions(ledger, "oidc|7") == ["member.add"] * 3 + ["member.remove"]


@pytest.mark.parametrize("scopes", [[], ["reed"], ["read", "root"]])
def test_scopes_that_do_not_exist_are_refused(ledger: Ledger, scopes: list[str]) -> None:
    for act in (
        lambda: ledger.add_member("growth", "ann", scopes=scopes, by=ANN),
        lambda: ledger.issue_token("ci", team="growth", scopes=scopes, by=ANN),
    ):
        with pytest.raises(InvalidRequest, match="scopes") as caught:
            act()
        assert "read, predict, submit, deploy, publish, admin" in caught.value.hint


# --- tokens ------------------------------------------------------------------


def test_token_opens_what_it_was_made_for(ledger: Ledger) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["submit", "read"], by=ANN)
    assert issued.secret.startswith("mvf_")
    assert len(issued.secret) == 47
    who = ledger.authenticate(issued.secret)
    assert who == Principal(
        name=f"token:ci/{issued.record.id}",
        team="growth",
        scopes=frozenset({"read", "submit"}),
        token_id=issued.record.id,
    )
    assert who.may("submit")
    assert not who.may("deploy")
    assert ledger.token(issued.record.id).created_by == ANN.who
    assert actions(ledger, issued.record.id) == ["token.issue"]


def test_secret_is_stored_and_shown_nowhere(ledger: Ledger, url: str) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)
    rotated = ledger.rotate_token(issued.record.id, by=ANN)
    ledger.authenticate(rotated.secret)
    secrets = [token.secret.removeprefix("mvf_") for token in (issued, rotated)]
    assert not any(secret in repr((issued, rotated)) for secret in secrets)
    if url.startswith("sqlite"):
        stored = b"".join(path.read_bytes() for path in file_of(url).parent.iterdir())
        assert b"growth" in stored
    else:
        with ledger._read() as connection:
            rows = [connection.execute(select(table)).all() for table in schema.metadata.sorted_tables]
        stored = repr(rows).encode()
        assert b"growth" in stored
    assert not any(secret.encode() in stored for secret in secrets)


def test_what_is_no_token_is_unknown(ledger: Ledger) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)
    with ledger._read() as connection:
        digest = connection.scalar(select(schema.tokens.c.digest))
    for odd in ("", "mvf_", "mvf_" + "x" * 43, issued.secret[:-1], issued.secret + "x", "mvf_" + "x" * 10**6, "mvf_ü",
                "mvf_\x00", issued.record.id, digest, f"mvf_{digest}", issued.secret.upper()):  # fmt: skip
        assert ledger.authenticate(odd) is Refusal.UNKNOWN


def test_revoked_token_is_refused_at_once_everywhere(ledger: Ledger, url: str) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)
    with Ledger.open(url) as elsewhere:
        assert isinstance(elsewhere.authenticate(issued.secret), Principal)
        record = ledger.revoke_token(issued.record.id, by=ANN)
        assert elsewhere.authenticate(issued.secret) is Refusal.REVOKED
    assert record.revoked_at is not None
    with pytest.raises(Conflict, match="revoked"):
        ledger.revoke_token(issued.record.id, by=ANN)
    assert ledger.tokens(team="growth") == []
    assert ledger.tokens(team="growth", revoked=True) == [ledger.token(issued.record.id)]
    assert actions(ledger, issued.record.id) == ["token.issue", "token.revoke"]


def test_rotation_gives_the_same_rights_and_ends_the_old_one(ledger: Ledger) -> None:
    expires = now() + timedelta(days=30)
    old = ledger.issue_token("ci", team="growth", scopes=["read", "submit"], expires=expires, by=ANN)
    new = ledger.rotate_token(old.record.id, by=Actor(who="bob"))
    assert ledger.authenticate(old.secret) is Refusal.REVOKED
    who = ledger.authenticate(new.secret)
    assert isinstance(who, Principal)
    assert (who.team, who.scopes) == ("growth", {"read", "submit"})
    assert ledger.token(old.record.id).rotated_to == new.record.id
    assert new.record.expires is not None
    assert new.record.expires - new.record.created == pytest.approx(timedelta(days=30), abs=timedelta(seconds=1))
    with pytest.raises(Conflict, match="revoked"):
        ledger.rotate_token(old.record.id, by=ANN)
    assert actions(ledger, old.record.id) == ["token.issue", "token.rotate"]


def test_token_expires(ledger: Ledger) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read"], expires=now() + timedelta(hours=1), by=ANN)
    assert isinstance(ledger.authenticate(issued.secret), Principal)
    with ledger._write() as connection:
        connection.execute(update(schema.tokens).values(expires=now() - timedelta(milliseconds=1)))
    assert ledger.authenticate(issued.secret) is Refusal.EXPIRED
    for expires in (now() - timedelta(seconds=1), datetime(2030, 1, 1)):
        with pytest.raises(InvalidRequest, match="expires"):
            ledger.issue_token("ci", team="growth", scopes=["read"], expires=expires, by=ANN)
    assert datetime(2030, 1, 1, tzinfo=UTC) > now()


def test_last_use_is_noted_once_a_minute(ledger: Ledger) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)
    token_id = issued.record.id
    assert ledger.token(token_id).last_used is None
    ledger.authenticate(issued.secret)
    first = ledger.token(token_id).last_used
    assert first is not None
    ledger.authenticate(issued.secret)
    assert ledger.token(token_id).last_used == first
    for ago in (timedelta(minutes=2), -timedelta(minutes=2)):  # the second after the clock was set back
        with ledger._write() as connection:
            connection.execute(update(schema.tokens).values(last_used=first - ago))
        ledger.authenticate(issued.secret)
        used = ledger.token(token_id).last_used
        assert used is not None
        assert used >= first


def test_use_that_cannot_be_noted_keeps_nobody_out(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)

    def full() -> None:
        raise StorageFault("The disk is full.")

    monkeypatch.setattr(ledger, "_write", full)
    assert isinstance(ledger.authenticate(issued.secret), Principal)


def test_jobs_token_knows_its_request(ledger: Ledger) -> None:
    request_id = ledger.create_request(make_order()).id
    issued = ledger.issue_token("job", team="growth", scopes=["read"], request_id=request_id, by=ANN)
    who = ledger.authenticate(issued.secret)
    assert isinstance(who, Principal)
    assert who.request_id == request_id
    with pytest.raises(NotFound, match="no request"):
        ledger.issue_token("job", team="growth", scopes=["read"], request_id="none", by=ANN)


def test_first_token_is_made_once(ledger: Ledger) -> None:
    first = ledger.bootstrap_token(by=ANN)
    assert first is not None
    who = ledger.authenticate(first.secret)
    assert isinstance(who, Principal)
    assert who.team is None
    assert who.may("publish")
    assert ledger.bootstrap_token(by=ANN) is None
    ledger.revoke_token(first.record.id, by=ANN)
    assert ledger.bootstrap_token(by=ANN) is None


def test_unknown_tokens_are_not_found(ledger: Ledger) -> None:
    for act in (ledger.token, lambda i: ledger.revoke_token(i, by=ANN), lambda i: ledger.rotate_token(i, by=ANN)):
        with pytest.raises(NotFound, match="no token 't-none'"):
            act("t-none")


def test_texts_are_bounded(ledger: Ledger) -> None:
    for act in (
        lambda: ledger.issue_token("x" * 65, team="growth", scopes=["read"], by=ANN),
        lambda: ledger.issue_token("line\nbreak", team="growth", scopes=["read"], by=ANN),
        lambda: ledger.add_member("growth", "s" * 256, scopes=["read"], by=ANN),
        lambda: ledger.add_member("growth", "s", email="e" * 256, scopes=["read"], by=ANN),
        lambda: ledger.record_audit("a" * 65, "subject", by=ANN),
        lambda: ledger.record_audit("action", "s" * 256, by=ANN),
    ):
        with pytest.raises(InvalidRequest, match="characters"):
            act()


def test_digests_are_unique_in_the_database_itself(ledger: Ledger) -> None:
    ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)
    with ledger._read() as connection:
        row = connection.execute(select(schema.tokens)).one()._asdict()
    with pytest.raises(Conflict), ledger._write() as connection:
        connection.execute(insert(schema.tokens).values(row | {"id": "t-other"}))
    with ledger._read() as connection:
        assert connection.execute(text("SELECT count(*) FROM tokens")).scalar() == 1

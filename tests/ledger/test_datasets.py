"""Uploads and shares: each team has its own, and sees what others let it see."""

from __future__ import annotations

import pytest

from factory.errors import InvalidRequest, NotFound
from factory.ledger import AuditQuery, Ledger, Upload, UploadQuery
from factory.ledger.moments import now

from .conftest import ANN, make_order, make_variant

DIGEST = "a" * 64


@pytest.fixture(autouse=True)
def teams(ledger: Ledger) -> None:
    for team in ("growth", "risk", "shop"):
        ledger.create_team(team, by=ANN)


def uploaded(team: str = "growth", digest: str = DIGEST, **fields: object) -> Upload:
    given = {"digest": digest, "team": team, "name": "customers.csv", "kind": "csv", "bytes": 5 * 2**32, "rows": 2**33}
    return Upload.model_validate(given | {"columns": ("age", "ü"), "created": now(), "created_by": ANN.who} | fields)


def digests(ledger: Ledger, team: str, *, shared: bool = True) -> list[tuple[str, str]]:
    return [(u.digest[0], u.team) for u in ledger.upload_page(UploadQuery(team=team, shared=shared)).items]


def test_upload_is_kept_as_it_came(ledger: Ledger) -> None:
    upload = ledger.record_upload(uploaded(), by=ANN)
    assert ledger.upload(DIGEST, "growth") == upload == uploaded(created=upload.created)
    assert ledger.record_upload(uploaded(name="again.csv"), by=ANN) == upload
    [row] = ledger.audit_page(AuditQuery(action="dataset.upload")).items
    assert (row.subject, row.team, row.detail["bytes"]) == (DIGEST, "growth", 5 * 2**32)


def test_same_file_is_each_teams_own(ledger: Ledger) -> None:
    for team in ("growth", "risk"):
        ledger.record_upload(uploaded(team), by=ANN)
    assert ledger.upload_teams(DIGEST) == ["growth", "risk"]
    ledger.forget_upload(DIGEST, "growth", by=ANN)
    assert ledger.upload_teams(DIGEST) == ["risk"]
    for act in (ledger.upload, lambda *key: ledger.forget_upload(*key, by=ANN)):
        with pytest.raises(NotFound, match="Team growth has no dataset"):
            act(DIGEST, "growth")
    assert ledger.upload(DIGEST, "risk").team == "risk"


def test_upload_of_an_unknown_team_is_refused(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="no team 'grwoth'"):
        ledger.record_upload(uploaded("grwoth"), by=ANN)


@pytest.mark.parametrize("fields", [{"digest": "A" * 64}, {"digest": "../x"}, {"bytes": -1}, {"name": "n" * 256}])
def test_odd_uploads_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        uploaded(**fields)


def test_shared_dataset_is_seen_by_whom_it_was_shared_with(ledger: Ledger) -> None:
    ledger.record_upload(uploaded(), by=ANN)
    ledger.record_upload(uploaded("risk"), by=ANN)
    ledger.record_upload(uploaded("risk", "b" * 64), by=ANN)
    assert digests(ledger, "shop") == []
    share = ledger.share("dataset", DIGEST, team="growth", with_team="shop", by=ANN)
    assert ledger.share("dataset", DIGEST, team="growth", with_team="shop", by=ANN) == share
    ledger.share("dataset", "b" * 64, team="risk", with_team="*", by=ANN)
    assert digests(ledger, "shop") == [("b", "risk"), ("a", "growth")]
    assert digests(ledger, "shop", shared=False) == []
    assert ledger.may_see("dataset", DIGEST, "shop")
    assert ledger.shares("dataset", DIGEST) == [share] == ledger.shares("dataset", DIGEST, team="growth")
    ledger.unshare("dataset", DIGEST, team="growth", with_team="shop", by=ANN)
    ledger.unshare("dataset", DIGEST, team="growth", with_team="shop", by=ANN)
    assert digests(ledger, "shop") == [("b", "risk")]
    assert not ledger.may_see("dataset", DIGEST, "shop")
    assert len(ledger.audit_page(AuditQuery(action="unshare")).items) == 1


def test_forgotten_dataset_is_shared_no_more(ledger: Ledger) -> None:
    ledger.record_upload(uploaded(), by=ANN)
    ledger.share("dataset", DIGEST, team="growth", with_team="*", by=ANN)
    ledger.forget_upload(DIGEST, "growth", by=ANN)
    ledger.record_upload(uploaded(), by=ANN)
    assert digests(ledger, "shop") == ledger.shares("dataset", DIGEST) == []


def test_only_its_owner_shares_a_thing(ledger: Ledger) -> None:
    request_id = ledger.create_request(make_order()).id
    ledger.record_variant(make_variant(request_id))
    ledger.record_upload(uploaded(), by=ANN)
    for kind, subject in (("request", request_id), ("variant", "growth.churn"), ("dataset", DIGEST)):
        assert ledger.may_see(kind, subject, "growth")
        assert not ledger.may_see(kind, subject, "risk")
        with pytest.raises(NotFound, match=f"Team risk has no {kind}"):
            ledger.share(kind, subject, team="risk", with_team="risk", by=ANN)
        with pytest.raises(NotFound, match="no team 'nobody'"):
            ledger.share(kind, subject, team="growth", with_team="nobody", by=ANN)
        with pytest.raises(InvalidRequest, match="has it already"):
            ledger.share(kind, subject, team="growth", with_team="growth", by=ANN)
        ledger.share(kind, subject, team="growth", with_team="risk", by=ANN)
        assert ledger.may_see(kind, subject, "risk")
        assert not ledger.may_see(kind, subject, "shop")
        assert not ledger.may_see(kind, subject + "x", "growth")


def test_shared_variant_is_read_by_the_other_team(ledger: Ledger) -> None:
    variant = ledger.record_variant(make_variant(ledger.create_request(make_order()).id))
    with pytest.raises(NotFound) as foreign:
        ledger.variant("growth.churn", 1, seen_by="risk")
    assert "growth.churn" not in str(foreign.value).replace("'growth.churn'", "")
    ledger.share("variant", "growth.churn", team="growth", with_team="risk", by=ANN)
    assert ledger.variant("growth.churn", 1, seen_by="risk") == variant

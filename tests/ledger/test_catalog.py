"""Variants, the alias ledger and deployments."""

from __future__ import annotations

from itertools import pairwise

import pytest

from factory.errors import Conflict, InvalidRequest, NotFound
from factory.ledger import AuditQuery, Ledger
from factory.ledger.serving import served_digest
from factory.spec import Actor, DeploymentWish, VariantRequest

from .conftest import make_variant

NAME = "growth.churn"
ANN = Actor(who="person:ann")


@pytest.fixture
def request_id(ledger: Ledger, order: VariantRequest) -> str:
    request_id = ledger.create_request(order).id
    for version in (1, 2):
        ledger.record_variant(make_variant(request_id, version))
    return request_id


def test_variant_is_stored_once_and_never_changes(ledger: Ledger, request_id: str) -> None:
    stored = ledger.variant(NAME, 1)
    assert stored.created is not None
    assert stored.created.tzinfo is not None
    assert ledger.record_variant(make_variant(request_id)) == stored
    with pytest.raises(Conflict, match="another score, size_mb"):
        ledger.record_variant(make_variant(request_id).model_copy(update={"score": 0.9, "size_mb": 3.0}))
    assert ledger.variant(NAME, 1) == stored


def test_variants_are_listed_by_name_and_request(ledger: Ledger, request_id: str, order: VariantRequest) -> None:
    other = ledger.create_request(order).id
    ledger.record_variant(make_variant(other, name="growth.basket"))
    assert [(v.name, v.version) for v in ledger.variants()] == [("growth.basket", 1), (NAME, 1), (NAME, 2)]
    assert [v.version for v in ledger.variants(NAME)] == [1, 2]
    assert [v.name for v in ledger.variants(request_id=other)] == ["growth.basket"]
    assert ledger.variants("growth.none") == []


def test_unknown_variant_names_what_there_is(ledger: Ledger, request_id: str) -> None:
    with pytest.raises(NotFound, match="no version 9") as caught:
        ledger.variant(NAME, 9)
    assert "1, 2" in caught.value.hint
    with pytest.raises(NotFound, match=r"Did you mean 'growth\.churn'"):
        ledger.variant("growth.chrun", 1)
    with pytest.raises(NotFound, match="no request"):
        ledger.record_variant(make_variant("nobody", 3))


def test_alias_ledger_is_append_only_and_the_newest_row_counts(ledger: Ledger, request_id: str) -> None:
    assert ledger.alias(NAME, "champion") is None
    ledger.set_alias(NAME, "champion", 1, who="gate", why="first", evidence={"p": 0.01, "low": float("nan")})
    ledger.set_alias(NAME, "challenger", 2, who="ann", why="look")
    ledger.set_alias(NAME, "champion", 2, who="gate", why="better")
    assert ledger.alias(NAME, "champion") == 2
    ledger.set_alias(NAME, "champion", 1, who="ann", why="rollback")
    assert (ledger.alias(NAME, "champion"), ledger.alias(NAME, "challenger")) == (1, 2)
    ledger.set_alias(NAME, "champion", None, who="ann", why="withdrawn")
    assert ledger.alias(NAME, "champion") is None
    history = ledger.alias_history(NAME)
    assert [(c.alias, c.version) for c in history if c.alias == "champion"] == [
        ("champion", 1),
        ("champion", 2),
        ("champion", 1),
        ("champion", None),
    ]
    assert history[0].evidence == {"p": 0.01, "low": "NaN"}
    assert all(c.time.tzinfo is not None for c in history)


def test_alias_set_again_adds_no_row(ledger: Ledger, request_id: str) -> None:
    first = ledger.set_alias(NAME, "champion", 1, who="gate", why="first")
    assert ledger.set_alias(NAME, "champion", 1, who="gate", why="resumed") == first
    assert ledger.alias_history(NAME) == [first]


def test_aliases_of_many_names_are_read_at_once(ledger: Ledger, request_id: str) -> None:
    for version in (1, 2):
        ledger.set_alias(NAME, "champion", version, who="gate", why="better")
    ledger.set_alias(NAME, "challenger", 1, who="gate", why="better")
    assert ledger.aliases([NAME, "growth.none"]) == {NAME: {"champion": 2, "challenger": 1}, "growth.none": {}}
    ledger.set_alias(NAME, "challenger", None, who="ann", why="withdrawn")
    assert ledger.aliases({NAME}) == {NAME: {"champion": 2}}
    assert ledger.aliases([]) == {}


def test_alias_needs_a_known_name_and_version(ledger: Ledger, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'champion'"):
        ledger.set_alias(NAME, "chamption", 1, who="a", why="b")
    with pytest.raises(NotFound, match="no version 7"):
        ledger.set_alias(NAME, "champion", 7, who="a", why="b")
    with pytest.raises(NotFound, match="to remove"):
        ledger.set_alias(NAME, "champion", None, who="a", why="b")
    assert ledger.alias_history(NAME) == []


def test_champion_and_canary_are_served_side_by_side(ledger: Ledger, request_id: str) -> None:
    champion = ledger.set_deployment(NAME, DeploymentWish(as_="champion"), version=1)
    canary = ledger.set_deployment(NAME, DeploymentWish(as_="canary", percent=5), version=2)
    assert ledger.deployment(NAME) == ledger.deployments() == [champion, canary]
    assert canary is not None
    assert (canary.percent, canary.version, canary.as_) == (5, 2, "canary")
    ledger.set_deployment(NAME, DeploymentWish(as_="champion"), version=2)
    assert {d.as_: d.version for d in ledger.deployment(NAME)} == {"champion": 2, "canary": 2}


def test_a_deployment_is_changed_only_as_it_was_seen(ledger: Ledger, request_id: str) -> None:
    seen = served_digest(ledger.deployment(NAME))
    ledger.set_deployment(NAME, DeploymentWish(as_="champion"), version=1, if_digest=seen)
    with pytest.raises(Conflict, match="was changed meanwhile") as conflict:
        ledger.set_deployment(NAME, DeploymentWish(as_="champion"), version=2, if_digest=seen)
    assert [detail.field for detail in conflict.value.details] == ["if_digest"]
    assert [d.version for d in ledger.deployment(NAME)] == [1]


def test_wish_none_takes_the_version_out_of_traffic(ledger: Ledger, request_id: str) -> None:
    ledger.set_deployment(NAME, DeploymentWish(as_="champion"), version=1)
    ledger.set_deployment(NAME, DeploymentWish(as_="shadow"), version=2)
    assert ledger.set_deployment(NAME, DeploymentWish(as_="none"), version=2) is None
    assert [d.as_ for d in ledger.deployment(NAME)] == ["champion"]
    ledger.set_deployment(NAME, DeploymentWish(as_="none"), version=1)
    assert ledger.deployments() == []


def test_every_change_of_how_a_name_is_served_is_kept(ledger: Ledger, request_id: str) -> None:
    first, second = ledger.variants(NAME)
    ledger.serve(first, DeploymentWish(), why="The first one.", by=ANN)
    ledger.serve(second, DeploymentWish(as_="shadow"), why="Only look.", by=ANN)
    ledger.serve(second, DeploymentWish(as_="canary", percent=5), why="A little.", by=ANN)
    since = next(one.updated for one in ledger.deployment(NAME) if one.as_ == "canary")
    evidence = {"why": "It fails.", "calls": 2, "failed": 2}
    assert ledger.withdraw_canary(NAME, 2, since, evidence=evidence, by=Actor(who="predictor"))
    ledger.serve(second, DeploymentWish(as_="none"), why="Enough.", by=ANN)
    ledger.serve(second, DeploymentWish(as_="none"), why="It is out already: no change.", by=ANN)
    found = ledger.deployment_history(NAME)
    assert [(one.version, one.as_, one.percent, one.who, one.why) for one in found[::-1]] == [
        (1, "champion", None, ANN.who, "The first one."),
        (2, "shadow", None, ANN.who, "Only look."),
        (2, "canary", 5, ANN.who, "A little."),
        (2, "none", None, "predictor", "It fails."),
        (2, "none", None, ANN.who, "Enough."),
    ]
    assert (found[1].evidence["failed"], found[0].evidence) == (2, {})
    assert found[0].time >= found[-1].time
    assert [one.version for one in ledger.deployment_history(NAME, most=2)] == [2, 2]
    assert ledger.deployment_history("growth.none") == []


def test_a_canary_that_is_withdrawn_is_challenger_no_more(ledger: Ledger, request_id: str) -> None:
    ledger.set_alias(NAME, "challenger", 2, who="request r", why="Its gate.")
    predictor, evidence = Actor(who="predictor"), {"why": "It fails.", "failed": 2}

    def withdrawn() -> int | None:
        ledger.set_deployment(NAME, DeploymentWish(as_="canary", percent=5), version=2)
        (canary,) = [one for one in ledger.deployment(NAME) if one.as_ == "canary"]
        assert ledger.withdraw_canary(NAME, 2, canary.updated, evidence=evidence, by=predictor)
        return ledger.alias(NAME, "challenger")

    assert withdrawn() is None
    last = ledger.alias_history(NAME)[-1]
    assert (last.version, last.who, last.why, last.evidence["failed"]) == (None, "predictor", "It fails.", 2)
    assert ledger.audit_page(AuditQuery(action="alias.set")).items[0].who == "predictor"
    assert withdrawn() is None, "none has to be there"
    ledger.set_alias(NAME, "challenger", 1, who="request r", why="Another one.")
    assert withdrawn() == 1
    ledger.set_alias(NAME, "challenger", 2, who="request r", why="Its gate.")
    ledger.set_deployment(NAME, DeploymentWish(as_="shadow"), version=2)
    assert withdrawn() == 2, "it is looked at as a shadow still"


def test_what_is_out_of_traffic_has_no_alias(ledger: Ledger, request_id: str) -> None:
    first, second = ledger.variants(NAME)
    ledger.serve(first, DeploymentWish(), why="First.", by=ANN)
    ledger.serve(second, DeploymentWish(as_="canary", percent=5), why="A little.", by=ANN)
    out = DeploymentWish(as_="none")
    with pytest.raises(Conflict, match=r"beside which there is canary growth\.churn/2"):
        ledger.serve(first, out, why="It leaks.", by=ANN)
    assert ledger.alias(NAME, "champion") == 1
    ledger.serve(second, out, why="Enough.", by=ANN)
    ledger.serve(second, DeploymentWish(as_="challenger"), why="By its alias.", by=ANN)
    ledger.serve(first, out, why="It leaks.", by=ANN)
    assert (ledger.alias(NAME, "champion"), ledger.alias(NAME, "challenger")) == (None, 2)
    assert [one.as_ for one in ledger.deployment(NAME)] == ["challenger"]
    last = ledger.alias_history(NAME)[-1]
    assert (last.alias, last.version, last.who, last.why) == ("champion", None, ANN.who, "It leaks.")
    ledger.serve(second, out, why="Enough.", by=ANN)
    assert ledger.alias(NAME, "challenger") is None


def test_deployment_needs_a_known_version(ledger: Ledger, request_id: str) -> None:
    with pytest.raises(NotFound, match="no version 4"):
        ledger.set_deployment(NAME, DeploymentWish(), version=4)


def test_the_mark_is_another_after_each_change_and_only_then(ledger: Ledger, request_id: str) -> None:
    changes = (
        lambda: ledger.set_alias(NAME, "champion", 1, who="ann", why="first"),
        lambda: ledger.set_alias(NAME, "champion", 2, who="ann", why="better"),
        lambda: ledger.set_alias(NAME, "champion", None, who="ann", why="neither"),
        lambda: ledger.set_deployment(NAME, DeploymentWish(as_="champion"), version=1),
        lambda: ledger.set_deployment(NAME, DeploymentWish(as_="canary", percent=5), version=2),
        lambda: ledger.set_deployment(NAME, DeploymentWish(as_="canary", percent=10), version=2),
        lambda: ledger.set_deployment(NAME, DeploymentWish(as_="none"), version=2),
        lambda: ledger.share("variant", NAME, team="growth", with_team="*", by=ANN),
        lambda: ledger.unshare("variant", NAME, team="growth", with_team="*", by=ANN),
    )
    marks = [ledger.catalogue_mark()]
    for change in changes:
        change()
        marks.append(ledger.catalogue_mark())
    assert all(before != after for before, after in pairwise(marks))
    assert ledger.catalogue_mark() == marks[-1]

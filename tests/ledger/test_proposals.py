"""Promotions that a second person decides on: who may be that person, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from factory.errors import Conflict, NotFound
from factory.ledger import AuditQuery, Ledger, Proposal, ProposalQuery
from factory.spec import Actor, DeploymentWish, Scope, Variant

from .conftest import ANN, make_order, make_variant

CHAMPION = DeploymentWish()
EVE, BOB = Actor(who="person:eve"), Actor(who="person:bob")
DEPLOY: tuple[Scope, ...] = ("read", "deploy")


@pytest.fixture
def variant(ledger: Ledger) -> Variant:
    ledger.create_team("growth", by=ANN)
    return ledger.record_variant(make_variant(ledger.create_request(make_order()).id))


@pytest.fixture
def token(ledger: Ledger, variant: Variant) -> Callable[..., Actor]:
    """Return whoever comes with a new token that somebody makes."""

    def make(by: Actor, *, team: str | None = "growth") -> Actor:
        record = ledger.issue_token("ci", team=team, scopes=DEPLOY, by=by).record
        return Actor(who=f"token:ci/{record.id}")

    return make


def approved(ledger: Ledger, variant: Variant, first: Actor, second: Actor) -> Proposal:
    proposal = ledger.propose(variant, CHAMPION, why="Better.", by=first)
    try:
        return ledger.decide(proposal.id, approve=True, why="Seen.", by=second)
    finally:
        if ledger.proposal(proposal.id).state == "open":
            ledger.decide(proposal.id, approve=False, why="Another try.", by=first)


def test_an_approval_serves_what_was_proposed(ledger: Ledger, variant: Variant) -> None:
    wish = DeploymentWish(as_="canary", percent=10)
    proposal = ledger.propose(variant, wish, why="Better.", evidence={"improvement": 0.1}, by=EVE)
    assert ledger.propose(variant, CHAMPION, why="Again.", by=BOB) == proposal
    assert (ledger.deployment(variant.name), ledger.is_released(variant.name, 1)) == ([], False)
    decided = ledger.decide(proposal.id, approve=True, why="Seen.", by=BOB)
    assert ledger.proposal(proposal.id) == decided
    assert (decided.state, decided.decided_by, decided.decided_why) == ("approved", BOB.who, "Seen.")
    assert [(d.as_, d.percent, d.version) for d in ledger.deployment(variant.name)] == [("canary", 10, 1)]
    assert ledger.is_released(variant.name, 1)
    rows = ledger.audit_page(AuditQuery(subject=variant.name), sort="id").items
    assert [row.action for row in rows] == ["promotion.propose", "deployment.set", "promotion.approve"]
    assert (rows[-1].who, rows[-1].detail["proposed_by"], rows[-1].detail["why"]) == (BOB.who, EVE.who, "Seen.")
    with pytest.raises(Conflict, match="approved already, by person:bob"):
        ledger.decide(proposal.id, approve=False, why="No.", by=BOB)


def test_a_rejection_serves_nothing_and_may_be_of_ones_own(ledger: Ledger, variant: Variant) -> None:
    first = ledger.propose(variant, CHAMPION, why="Better.", by=EVE)
    assert ledger.decide(first.id, approve=False, why="Not yet.", by=EVE).state == "rejected"
    second = ledger.propose(variant, CHAMPION, why="Now.", by=EVE)
    assert second.id != first.id
    ledger.decide(second.id, approve=False, why="No.", by=BOB)
    assert (ledger.alias(variant.name, "champion"), ledger.is_released(variant.name, 1)) == (None, False)
    assert [p.state for p in ledger.proposals(variant.name)] == ["rejected", "rejected"]


def test_nobody_approves_their_own(ledger: Ledger, variant: Variant, token: Callable[..., Actor]) -> None:
    root = Actor(who="root")
    operator = token(root, team=None)
    eves, bobs = token(operator), token(operator)
    lent, by_eve, by_bob = token(eves), token(EVE), token(BOB)
    for same in (EVE, root, operator, eves):
        with pytest.raises(Conflict, match="same hands"):
            approved(ledger, variant, same, same)
    pairs = [(eves, lent), (EVE, by_eve), (by_eve, token(EVE)), (operator, bobs), (operator, lent), (root, eves)]
    for first, second in [*pairs, *((second, first) for first, second in pairs)]:
        with pytest.raises(Conflict, match="same hands"):
            approved(ledger, variant, first, second)
    assert ledger.alias(variant.name, "champion") is None
    for first, second in [(eves, bobs), (lent, bobs), (EVE, BOB), (by_eve, by_bob), (EVE, eves), (operator, BOB)]:
        assert approved(ledger, variant, first, second).state == "approved"


def test_a_rotated_token_is_the_same_hand(ledger: Ledger, variant: Variant, token: Callable[..., Actor]) -> None:
    operator = token(ANN, team=None)
    for team in ("growth", None):
        first = now = token(operator, team=team)
        for _ in range(40):
            issued = ledger.rotate_token(now.who.rpartition("/")[2], by=now)
            now = Actor(who=f"token:ci/{issued.record.id}")
        with pytest.raises(Conflict, match="same hands"):
            approved(ledger, variant, first, now)
        with pytest.raises(Conflict, match="same hands"):
            approved(ledger, variant, now, first)


def test_of_many_at_the_same_moment_one_proposes_and_one_decides(ledger: Ledger, variant: Variant) -> None:
    def propose(n: int) -> str:
        return ledger.propose(variant, CHAMPION, why="x", by=Actor(who=f"person:{n}")).id

    def decide(n: int) -> str:
        try:
            return ledger.decide(proposal_id, approve=n % 2 == 0, why="x", by=Actor(who=f"person:d{n}")).state
        except Conflict:
            return ""

    with ThreadPoolExecutor(8) as pool:
        (proposal_id,) = set(pool.map(propose, range(8)))
        (verdict,) = filter(None, pool.map(decide, range(8)))
    assert ledger.proposal(proposal_id).state == verdict
    assert ledger.alias(variant.name, "champion") == (1 if verdict == "approved" else None)
    assert len(ledger.audit_page(AuditQuery(action="promotion.propose")).items) == 1


def test_an_emergency_is_recorded_as_one(ledger: Ledger, variant: Variant) -> None:
    proposal = ledger.propose(variant, DeploymentWish(as_="canary", percent=5), why="Better.", by=EVE)
    decided = ledger.override_approval(variant, CHAMPION, why="The old one is broken.", by=EVE)
    assert (decided.id, decided.state, decided.wish) == (proposal.id, "overridden", CHAMPION)
    assert ledger.proposal(proposal.id) == decided
    assert ledger.alias(variant.name, "champion") == 1
    assert ledger.alias_history(variant.name)[-1].why == "Override: The old one is broken."
    other = ledger.record_variant(make_variant(variant.request_id, 2))
    assert ledger.override_approval(other, CHAMPION, why="Again.", by=EVE).state == "overridden"
    rows = ledger.audit_page(AuditQuery(action="promotion.override")).items
    assert [(row.who, row.detail["version"]) for row in rows] == [(EVE.who, 2), (EVE.who, 1)]
    assert ledger.verify_audit() is None


def test_proposals_come_in_pages_and_are_a_teams_own(ledger: Ledger, variant: Variant) -> None:
    ledger.create_team("shop", by=ANN)
    theirs = make_variant(ledger.create_request(make_order(team="shop")).id, name="shop.baskets")
    other = ledger.propose(ledger.record_variant(theirs), CHAMPION, why="x", by=EVE)
    mine = [
        ledger.propose(ledger.record_variant(make_variant(variant.request_id, n)), CHAMPION, why="x", by=EVE)
        for n in range(2, 5)
    ]
    first = ledger.proposal_page(ProposalQuery(team="growth", state="open"), sort="created", limit=2)
    rest = ledger.proposal_page(ProposalQuery(team="growth", state="open"), sort="created", cursor=first.next)
    assert [*first.items, *rest.items] == mine
    assert [p.id for p in ledger.proposal_page(ProposalQuery(name="shop.baskets")).items] == [other.id]
    for act in (
        lambda: ledger.proposal(other.id, seen_by="growth"),
        lambda: ledger.proposal("p-none"),
        lambda: ledger.decide("p-none", approve=True, why="x", by=EVE),
    ):
        with pytest.raises(NotFound, match="no proposal"):
            act()


def test_a_champion_of_before_is_released(ledger: Ledger, variant: Variant) -> None:
    ledger.set_alias(variant.name, "challenger", 1, who="x", why="y")
    assert not ledger.is_released(variant.name, 1)
    ledger.set_alias(variant.name, "champion", 1, who="x", why="y")
    ledger.set_alias(variant.name, "champion", None, who="x", why="y")
    assert ledger.is_released(variant.name, 1)

"""Promotions that a second person decides on.

Who proposes and who approves must not be the same, and tokens are no people:
whoever made a token may hold it.  So everybody who had a hand in a name is
looked at (:class:`Hands`): a token, those that it replaced, and who made them.
Operators make tokens for all, so to have one in common says nothing; but they
do not approve what a token of their making proposed, nor the other way round.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import Field
from sqlalchemy import Connection, Row, insert, select, update

from factory.errors import Conflict, Detail, NotFound
from factory.ledger import schema
from factory.ledger.audit import append_audit
from factory.ledger.bounds import cleaned
from factory.ledger.catalog import alias_row, change_alias, required_variant, team_of
from factory.ledger.database import repeatable
from factory.ledger.engines import exclusive
from factory.ledger.moments import now
from factory.ledger.records import Deployment, document_json, payload_json
from factory.ledger.serving import Serving, change_deployment, take_aliases
from factory.ledger.sessions import PERSON
from factory.spec import ALIAS, Actor, DeploymentWish, Document, Variant

ProposalState = Literal["open", "approved", "rejected", "overridden"]


class Proposal(Document):
    """A version that somebody wants served to callers, and what another one said to it.

    Attributes:
        wish: How it is to be served.
        state: ``overridden`` where it was served without an approval, in an emergency.
    """

    id: str
    name: str
    version: int
    team: str
    wish: DeploymentWish
    state: ProposalState
    why: str
    evidence: dict[str, Any] = Field(default_factory=dict)
    proposed_by: str
    created: datetime
    decided_by: str | None = None
    decided_why: str | None = None
    decided_at: datetime | None = None


class Proposals(Serving):
    """The part of the ledger that knows what waits for a second person."""

    def propose(
        self,
        variant: Variant,
        wish: DeploymentWish,
        *,
        why: str,
        evidence: Mapping[str, object] | None = None,
        by: Actor,
        instead_of: int | None = None,
    ) -> Proposal:
        """Ask for a version to be served; where that is asked already, the open proposal is returned as it is.

        Args:
            variant: The version.
            wish: How it is to be served.
            why: The reason, for whoever decides.
            evidence: What its gate found.
            by: Who asks, and then cannot approve.
            instead_of: As of :meth:`serve`.

        Raises:
            Conflict: another version is champion by now.
            NotFound: there is no such version.
        """
        with self._write() as connection:
            exclusive(connection, f"proposal of {variant.name}")
            _require_champion(connection, variant, instead_of)
            required_variant(connection, variant.name, variant.version)
            if (there := _open_one(connection, variant)) is not None:
                return there
            proposal = _new(variant, wish, why=why, evidence=evidence, by=by)
            connection.execute(insert(schema.proposals), _row(proposal))
            _audit(connection, "promotion.propose", proposal, by=by)
        return proposal

    def decide(self, proposal_id: str, *, approve: bool, why: str, by: Actor) -> Proposal:
        """Approve a proposal, which serves the version as it was wished, or reject it; who proposed may only reject.

        Args:
            proposal_id: Of the proposal.
            approve: Whether it is approved.
            why: The reason, which is kept.
            by: Who decides.

        Raises:
            Conflict: it is decided already, or whoever approves had a hand in proposing it.
            NotFound: there is no such proposal.
        """
        with self._write() as connection:
            proposal = _locked(connection, proposal_id)
            same = Hands.of(connection, proposal.proposed_by).shared_with(Hands.of(connection, by.who))
            if approve and same:
                raise Conflict(
                    f"Proposal {proposal.id} was made by {proposal.proposed_by}, and its approval would be of the same "
                    f"hands ({min(same)}).",
                    hint="Another member of the team has to approve it, whose token was made by somebody else.",
                    details=[Detail("decided_by", f"{by.who} had a hand in proposing it")],
                )
            decided = _decided(connection, proposal, "approved" if approve else "rejected", why=why, by=by)
            if approve:
                _serve(connection, decided, why=f"Approved: {why}", by=by)
            _audit(connection, "promotion.approve" if approve else "promotion.reject", decided, by=by)
        return decided

    @repeatable
    def serve(
        self,
        variant: Variant,
        wish: DeploymentWish,
        *,
        why: str,
        by: Actor,
        if_digest: str | None = None,
        instead_of: int | None = None,
    ) -> Deployment | None:
        """Serve a version as it is wished, and point the alias of that name at it, both or neither.

        ``none`` takes it out of traffic, and removes the aliases that point at it.

        Args:
            variant: The version.
            wish: How it is to be served.
            why: The reason, which the alias ledger keeps.
            by: Who wants it.
            if_digest: As of :meth:`set_deployment`.
            instead_of: Version that is champion as the caller knows it, 0 for none; None where any will do.

        Raises:
            Conflict: another version is champion, the name is served otherwise by now, or a champion would be taken
                from beside a canary or a shadow.
            NotFound: there is no such version.
        """
        with self._write() as connection:
            went = False
            if wish.as_ == "none":
                went = take_aliases(connection, variant, why=why, by=by)
            elif wish.as_ in get_args(ALIAS):
                _require_champion(connection, variant, instead_of)
                change_alias(connection, variant.name, wish.as_, variant.version, who=by.who, why=why, by=by)
            return change_deployment(
                connection,
                variant.name,
                wish,
                version=variant.version,
                why=why,
                if_digest=if_digest,
                by=by,
                aliases_went=went,
            )

    def override_approval(
        self, variant: Variant, wish: DeploymentWish, *, why: str, by: Actor, instead_of: int | None = None
    ) -> Proposal:
        """Serve a version that nobody has approved, in an emergency; that is recorded as what it is.

        Args:
            variant: The version.
            wish: How it is to be served.
            why: What the emergency is.
            by: Who overrides.
            instead_of: As of :meth:`serve`.

        Raises:
            Conflict: another version is champion by now.
            NotFound: there is no such version.
        """
        with self._write() as connection:
            exclusive(connection, f"proposal of {variant.name}")
            _require_champion(connection, variant, instead_of)
            required_variant(connection, variant.name, variant.version)
            proposal = _open_one(connection, variant)
            if proposal is None:
                proposal = _new(variant, wish, why=why, evidence=None, by=by)
                connection.execute(insert(schema.proposals), _row(proposal))
            served = proposal.model_copy(update={"wish": wish})
            decided = _decided(connection, served, "overridden", why=why, by=by)
            _serve(connection, decided, why=f"Override: {why}", by=by)
            _audit(connection, "promotion.override", decided, by=by)
        return decided

    def proposal(self, proposal_id: str, *, seen_by: str | None = None) -> Proposal:
        """Return a proposal, where given only if it is of that team.

        Raises:
            NotFound: there is none.
        """
        at = schema.proposals.c
        query = select(schema.proposals).where(at.id == proposal_id)
        with self._read() as connection:
            row = connection.execute(query if seen_by is None else query.where(at.team == seen_by)).one_or_none()
        if row is None:
            raise _no_proposal(proposal_id)
        return read_proposal(row)

    def proposals(self, name: str) -> list[Proposal]:
        """Return all proposals of a variant, the oldest first."""
        at = schema.proposals.c
        query = select(schema.proposals).where(at.name == name).order_by(at.created, at.id)
        with self._read() as connection:
            return [read_proposal(row) for row in connection.execute(query)]

    def is_released(self, name: str, version: int) -> bool:
        """Return whether callers may get a version: it was approved, overridden, or champion before."""
        at, of = schema.proposals.c, schema.aliases.c
        these = at.name == name, at.version == version, at.state.in_(("approved", "overridden"))
        champion: ALIAS = "champion"
        with self._read() as connection:
            if connection.scalar(select(at.id).where(*these).limit(1)) is not None:
                return True
            past = select(of.id).where(of.name == name, of.version == version, of.alias == champion)
            return connection.scalar(past.limit(1)) is not None


@dataclass(frozen=True)
class Hands:
    """Who stands behind a name of the audit log.

    Attributes:
        acting: The name itself; of a token, also those that it replaced.
        makers: Who made them, at whatever remove.
        members: Those of both that are of a team: its tokens and its people, not operators and users of this machine.
    """

    acting: frozenset[str]
    makers: frozenset[str]
    members: frozenset[str]

    @classmethod
    def of(cls, connection: Connection, who: str) -> Hands:
        """Return the hands of a name."""
        acting, makers, members = set[str](), set[str](), set[str]()
        at = schema.tokens.c
        waiting = [(who, acting)]
        while waiting:
            name, found = waiting.pop()
            name = f"token:{name.rpartition('/')[2]}" if name.startswith("token:") else name
            if name in found:
                continue
            found.add(name)
            if name.startswith(PERSON):
                members.add(name)
            if not name.startswith("token:"):
                continue
            token_id = name.removeprefix("token:")
            row = connection.execute(select(at.team, at.created_by).where(at.id == token_id)).one_or_none()
            if row is None:
                continue
            if row.team is not None:
                members.add(name)
            replaced = connection.scalars(select(at.id).where(at.rotated_to == token_id))
            waiting += [(f"token:{other}", found) for other in replaced]
            waiting.append((row.created_by, makers))
        return cls(frozenset(acting), frozenset(makers), frozenset(members))

    def shared_with(self, other: Hands) -> frozenset[str]:
        """Return what two names have in common that makes them one: one acts for, or made, the other, or a member both.

        >>> ann, bob = (Hands(frozenset({n}), frozenset({"root"}), frozenset({n})) for n in ("token:1", "token:2"))
        >>> sorted(ann.shared_with(bob)), sorted(ann.shared_with(ann))
        ([], ['token:1'])
        """
        mine, theirs = self.acting | self.makers, other.acting | other.makers
        return (self.acting & theirs) | (other.acting & mine) | (self.members & other.members)


def read_proposal(row: Row[Any]) -> Proposal:
    """Return a row as a proposal."""
    return Proposal.model_validate(row._asdict())


def _new(
    variant: Variant, wish: DeploymentWish, *, why: str, evidence: Mapping[str, object] | None, by: Actor
) -> Proposal:
    return Proposal(
        id=f"p-{secrets.token_hex(6)}",
        name=variant.name,
        version=variant.version,
        team=team_of(variant.name),
        wish=wish,
        state="open",
        why=cleaned(why),
        evidence=payload_json(evidence),
        proposed_by=by.who,
        created=now(),
    )


def _row(proposal: Proposal) -> dict[str, Any]:
    return proposal.model_dump() | {"wish": document_json(proposal.wish)}


def _open_one(connection: Connection, variant: Variant) -> Proposal | None:
    at = schema.proposals.c
    these = at.name == variant.name, at.version == variant.version, at.state == "open"
    row = connection.execute(select(schema.proposals).where(*these).with_for_update()).one_or_none()
    return None if row is None else read_proposal(row)


def _locked(connection: Connection, proposal_id: str) -> Proposal:
    """Return an open proposal that no other process decides on until this transaction ends."""
    query = select(schema.proposals).where(schema.proposals.c.id == proposal_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _no_proposal(proposal_id)
    proposal = read_proposal(row)
    if proposal.state != "open":
        raise Conflict(
            f"Proposal {proposal.id} is {proposal.state} already, by {proposal.decided_by}: {proposal.decided_why}",
            hint="Propose the version again: factory variants promote.",
            details=[Detail("proposal", f"is {proposal.state}")],
        )
    return proposal


def _decided(connection: Connection, proposal: Proposal, state: ProposalState, *, why: str, by: Actor) -> Proposal:
    change = {"state": state, "decided_by": by.who, "decided_why": cleaned(why), "decided_at": now()}
    decided = proposal.model_copy(update=change)
    values = change | {"wish": document_json(proposal.wish)}
    connection.execute(update(schema.proposals).where(schema.proposals.c.id == proposal.id).values(values))
    return decided


def _serve(connection: Connection, proposal: Proposal, *, why: str, by: Actor) -> None:
    name, version, wish = proposal.name, proposal.version, proposal.wish
    if wish.as_ in get_args(ALIAS):
        change_alias(connection, name, wish.as_, version, who=by.who, why=why, evidence=proposal.evidence, by=by)
    change_deployment(connection, name, wish, version=version, why=why, by=by)


def _require_champion(connection: Connection, variant: Variant, instead_of: int | None) -> None:
    """Refuse to put a version in the place of one that is not champion any more, unless it is there itself by now.

    Raises:
        Conflict: who made which version champion meanwhile, and why.
    """
    if instead_of is None:
        return
    exclusive(connection, f"alias of {variant.name}")
    change = alias_row(connection, variant.name, "champion")
    present = 0 if change is None else change.version or 0
    if present in (instead_of, variant.version):
        return
    if change is None:
        told = f"{variant.name} has no champion."
    elif present:
        told = f"{change.who} has made version {present} champion of {variant.name} meanwhile: {change.why}"
    else:
        told = f"{change.who} has left {variant.name} without a champion meanwhile: {change.why}"
    raise Conflict(
        told,
        hint="Look at it; promote your version again where it should take that one's place.",
        details=[Detail("instead_of", f"version {instead_of} is not champion")],
    )


def _audit(connection: Connection, action: str, proposal: Proposal, *, by: Actor) -> None:
    detail = {
        "proposal": proposal.id,
        "version": proposal.version,
        "as": proposal.wish.as_,
        "why": proposal.decided_why or proposal.why,
        "proposed_by": proposal.proposed_by,
    }
    append_audit(connection, action, proposal.name, by=by, team=proposal.team, detail=detail)


def _no_proposal(proposal_id: str) -> NotFound:
    return NotFound(
        f"There is no proposal {proposal_id[:80]!r}.",
        hint="`factory variants proposals` lists them.",
        details=[Detail("proposal", f"{proposal_id[:80]!r} is not known")],
    )

"""Who may do what: teams with their quotas, their people and tokens, and whoever is at the door."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field

from factory.spec.document import NAME, Document

Scope = Literal["read", "predict", "submit", "deploy", "publish", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""read looks, and calls variants; predict only calls them; submit orders and cancels; deploy promotes and routes;
publish puts recipes; admin is all of these."""

PersonText = Annotated[str, Field(min_length=1, max_length=255)]


_IN_PROPORTION = "where empty, as large a part of the cluster's as of what is named."


class Quota(Document):
    """What a team may take.

    ``cpus``, ``gpus`` and ``memory_gb`` are a guaranteed share: more may be borrowed while it lies idle, and is given
    back. ``requests`` and ``trial_seconds_month`` are hard limits.
    """

    cpus: float | None = Field(None, ge=0, title="CPUs", description=f"Guaranteed CPUs; {_IN_PROPORTION}")
    gpus: float | None = Field(None, ge=0, title="GPUs", description="Guaranteed GPUs; none where empty.")
    memory_gb: float | None = Field(None, ge=0, title="Memory", description=f"Guaranteed GB; {_IN_PROPORTION}")
    requests: int | None = Field(
        None, ge=0, title="Requests at once", description="Most that run at once; no limit where empty."
    )
    trial_seconds_month: float | None = Field(
        None,
        ge=0,
        title="Trial-seconds a month",
        description="Most seconds of trials in a calendar month (UTC); no limit where empty.",
    )
    weight: float = Field(1.0, gt=0, le=1000, title="Weight", description="Share against other teams that want more.")


class Team(Document):
    """Owner of requests, datasets and variants."""

    name: str = Field(pattern=NAME, title="Name")
    title: str = Field(min_length=1, max_length=255, title="Title", description="As people read it.")
    quota: Quota = Field(default_factory=Quota, title="Quota")
    created: datetime
    archived_at: datetime | None = Field(None, description="Since when nothing new is taken from it.")


class Member(Document):
    """A person of a team, who signs in by OpenID Connect; a person may be in several teams."""

    team: str = Field(pattern=NAME)
    subject: PersonText = Field(description="The provider's id of the person, which never changes.")
    email: str = Field("", max_length=255)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    added: datetime


class Grant(Document):
    """What somebody may do in a team; in all teams where none is named."""

    team: str | None = Field(pattern=NAME)
    scopes: tuple[Scope, ...] = Field(min_length=1)


class Session(Document):
    """A browser's session, without its secret.

    Attributes:
        subject: The provider's id of whoever signed in; None where a token was given instead.
        grants: What the provider's groups gave at the sign-in, beside what the ledger says of the person.
        token_id: The token that was given.
        team: The team that it acts for; None where none was chosen.
    """

    subject: str | None = None
    email: str = ""
    grants: tuple[Grant, ...] = ()
    token_id: str | None = None
    team: str | None = None
    created: datetime
    expires: datetime


class TokenRecord(Document):
    """A token as it may be shown: everything but its secret, of which only a digest is stored.

    Attributes:
        team: Whose it is; None for operators, who see all teams.
        request_id: Of a job's own token, which is good for this request only.
        rotated_to: Id of the token that replaced it.
        variants: Pattern of the names of variants that it may call, with the scope predict; all of them if None.
    """

    id: str
    name: str
    team: str | None
    scopes: tuple[Scope, ...]
    created: datetime
    created_by: str
    expires: datetime | None = None
    last_used: datetime | None = Field(None, description="To the minute.")
    revoked_at: datetime | None = None
    rotated_to: str | None = None
    request_id: str | None = None
    variants: str | None = None


class Actor(Document):
    """Who changes something, and from where; the audit log keeps both."""

    who: PersonText
    origin: str = Field("local", min_length=1, max_length=64, description="Address of the client, or ``local``.")


class Principal(Document):
    """Whoever is at the door, as a token or a sign-in tells.

    Attributes:
        name: For the audit log, for example ``token:ci/t-0123`` or ``person:248289``.
        team: The one team whose things it sees; None sees all teams.
        token_id: Of the token it came with.
        request_id: The one request that it may act for, with a job's token.
        variants: Pattern of the names of variants that it may call; all of its team's if None.
    """

    name: PersonText
    team: str | None
    scopes: frozenset[Scope]
    token_id: str | None = None
    request_id: str | None = None
    variants: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it has a scope; ``admin`` implies all of them.

        >>> Principal(name="token:ci", team="growth", scopes={"read"}).may("deploy")
        False
        >>> Principal(name="ann", team=None, scopes={"admin"}).may("deploy")
        True
        """
        return scope in self.scopes or "admin" in self.scopes

    def sees(self, team: str) -> bool:
        """Whether a team's own things are its own.

        >>> Principal(name="token:ci", team="growth", scopes={"admin"}).sees("risk")
        False
        """
        return self.team is None or self.team == team

    def actor(self, origin: str = "local") -> Actor:
        """Return it as the one who changes something, from an address."""
        return Actor(who=self.name, origin=origin)

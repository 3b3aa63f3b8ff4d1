"""What the API takes and returns about teams: people, tokens, shares, usage, and whoever is calling."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import Field

from factory.ledger import ShareKind, Usage
from factory.operate.quotes import Holding, Rates
from factory.settings import Settings
from factory.spec import NAME, SCOPES, Document, Principal, Quota, Scope, TokenRecord
from serve.portal.documents import Listing, Moment


class NewTeam(Document):
    """A team to be."""

    name: str = Field(pattern=NAME)
    title: str = Field("", max_length=255, description="As people read it; the name where empty.")
    quota: Quota = Field(default_factory=Quota)


class TeamChange(Document):
    """What is changed of a team; what is left out stays."""

    title: str | None = Field(None, min_length=1, max_length=255)
    quota: Quota | None = Field(None, description="The whole new quota; an operator's to give.")


class Membership(Document):
    """What a person may do in a team."""

    email: str = Field("", max_length=255)
    scopes: tuple[Scope, ...] = Field(min_length=1)


class NewToken(Document):
    """A token to be."""

    name: str = Field(min_length=1, max_length=64, description="For people to know it by.")
    team: str | None = Field(None, pattern=NAME, description="Whose it is; the caller's own team where empty.")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    expires: Moment | None = Field(None, description="From when it is refused, with a time zone; never if empty.")
    all_teams: bool = Field(False, description="An operator's token, which sees all teams.")
    variants: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Pattern of the variants that it may call, as growth.churn*; with the scope predict alone.",
    )


class Rotation(Document):
    """Until when the token that replaces another one is good."""

    expires: Moment | None = Field(None, description="As long as the old one was made for if empty.")


class NewSecret(Document):
    """A token with its secret, which is shown now and never again."""

    secret: str
    token: TokenRecord


class NewShare(Document):
    """What another team is let see."""

    kind: ShareKind
    subject: str = Field(min_length=1, max_length=200, description="Digest of a dataset, name of a variant, or id.")
    team: str | None = Field(None, pattern=NAME, description="Whose it is; the token's own team where empty.")
    with_team: str = Field(pattern=r"^(\*|[a-z][a-z0-9_-]{0,62})$", description="A team, or * for every team.")


class TeamUsage(Document):
    """What a team used in a month, and what that costs at the rates of the settings."""

    month: str
    team: str
    trials: int = 0
    trial_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    gb_s: float = 0.0
    cost: float = 0.0
    currency: str

    @classmethod
    def of(cls, usage: Usage, settings: Settings) -> Self:
        """Return a team's usage with its price."""
        rates = Rates.of(settings)
        held = Holding(cpus=usage.cpu_s / 3600, gpus=usage.gpu_s / 3600, memory_gb=usage.gb_s / 3600)
        return cls(**usage.model_dump(), cost=round(held.hourly(rates), 4), currency=rates.currency)


class UsageList(Listing):
    """What teams used in a month."""

    items: tuple[TeamUsage, ...]


class VariantCost(TeamUsage):
    """What the requests for one variant used in a month, and what that costs; segments count to it."""

    variant: str
    requests: int = Field(0, description="That were worked on.")


class VariantCosts(Listing):
    """What a team's variants used in a month, the costliest first."""

    items: tuple[VariantCost, ...]


class Me(Document):
    """Whoever is calling, as its token says."""

    name: str
    team: str | None = Field(description="Null for operators, who see all teams.")
    scopes: tuple[Scope, ...]
    token_id: str | None = None
    request_id: str | None = Field(None, description="The one request that a job's token is good for.")
    variants: str | None = Field(None, description="Pattern of the variants that it may call; all if null.")
    expires: datetime | None = None

    @classmethod
    def of(cls, principal: Principal, *, expires: datetime | None) -> Self:
        """Return it of a principal."""
        scopes = tuple(scope for scope in SCOPES if scope in principal.scopes)
        return cls(**principal.model_dump(exclude={"scopes"}), scopes=scopes, expires=expires)

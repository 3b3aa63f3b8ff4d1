"""Variants: listed, shown with their cards, promoted and rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import HTMLResponse, Response

from factory.errors import Detail, NotFound
from factory.ledger import Ledger, Proposal, VariantQuery
from factory.ledger.catalog import team_of
from factory.operate.answers import ListedVariant, listed
from factory.operate.evidence import PooledSegment, gate_report, pooled_segments
from factory.operate.promotion import needs_approval, promote, roll_back
from factory.spec import ALIAS, Document, Variant
from serve.errors import Forbidden
from serve.portal.bodies import Incoming
from serve.portal.cards import POLICY, card_of, inside_of
from serve.portal.context import Here
from serve.portal.documents import Promotion, Rollback, VariantName, Variants, VersionDetail
from serve.portal.identity import Caller, Deployer, Reader
from serve.portal.openapi import ALWAYS, BODY, refusals, takes
from serve.portal.replies import page, reply
from serve.portal.routes import API
from serve.portal.trying import Predictions, Rows, tried

router = APIRouter(prefix=f"{API}/variants", tags=["variants"], responses=refusals(*ALWAYS))

Name = Annotated[str, Path(max_length=200, description="team.name, or team.name.segment.")]
Version = Annotated[int, Path(ge=1, lt=2**31)]
_CARD = {"description": "The model card.", "content": {"text/html": {"schema": {"type": "string"}}}}

_PROPOSED = {
    "model": Proposal,
    "description": "It waits for the approval of another member of the team.",
    "headers": {"Location": {"description": "The proposal.", "schema": {"type": "string"}, "required": True}},
}


class VariantFilters(Document):
    """Which versions, and in which order."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")
    shared: bool = Field(True, description="Also those that others have shared with the team.")
    name: str | None = Field(None, max_length=200, description="Versions of one variant.")
    request_id: str | None = Field(None, max_length=64, description="That one request has made.")
    state: Literal["registered", "rejected"] | None = Field(None, description="What their gate said.")
    like: str | None = Field(None, max_length=100, description="With this in their name.")
    alias: ALIAS | None = Field(None, description="That this alias points at now.")
    feature_service: str | None = Field(None, max_length=200, description="Whose features it was trained with.")
    parent: str | None = Field(None, max_length=200, description="Made from this version, as growth.churn/3.")
    dataset_digest: str | None = Field(None, max_length=64, description="Made from these data.")
    recipe: str | None = Field(None, max_length=64, description="Made by a recipe of this name.")
    sort: Literal["created", "-created", "name", "-name"] = "-created"
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200)


@router.get("", response_model=Variants, responses=refusals(404))
def list_variants(
    portal: Here, caller: Reader, request: Request, filters: Annotated[VariantFilters, Query()]
) -> Response:
    """List versions of variants: a team's own, and those that were shared with it."""
    where = VariantQuery(
        **filters.model_dump(exclude={"team", "sort", "cursor", "limit"}), team=caller.own_team(filters.team)
    )
    found = portal.ledger.variant_page(where, sort=filters.sort, cursor=filters.cursor, limit=filters.limit)
    return page(Variants(items=listed(found.items, ledger=portal.ledger), next=found.next), request, found.next)


@router.get("/{name}", response_model=VariantName, responses=refusals(404))
def show_variant(portal: Here, caller: Reader, name: Name) -> Response:
    """Show a variant: its versions, who is champion and who was, and how it is served."""
    versions = seen_versions(portal.ledger, caller, name)
    return reply(
        VariantName(
            name=name,
            team=team_of(name),
            aliases=portal.ledger.aliases([name])[name],
            versions=listed(versions, ledger=portal.ledger),
            deployments=tuple(portal.ledger.deployment(name)),
            alias_history=tuple(portal.ledger.alias_history(name)),
            pooled_segments=_left_to(versions, portal.ledger),
        )
    )


@router.get("/{name}/versions/{version}", response_model=VersionDetail, responses=refusals(404))
def show_version(portal: Here, caller: Reader, name: Name, version: Version) -> Response:
    """Show a version: its score with its interval, its lineage, what is in it, and what its gate found."""
    variant = portal.ledger.variant(name, version, seen_by=caller.team)
    (one,) = listed([variant], ledger=portal.ledger)
    columns, members = inside_of(variant, portal.settings)
    rows = None if variant.segment else portal.ledger.n_rows(variant.request_id)
    gate = gate_report(variant, ledger=portal.ledger)
    return reply(VersionDetail(**one.model_dump(), columns=columns, members=members, rows=rows, gate=gate))


@router.get(
    "/{name}/versions/{version}/report",
    response_class=HTMLResponse,
    responses=refusals(404, also={200: _CARD}),
)
def show_report(portal: Here, caller: Reader, name: Name, version: Version) -> Response:
    """Show the model card of a version, an HTML page without scripts."""
    variant = portal.ledger.variant(name, version, seen_by=caller.team)
    headers = {"content-security-policy": POLICY, "x-frame-options": "SAMEORIGIN"}
    return HTMLResponse(card_of(variant, portal.settings), headers=headers)


@router.post(
    "/{name}/versions/{version}/predictions",
    response_model=Predictions,
    responses=refusals(404, 409, 422, *BODY),
    openapi_extra=takes(Rows, {"rows": [{"age": 41, "city": "Bern"}], "explain": True}),
)
def try_version(portal: Here, caller: Reader, name: Name, version: Version, body: Incoming) -> Response:
    """Predict a few rows with a version, and explain the predictions: to try it; programs call the predictor."""
    wish = body.read(Rows, what="rows")
    variant = portal.ledger.variant(name, version, seen_by=caller.team)
    with portal.trying():
        return reply(tried(variant, wish, settings=portal.settings, token=portal.own_token))


@router.post(
    "/{name}/promote",
    response_model=ListedVariant,
    responses=refusals(404, 409, *BODY, also={202: _PROPOSED}),
    openapi_extra=takes(Promotion, {"version": 3, "why": "Better in the pilot.", "instead_of": 2}),
)
def promote_variant(portal: Here, caller: Deployer, name: Name, body: Incoming) -> Response:
    """Make a version the champion, and serve it; made again, it changes nothing.

    Where its recipe asks for a second person, it is proposed instead (202), and waits for an approval. With
    `instead_of`, of two who promote at once the second one is told what the first one did (409).
    """
    wish = body.read(Promotion, what="promotion")
    require_own_variant(portal.ledger, caller, name)
    version = portal.ledger.variant(name, wish.version)
    unapproved = needs_approval(version, ledger=portal.ledger, settings=portal.settings)
    if wish.override and unapproved and not caller.principal.may("admin"):
        raise Forbidden(
            f"{name}/{wish.version} has to be approved; to override that needs the scope 'admin'.",
            hint="Promote it without an override, and let another member of the team approve it.",
            details=[Detail("scope", "admin")],
        )
    promoted = promote(
        version,
        ledger=portal.ledger,
        settings=portal.settings,
        by=caller.actor,
        why=wish.why,
        override=wish.override,
        instead_of=wish.instead_of,
    )
    if isinstance(promoted, Proposal):
        return reply(promoted, 202, {"location": f"{API}/proposals/{promoted.id}"})
    return reply(listed([promoted], ledger=portal.ledger)[0])


@router.post(
    "/{name}/rollback",
    response_model=ListedVariant,
    responses=refusals(404, 409, *BODY),
    openapi_extra=takes(Rollback, {"why": "It answers too slowly."}),
)
def roll_back_variant(portal: Here, caller: Deployer, name: Name, body: Incoming) -> Response:
    """Make the version champion that was it before the present one."""
    wish = body.read(Rollback, what="rollback")
    require_own_variant(portal.ledger, caller, name)
    variant = roll_back(
        name,
        ledger=portal.ledger,
        settings=portal.settings,
        by=caller.actor,
        why=wish.why,
        instead_of=wish.instead_of,
    )
    return reply(listed([variant], ledger=portal.ledger)[0])


def _left_to(versions: Sequence[Variant], ledger: Ledger) -> tuple[PooledSegment, ...]:
    """Return the segments that the champion, or the newest version, answers for by its request."""
    champion = ledger.alias(versions[0].name, "champion")
    chosen = next((one for one in versions if one.version == champion), versions[-1])
    return () if chosen.segment else pooled_segments(chosen.request_id, ledger=ledger)


def seen_versions(ledger: Ledger, caller: Caller, name: str) -> list[Variant]:
    """Return the versions of a variant that a caller sees.

    Raises:
        NotFound: it sees none.
    """
    seen = caller.team is None or ledger.may_see("variant", name, caller.team)
    versions = ledger.variants(name) if seen else []
    if not versions:
        raise NotFound(
            f"There is no variant {name[:130]!r}.",
            hint="GET /api/v1/variants lists those that you see.",
            details=[Detail("name", f"{name[:130]!r} is not known")],
        )
    return versions


def require_own_variant(ledger: Ledger, caller: Caller, name: str) -> None:
    """Refuse a change of a variant that is not of the caller's team.

    Raises:
        NotFound: the caller does not see it.
        Forbidden: it was only shared with its team.
    """
    seen_versions(ledger, caller, name)
    if not caller.principal.sees(team_of(name)):
        raise Forbidden(
            f"{name} is of team {team_of(name)}, which has shared it for reading.",
            hint="Ask that team.",
            details=[Detail("team", team_of(name))],
        )

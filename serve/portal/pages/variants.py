"""Variants: the list, one with its versions, a version with its card, and what is done with them."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.errors import NotFound
from factory.ledger import AliasChange, RequestRecord
from factory.operate.answers import ListedVariant
from serve.portal.documents import Deployments, VariantName, Variants, VersionDetail
from serve.portal.pages.differences import difference
from serve.portal.pages.forms import asked_yaml, number, one, read_form
from serve.portal.pages.kit import SignedIn
from serve.portal.pages.lineage import graph
from serve.portal.routes import API
from serve.portal.routes.proposals import Proposals

router = APIRouter(include_in_schema=False)

MOST = 100
"""Versions that are shown beside each other, the newest; the list of versions has all."""
COMPARED = (
    "state", "kind", "score", "metric", "task", "recipe", "recipe_digest", "dataset_digest", "feature_service",
    "parent", "segment", "seed", "size_mb", "latency_ms", "cost_s", "bundle_digest",
)  # fmt: skip
"""Fields of a version in the order in which a comparison shows them."""


@router.get("/variants")
async def show_variants(
    visitor: SignedIn, like: str = "", state: str = "", alias: str = "", sort: str = "-created", cursor: str = ""
) -> Response:
    """Show the list of versions."""
    filters = {"like": like.strip(), "state": state, "alias": alias, "sort": sort}
    found = await visitor.api.get(f"{API}/variants", Variants, {**filters, "cursor": cursor, "limit": 50})
    return visitor.page("variants.html", items=found.items, next=found.next, filters=filters)


@router.get("/variants/{name}")
async def show_variant(visitor: SignedIn, name: str) -> Response:
    """Show a variant: its versions, who was champion when, and how it is served."""
    found, deployments, proposals = await asyncio.gather(
        visitor.api.get(f"{API}/variants/{name}", VariantName),
        visitor.api.get(f"{API}/deployments", Deployments),
        visitor.api.get(f"{API}/proposals", Proposals, {"name": name, "state": "open"}),
    )
    siblings = await visitor.api.get(
        f"{API}/variants", Variants, {"like": f"{name}.", "alias": "champion", "limit": 200}
    )
    segments = [one for one in siblings.items if one.segment]
    champion = next((v for v in found.versions if "champion" in v.aliases), None)
    return visitor.page(
        "variant.html",
        variant=found,
        versions=sorted(found.versions, key=lambda version: -version.version)[:MOST],
        n_versions=len(found.versions),
        segments=beside(segments, champion),
        pooled=champion,
        scale=None if champion is None or not segments else Scale.of([*segments, champion]),
        line=alias_line(found.alias_history),
        proposals=proposals.items,
        predictor=deployments.predictor,
        may_deploy=visitor.may_change("deploy", found.team),
    )


@router.get("/variants/{name}/versions/{version}")
async def show_version(visitor: SignedIn, name: str, version: int) -> Response:
    """Show a version: its score, its lineage, what is in it, its card, and how to call it."""
    detail = await visitor.api.get(f"{API}/variants/{name}/versions/{version}", VersionDetail)
    request, deployments, proposals, heirs, together = await asyncio.gather(
        visitor.api.find(f"{API}/requests/{detail.request_id}", RequestRecord),
        visitor.api.get(f"{API}/deployments", Deployments),
        visitor.api.get(f"{API}/proposals", Proposals, {"name": name, "state": "open"}),
        visitor.api.get(f"{API}/variants", Variants, {"parent": f"{name}/{version}", "sort": "created", "limit": 200}),
        visitor.api.get(f"{API}/variants", Variants, {"request_id": detail.request_id, "sort": "name", "limit": 200}),
    )
    segments = [one for one in together.items if one.segment and not detail.segment]
    waiting = next((one for one in proposals.items if one.version == version), None)
    return visitor.page(
        "version.html",
        version=detail,
        request=request,
        proposal=waiting,
        lineage=graph(detail, request=request, heirs=heirs.items, segments=segments, words=visitor.words),
        predictor=deployments.predictor,
        calls=calls(detail, deployments.predictor or "http://127.0.0.1:8000"),
        may_deploy=visitor.may_change("deploy", name.partition(".")[0]),
    )


@router.get("/variants/{name}/compare")
async def compare(visitor: SignedIn, name: str, a: int, b: int) -> Response:
    """Show what differs between two versions, and how sure their scores are."""
    found = await visitor.api.get(f"{API}/variants/{name}", VariantName)
    by_number = {one.version: one for one in found.versions}
    if a not in by_number or b not in by_number:
        raise NotFound(f"{name} has no versions {a} and {b}.", hint="Choose two of its versions.")
    one_, other = by_number[a], by_number[b]
    requests = await asyncio.gather(
        *(visitor.api.find(f"{API}/requests/{v.request_id}", RequestRecord) for v in (one_, other))
    )
    rows = [(field, getattr(one_, field), getattr(other, field)) for field in COMPARED]
    asked = [_asked(request) for request in requests]
    return visitor.page(
        "compare.html",
        name=name,
        a=one_,
        b=other,
        rows=sorted(rows, key=lambda row: row[1] == row[2]),
        asked=difference(*asked),
    )


@router.post("/variants/{name}/promote")
async def promote(visitor: SignedIn, request: Request, name: str) -> Response:
    """Make a version the champion, or propose it where a second person has to agree."""
    form = await read_form(request)
    version = number(one(form, "version"))
    document = {"version": version, "why": one(form, "why"), "override": one(form, "override") == "true"}
    answer = await visitor.api.send("POST", f"{API}/variants/{name}/promote", document, csrf=one(form, "csrf"))
    said = visitor.words("It waits for a second person.") if answer.status == 202 else visitor.words("It is champion.")
    return visitor.go(f"/variants/{name}/versions/{version}", said)


@router.post("/variants/{name}/rollback")
async def roll_back(visitor: SignedIn, request: Request, name: str) -> Response:
    """Make the version champion that was it before."""
    form = await read_form(request)
    answer = await visitor.api.send(
        "POST", f"{API}/variants/{name}/rollback", {"why": one(form, "why")}, csrf=one(form, "csrf")
    )
    again = answer.read(ListedVariant)
    return visitor.go(f"/variants/{name}", visitor.words("Version {n} is champion again.", n=again.version))


@router.post("/proposals/{proposal_id}/{decision}")
async def decide(visitor: SignedIn, request: Request, proposal_id: str, decision: str) -> Response:
    """Approve or reject what somebody else has proposed."""
    form = await read_form(request)
    place = f"{API}/proposals/{proposal_id}/{'approve' if decision == 'approve' else 'reject'}"
    await visitor.api.send("POST", place, {"why": one(form, "why")}, csrf=one(form, "csrf"))
    return visitor.go(one(form, "back") or "/", visitor.words("Your decision is kept."))


def _asked(record: RequestRecord | None) -> str:
    return asked_yaml(record.request) if record else ""


@dataclass(frozen=True)
class Scale:
    """A range of scores, drawn from 0 to 100."""

    low: float
    high: float

    @classmethod
    def of(cls, versions: Sequence[ListedVariant]) -> Scale:
        """Return the range that holds the intervals of some versions."""
        return cls(min(one.score_low for one in versions), max(one.score_high for one in versions))

    def __call__(self, score: float) -> float:
        """Return where a score is drawn."""
        return round(100 * (score - self.low) / (self.high - self.low or 1.0), 2)


def beside(
    segments: Sequence[ListedVariant], pooled: ListedVariant | None
) -> list[tuple[ListedVariant, Literal["weak", "strong", ""]]]:
    """Return segments from the weakest on, each with whether its interval lies below, or above, that of the pooled."""

    def against(one: ListedVariant) -> Literal["weak", "strong", ""]:
        if pooled is None or one.metric != pooled.metric:
            return ""
        return "weak" if one.score_high < pooled.score_low else "strong" if one.score_low > pooled.score_high else ""

    return [(one, against(one)) for one in sorted(segments, key=lambda version: version.score)]


def alias_line(history: Sequence[AliasChange]) -> list[dict[str, Any]]:
    """Return when which version was champion, the latest first: from, until (None: still), version, who and why."""
    spans: list[dict[str, Any]] = []
    for change in history:
        if change.alias != "champion":
            continue
        if spans and spans[-1]["until"] is None:
            spans[-1]["until"] = change.time
        if change.version is not None:
            told = {"who": change.who, "why": change.why}
            spans.append({"version": change.version, "since": change.time, "until": None, **told})
    return spans[::-1]


def calls(version: VersionDetail, predictor: str) -> tuple[tuple[str, str], ...]:
    """Return how to call a variant from a shell, from Python and from JavaScript."""
    samples: dict[str, object] = {"numeric": 1.5, "boolean": True, "datetime": "2026-01-31T12:00:00"}
    row = {column.name: samples.get(column.type, "...") for column in version.columns[:40]}
    url = f"{predictor}/variants/{version.name}/invocations"
    body = json.dumps({"dataframe_records": [row]}, ensure_ascii=False)
    curl = (
        f'curl {url} \\\n  -H "Authorization: Bearer $FACTORY_TOKEN" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"
    )
    python = (
        "import os\n\nimport requests\n\n"
        "headers = {'Authorization': f'Bearer {os.environ[\"FACTORY_TOKEN\"]}'}\n"
        f"rows = [{row!r}]\n"
        f"answer = requests.post({url!r}, json={{'dataframe_records': rows}}, headers=headers, timeout=30)\n"
        "print(answer.json()['predictions'])"
    )
    script = (
        f"const rows = [{json.dumps(row, ensure_ascii=False)}];\nconst answer = await fetch({json.dumps(url)}, {{\n"
        '  method: "POST",\n  headers: {"Content-Type": "application/json", Authorization: `Bearer ${token}`},\n'
        "  body: JSON.stringify({dataframe_records: rows}),\n});\nconsole.log((await answer.json()).predictions);"
    )
    return (("curl", curl), ("Python", python), ("JavaScript", script))

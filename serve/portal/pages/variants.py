"""Variants: the list, one with its versions, a version with its card, and what is done with them."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.operate.answers import ListedVariant
from serve.portal.documents import Deployments, VariantName, Variants, VersionDetail
from serve.portal.exporting import MOST_MB, OnnxReport
from serve.portal.pages.aliases import before, lanes, spans_of
from serve.portal.pages.forms import number, one, read_form
from serve.portal.pages.inner import Refused
from serve.portal.pages.kit import SignedIn, Visitor
from serve.portal.pages.lineage import graphs, relatives_of
from serve.portal.routes import API
from serve.portal.routes.proposals import Proposals

router = APIRouter(include_in_schema=False)

MOST = 100
"""Versions that are shown beside each other, the newest; the list of versions has all."""


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
    return await _variant_page(visitor, name)


async def _variant_page(
    visitor: Visitor, name: str, *, refused: Refused | None = None, why: str | None = None
) -> Response:
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
    line = spans_of(found.alias_history)
    return visitor.page(
        "variant.html",
        refused.status if refused else 200,
        variant=found,
        versions=sorted(found.versions, key=lambda version: -version.version)[:MOST],
        n_versions=len(found.versions),
        segments=beside(segments, champion),
        pooled=champion,
        scale=None if champion is None or not segments else Scale.of([*segments, champion]),
        line=line,
        back=before(line),
        drawn=lanes(found.alias_history, now=datetime.now(UTC)),
        proposals=proposals.items,
        predictor=deployments.predictor,
        may_deploy=visitor.may_change("deploy", found.team),
        refused=refused,
        why=why,
    )


@router.get("/variants/{name}/versions/{version}")
async def show_version(visitor: SignedIn, name: str, version: int) -> Response:
    """Show a version: its score, its lineage, what is in it, its card, and how to call it."""
    return await _version_page(visitor, name, version)


async def _version_page(
    visitor: Visitor, name: str, version: int, *, refused: Refused | None = None, why: str = ""
) -> Response:
    api = visitor.api
    detail = await api.get(f"{API}/variants/{name}/versions/{version}", VersionDetail)
    relatives, deployments, proposals, champions = await asyncio.gather(
        relatives_of(api, detail),
        api.get(f"{API}/deployments", Deployments),
        api.get(f"{API}/proposals", Proposals, {"name": name, "state": "open"}),
        api.get(f"{API}/variants", Variants, {"name": name, "alias": "champion", "limit": 1}),
    )
    return visitor.page(
        "version.html",
        refused.status if refused else 200,
        version=detail,
        request=relatives.request,
        proposal=next((one for one in proposals.items if one.version == version), None),
        lineage=graphs(detail, relatives, visitor.words),
        champion=champions.items[0] if champions.items else None,
        predictor=deployments.predictor,
        calls=calls(detail, deployments.predictor or "http://127.0.0.1:8000"),
        may_deploy=visitor.may_change("deploy", name.partition(".")[0]),
        most_mb=MOST_MB,
        refused=refused,
        why=why,
    )


@router.get("/variants/{name}/versions/{version}/onnx")
async def show_onnx(visitor: SignedIn, name: str, version: int) -> Response:
    """Show, within the page of a version, whether there is an ONNX file of it, and why not."""
    found = await visitor.api.get(f"{API}/variants/{name}/versions/{version}/export/onnx", OnnxReport)
    return visitor.page("onnx.html", name=name, version=version, onnx=found)


@router.post("/variants/{name}/promote")
async def promote(visitor: SignedIn, request: Request, name: str) -> Response:
    """Make a version the champion, or propose it where a second person has to agree.

    Where another one was promoted meanwhile, the page comes again with who did that, and with the champion of now.
    """
    form = await read_form(request)
    version = number(one(form, "version"))
    document = {
        "version": version,
        "why": one(form, "why"),
        "override": one(form, "override") == "true",
        "instead_of": number(one(form, "instead_of")) if one(form, "instead_of") else None,
    }
    try:
        answer = await visitor.api.send("POST", f"{API}/variants/{name}/promote", document, csrf=one(form, "csrf"))
    except Refused as refused:
        if not _was_changed(refused) or not isinstance(version, int):
            raise
        return await _version_page(visitor, name, version, refused=refused, why=one(form, "why"))
    said = visitor.words("It waits for a second person.") if answer.status == 202 else visitor.words("It is champion.")
    return visitor.go(f"/variants/{name}/versions/{version}", said)


@router.post("/variants/{name}/rollback")
async def roll_back(visitor: SignedIn, request: Request, name: str) -> Response:
    """Make the version champion that was it before, and come back to the page that asked for it."""
    form = await read_form(request)
    seen = number(one(form, "instead_of")) if one(form, "instead_of") else None
    document = {"why": one(form, "why"), "instead_of": seen}
    try:
        answer = await visitor.api.send("POST", f"{API}/variants/{name}/rollback", document, csrf=one(form, "csrf"))
    except Refused as refused:
        if not _was_changed(refused):
            raise
        return await _variant_page(visitor, name, refused=refused, why=one(form, "why"))
    again = answer.read(ListedVariant)
    page = "deployments" if one(form, "back") == "deployment" else "variants"
    return visitor.go(f"/{page}/{name}", visitor.words("Version {n} is champion again.", n=again.version))


def _was_changed(refused: Refused) -> bool:
    """Whether another version is champion than the page has shown."""
    return refused.status == 409 and any(detail.field == "instead_of" for detail in refused.error.details)


@router.post("/proposals/{proposal_id}/{decision}")
async def decide(visitor: SignedIn, request: Request, proposal_id: str, decision: str) -> Response:
    """Approve or reject what somebody else has proposed."""
    form = await read_form(request)
    place = f"{API}/proposals/{proposal_id}/{'approve' if decision == 'approve' else 'reject'}"
    await visitor.api.send("POST", place, {"why": one(form, "why")}, csrf=one(form, "csrf"))
    return visitor.go(one(form, "back") or "/", visitor.words("Your decision is kept."))


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

"""Datasets: uploaded, listed, shown and forgotten."""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from factory.data.first_look import FirstLook, first_look
from factory.data.loading import uploaded
from factory.data.uploads import Received
from factory.errors import Detail, FactoryError, InvalidRequest, NotFound
from factory.ledger import EVERYONE, Upload, UploadQuery
from factory.spec import NAME, Document
from serve.portal.context import Here, Portal
from serve.portal.documents import DIGEST, Datasets, DatasetView
from serve.portal.identity import Caller, Reader, Submitter
from serve.portal.openapi import ALWAYS, BODY, refusals
from serve.portal.replies import page, reply
from serve.portal.routes import API
from serve.portal.uploading import only_known, receive

log = logging.getLogger(__name__)

router = APIRouter(prefix=f"{API}/datasets", tags=["datasets"], responses=refusals(*ALWAYS))

Digest = Annotated[str, Path(pattern=DIGEST, description="SHA-256 of its bytes.")]
TeamQuery = Annotated[
    str | None, Query(pattern=NAME, description="Whose it is; the token's own team where empty, an operator names it.")
]
_FILE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}, "team": {"type": "string", "pattern": NAME}},
        "additionalProperties": False,
    }
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A Parquet, CSV (also gzip) or Arrow/Feather file, as the body itself or as one file of a form.",
        "content": {"application/octet-stream": _FILE, "multipart/form-data": _FORM},
    }
}


class DatasetFilters(Document):
    """Which datasets, and in which order."""

    team: str | None = Field(None, max_length=63, description="Of one team; the token's own where empty.")
    shared: bool = Field(True, description="Also those that others have shared with the team.")
    sort: Literal["created", "-created"] = "-created"
    cursor: str | None = Field(None, max_length=1024, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200)


@router.post(
    "",
    status_code=201,
    response_model=DatasetView,
    responses=refusals(404, 422, *BODY, also={200: {"model": DatasetView, "description": "The team had it already."}}),
    openapi_extra=_BODY,
)
async def upload_dataset(
    portal: Here,
    caller: Submitter,
    request: Request,
    filename: Annotated[str | None, Query(max_length=1024, description="Its name; a form tells it itself.")] = None,
    team: TeamQuery = None,
) -> Response:
    """Upload a table: it is streamed to disk, looked at, and kept under the digest of its bytes."""
    owners: list[str] = []

    def check(fields: dict[str, str]) -> None:
        only_known(fields, ("team",))
        owners.append(_owner(caller, team or fields.get("team")))

    received, name = await receive(request, portal.uploads, filename, check=check)
    return await run_in_threadpool(_record, portal, caller, received, name, owners[0])


@router.get("", response_model=Datasets, responses=refusals(404))
def list_datasets(
    portal: Here, caller: Reader, request: Request, filters: Annotated[DatasetFilters, Query()]
) -> Response:
    """List the datasets that a team has uploaded, and those that were shared with it."""
    where = UploadQuery(team=caller.own_team(filters.team), shared=filters.shared)
    found = portal.ledger.upload_page(where, sort=filters.sort, cursor=filters.cursor, limit=filters.limit)
    return page(Datasets(items=found.items, next=found.next), request, found.next)


@router.get("/{digest}", response_model=DatasetView, responses=refusals(404, 422))
def show_dataset(portal: Here, caller: Reader, digest: Digest) -> Response:
    """Show a dataset with its columns, the types that its first rows suggest, and some of these."""
    upload = _seen(portal, caller, digest)
    return reply(DatasetView(dataset=upload, preview=portal.uploads.preview(digest), known=True))


@router.get("/{digest}/findings", response_model=FirstLook, responses=refusals(404, 422))
def screen_dataset(
    portal: Here,
    caller: Reader,
    digest: Digest,
    target: Annotated[str, Query(min_length=1, max_length=255, description="The column that would be predicted.")],
) -> Response:
    """Say what is suspicious about a dataset's first rows: columns that cannot help, or that give the target away."""
    _seen(portal, caller, digest)
    settings = portal.settings
    with portal.screening():
        path = uploaded(digest, settings=settings)
        return reply(first_look(path, target, digest=digest, max_rows=settings.max_rows))


@router.delete("/{digest}", status_code=204, responses=refusals(404))
def forget_dataset(portal: Here, caller: Submitter, digest: Digest, team: TeamQuery = None) -> Response:
    """Forget a dataset of a team; its file is removed once no team has it. Requests that wait for it will fail."""
    owner = _owner(caller, team)
    portal.ledger.forget_upload(digest, owner, by=caller.actor)
    if not portal.ledger.upload_teams(digest):
        _remove(portal, digest)
    return Response(status_code=204)


def _record(portal: Portal, caller: Caller, received: Received, name: str, team: str) -> Response:
    upload = Upload(
        digest=received.digest,
        team=team,
        name=name,
        kind=received.format,
        bytes=received.n_bytes,
        rows=received.n_rows,
        columns=tuple(column.name for column in received.preview.columns),
        created=datetime.now(UTC),
        created_by=caller.principal.name,
    )
    try:
        stored = portal.ledger.record_upload(upload, by=caller.actor)
    except FactoryError:
        if not received.known:
            _remove(portal, received.digest)  # nothing would name it
        raise
    # Another team may have forgotten the same bytes at this moment.
    uploaded(received.digest, settings=portal.settings)
    known = stored.created != upload.created
    view = DatasetView(dataset=stored, preview=received.preview, known=known)
    return reply(view, 200 if known else 201, {"location": f"{API}/datasets/{stored.digest}"})


def _remove(portal: Portal, digest: str) -> None:
    """Remove a file that no team has; where that fails it is in the way of nobody."""
    try:
        path = uploaded(digest, settings=portal.settings)
        aside = path.with_name(f".{uuid.uuid4().hex}")
        path.rename(aside)
        # Until now a team may have uploaded the same bytes, and found them here.
        if portal.ledger.upload_teams(digest):
            aside.replace(path)
        else:
            aside.unlink()
    except (NotFound, OSError) as error:
        log.warning("the file of dataset %s was not removed: %s", digest[:12], error)


def _owner(caller: Caller, team: str | None) -> str:
    """Return the team that a dataset is of."""
    owner = caller.own_team(team)
    if owner is None:
        raise InvalidRequest(
            "team: an operator's token is of no team.",
            hint="Say whose dataset it is: ?team=growth.",
            details=[Detail("team", "This is required.")],
        )
    return owner


def _seen(portal: Portal, caller: Caller, digest: str) -> Upload:
    """Return a dataset of the caller's team, or of one that has shared it."""
    owners = portal.ledger.upload_teams(digest)
    if caller.team is not None:
        shares = portal.ledger.shares("dataset", digest)
        seen = {caller.team} | {share.team for share in shares if share.with_team in (caller.team, EVERYONE)}
        owners = sorted((team for team in owners if team in seen), key=lambda team: team != caller.team)
    if not owners:
        raise NotFound(
            f"There is no dataset {digest[:12]!r}.",
            hint="GET /api/v1/datasets lists those that you see.",
            details=[Detail("digest", "is not known")],
        )
    return portal.ledger.upload(digest, owners[0])

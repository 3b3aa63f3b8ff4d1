"""Versions to take away: as a folder, a container's context or an ONNX file, packed into one archive."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from factory.ledger.catalog import team_of
from factory.spec import Document
from factory.variants.export import Format
from serve.portal.context import Here
from serve.portal.exporting import OnnxReport, onnx_report, packed, parts_of
from serve.portal.identity import Deployer
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import reply
from serve.portal.routes import API
from serve.portal.routes.variants import Name, Version, require_own_variant

router = APIRouter(
    prefix=f"{API}/variants/{{name}}/versions/{{version}}", tags=["variants"], responses=refusals(*ALWAYS)
)

_ZIP = {
    "description": "A ZIP archive; its README.md says how it is used.",
    "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {"Content-Disposition": {"schema": {"type": "string"}, "required": True}},
}


class ExportQuery(Document):
    """As what."""

    format: Format = Field(
        "folder",
        description="A folder that predicts without the factory; docker adds a Dockerfile whose container serves it; "
        "onnx is one file.",
    )


@router.get("/export", response_class=StreamingResponse, responses=refusals(404, 409, also={200: _ZIP}))
def export_version(
    portal: Here, caller: Deployer, name: Name, version: Version, query: Annotated[ExportQuery, Query()]
) -> Response:
    """Send a version as an archive that predicts without the factory; of one's own team, and audited."""
    require_own_variant(portal.ledger, caller, name)
    variant = portal.ledger.variant(name, version)
    with portal.exporting():
        archive, size = packed(variant, portal.settings, as_=query.format)
    detail = {"version": version, "format": query.format}
    portal.ledger.record_audit("variant.export", name, by=caller.actor, team=team_of(name), detail=detail)
    filename = f"{name}-{version}{'' if query.format == 'folder' else f'-{query.format}'}.zip"
    headers = {"content-disposition": f'attachment; filename="{filename}"', "content-length": str(size)}
    return StreamingResponse(parts_of(archive), media_type="application/zip", headers=headers)


@router.get("/export/onnx", response_model=OnnxReport, responses=refusals(404, 409))
def look_at_onnx(portal: Here, caller: Deployer, name: Name, version: Version) -> Response:
    """Say whether a version can be had as an ONNX file that says the same, and why not."""
    require_own_variant(portal.ledger, caller, name)
    variant = portal.ledger.variant(name, version)
    with portal.exporting():
        return reply(onnx_report(variant, portal.settings))

"""The files of the pages: style, scripts, icon; and Plotly's script from its installed package."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import Response

from factory.errors import NotFound

router = APIRouter(include_in_schema=False)

_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FOREVER = "public, max-age=31536000, immutable"
"""Addresses change with the content."""


@router.get("/static/{version}/{name:path}")
def show_file(request: Request, version: str, name: str) -> Response:  # noqa: ARG001 - it is for the browser's memory
    """Send a file, packed where the browser takes it so."""
    kind = _KINDS.get(name.rpartition(".")[2], "")
    place = _place(name)
    if not kind or place is None:
        raise NotFound(f"There is no file {name[:80]!r}.", hint="Reload the page.")
    packs = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"cache-control": _FOREVER, "vary": "Accept-Encoding"}
    if packs:
        headers["content-encoding"] = "gzip"
    return Response(_content(name, packs), media_type=f"{kind}; charset=utf-8", headers=headers)


def _place(name: str) -> Traversable | None:
    """Return where a file is; None where there is none of that name."""
    if name == "plotly.min.js":
        return resources.files("plotly") / "package_data" / name
    place: Traversable = resources.files("serve.portal") / "static"
    for step in name.split("/"):
        found = [one for one in (place.iterdir() if place.is_dir() else ()) if one.name == step]
        if not found:
            return None
        place = found[0]
    return place if place.is_file() else None


@lru_cache(maxsize=32)
def _content(name: str, packed: bool) -> bytes:
    place = _place(name)
    assert place is not None
    content = place.read_bytes()
    return gzip.compress(content, 6) if packed else content

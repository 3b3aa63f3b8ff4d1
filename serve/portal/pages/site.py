"""All pages put into the portal's application, and errors shown to people as pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from starlette.responses import Response

from serve.portal.documents import ErrorBody
from serve.portal.pages import (
    admin,
    assets,
    batches,
    batching,
    comparing,
    deployments,
    entry,
    features,
    files,
    home,
    orders,
    requests,
    teams,
    trying,
    variants,
)
from serve.portal.pages.inner import Refused
from serve.portal.pages.kit import NotSignedIn, failed, is_page, on_not_signed_in, on_refused

Handler = Callable[[Request, Exception], Awaitable[Response]]

_PAGES = (
    files,
    features,
    entry,
    home,
    orders,
    requests,
    variants,
    comparing,
    trying,
    deployments,
    batching,
    batches,
    assets,
    teams,
    admin,
)


def add_pages(app: FastAPI) -> None:
    """Add the pages to the application that has the API."""
    for page in _PAGES:
        app.include_router(page.router)
    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(NotSignedIn, on_not_signed_in)


def shown(handler: Handler) -> Handler:
    """Return a handler of errors that tells people what another one tells programs."""

    async def show(request: Request, error: Exception) -> Response:
        response = await handler(request, error)
        if not is_page(request):
            return response
        return await failed(request, response.status_code, ErrorBody.model_validate_json(bytes(response.body)).error)

    return show

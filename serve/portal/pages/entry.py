"""Signing in and out, the team that one acts for, and one's account."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from serve.portal.browser import local_path
from serve.portal.context import Here
from serve.portal.pages.forms import one, read_form
from serve.portal.pages.inner import Answer, Refused
from serve.portal.pages.kit import Anybody, SignedIn

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
async def show_sign_in(visitor: Anybody, portal: Here, next: str = "/") -> Response:  # noqa: A002 - of the address
    """Show how to sign in; who is signed in goes on."""
    following = local_path(next)
    if visitor.session is not None:
        return RedirectResponse(following, status_code=303)
    return visitor.page("sign_in.html", following=following, provider=portal.provider is not None, error=None)


@router.post("/sign-in")
async def sign_in(visitor: Anybody, portal: Here, request: Request) -> Response:
    """Start a session with a token."""
    form = await read_form(request)
    following = local_path(one(form, "next") or "/")
    try:
        answer = await visitor.api.send("POST", "/auth/token", {"token": one(form, "token")}, csrf="")
    except Refused as refused:
        if refused.status >= 500:
            raise
        values = {"following": following, "provider": portal.provider is not None, "error": refused.error}
        return visitor.page("sign_in.html", refused.status, **values)
    return _kept(answer, RedirectResponse(following, status_code=303))


@router.post("/sign-out")
async def sign_out(visitor: SignedIn, request: Request) -> Response:
    """End the session, or all of the same person."""
    form = await read_form(request)
    everywhere = one(form, "everywhere") == "true"
    answer = await visitor.api.send("POST", "/auth/logout", {"everywhere": everywhere}, csrf=one(form, "csrf"))
    return _kept(answer, RedirectResponse("/sign-in", status_code=303))


@router.post("/session")
async def choose_team(visitor: SignedIn, request: Request) -> Response:
    """Let the session act for another team."""
    form = await read_form(request)
    await visitor.api.send("PUT", "/auth/session", {"team": one(form, "team")}, csrf=one(form, "csrf"))
    return visitor.go(local_path(one(form, "back") or "/"))


@router.get("/account")
async def show_account(visitor: SignedIn) -> Response:
    """Show who is signed in, what that may do, and how to sign out."""
    return visitor.page("account.html")


def _kept(answer: Answer, response: Response) -> Response:
    """Let a browser have the cookies that the API has set."""
    for name, value in answer.cookies:
        response.raw_headers.append((name, value))
    return response

"""What every page is made with: who looks at it, its language, its template, and how it tells what went wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlencode
from zoneinfo import ZoneInfo

from fastapi import Depends, Request
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from serve.portal.browser import local_path
from serve.portal.documents import ErrorContent
from serve.portal.pages.inner import Api, Refused, api_of
from serve.portal.pages.names import MENU, NAMES, metric_named
from serve.portal.pages.schedules import in_words
from serve.portal.pages.telling import told
from serve.portal.pages.words import UNKNOWN, Words, zone_of
from serve.portal.routes.sign_in import SessionView

_NOTHING = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""Digest of nothing: Plotly makes an empty style sheet, and puts its rules in by script."""
_BAR = "sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o="
"""Digest of the one style attribute that Plotly sets by text, when a chart is changed."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' '{_NOTHING}' 'unsafe-hashes' '{_BAR}'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy of pages: nothing from another host, no script and no style that stands in the page."""
HEADERS = {
    "content-security-policy": POLICY,
    "vary": "Accept-Language, Cookie, HX-Request",
    # With none at all a browser tells no origin of the forms that a page sends, and they would be refused.
    "referrer-policy": "same-origin",
}
SAID = "factory_said"
"""Cookie with a sentence that the next page shows."""
ZONE = "factory_zone"
"""Cookie with the reader's time zone."""
HTMX = "hx-request"
"""Header by which htmx asks for a part of a page."""


@dataclass(frozen=True)
class Visitor:
    """Whoever looks at a page.

    Attributes:
        request: The browser's call.
        api: The API, as the visitor may use it.
        words: In its language.
        session: Who it is; None of somebody who has not signed in.
    """

    request: Request
    api: Api
    words: Words
    session: SessionView | None = None

    def may(self, scope: str) -> bool:
        """Whether it has a scope."""
        if self.session is None:
            return False
        scopes = {str(one) for one in self.session.me.scopes}
        return scope in scopes or "admin" in scopes

    def may_change(self, scope: str, team: str) -> bool:
        """Whether it has a scope, and acts for a team or for all."""
        return self.may(scope) and self.team in (None, team)

    @property
    def team(self) -> str | None:
        """The team that it acts for; None sees all."""
        return self.session.me.team if self.session else None

    @property
    def csrf(self) -> str:
        """Token that its forms send along; before a session there is nothing that it would protect."""
        return self.session.csrf_token if self.session else ""

    @property
    def menu(self) -> list[tuple[str, str]]:
        """Return the pages that it may look at: address, and name."""
        return [(address, self.words(name)) for address, name in MENU]

    @property
    def said(self) -> str:
        """What the page before wants to be said here, once."""
        return unquote(self.request.cookies.get(SAID, ""))[:500]

    @property
    def zone(self) -> ZoneInfo | None:
        """Its time zone, which the page's script has told; None before."""
        return zone_of(self.request.cookies.get(ZONE, ""))

    @property
    def wants_part(self) -> bool:
        """Whether htmx asks, which puts a part of a page into the one that is there."""
        return self.request.headers.get(HTMX) == "true" and "hx-boosted" not in self.request.headers

    def page(self, template: str, /, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page, or a part of one, made from a template."""
        text = (
            environment(self.words.language)
            .get_template(template)
            .render(visitor=self, path=self.request.url.path, zone=self.zone, now=datetime.now(UTC), **values)
        )
        response = HTMLResponse(text, status_code=status, headers=HEADERS)
        if SAID in self.request.cookies and not self.wants_part:
            response.delete_cookie(SAID, path="/", httponly=True, samesite="lax")
        return response

    def go(self, path: str, said: str = "") -> Response:
        """Send the browser to another page, which says once what was done."""
        if self.request.headers.get(HTMX) == "true":
            response = Response(status_code=204, headers={"hx-redirect": path})
        else:
            response = RedirectResponse(path, status_code=303, headers=HEADERS)
        if said:
            response.set_cookie(SAID, quote(said, safe=""), max_age=60, path="/", httponly=True, samesite="lax")
        return response


async def anybody(request: Request) -> AsyncIterator[Visitor]:
    """Yield whoever looks at a page that is for everybody."""
    async with api_of(request) as api:
        words = Words.of(request.headers.get("accept-language", ""))
        try:
            session = await api.get("/auth/session", SessionView)
        except Refused as refused:
            if refused.status not in (401, 403):
                raise
            session = None
        yield Visitor(request, api, words, session)


async def signed_in(visitor: Annotated[Visitor, Depends(anybody)]) -> Visitor:
    """Return whoever looks at a page that is for those who have signed in."""
    if visitor.session is None:
        raise NotSignedIn
    return visitor


Anybody = Annotated[Visitor, Depends(anybody)]
SignedIn = Annotated[Visitor, Depends(signed_in)]


class NotSignedIn(Exception):
    """A page is for those who have signed in: the browser is sent to the sign-in, and comes back."""


def is_page(request: Request) -> bool:
    """Whether a call is of a browser that wants to show the answer, and not of the API."""
    api = request.url.path.startswith(("/api/", "/auth/", "/static/")) or request.url.path in _FOR_PROGRAMS
    return not api and "text/html" in request.headers.get("accept", "")


_FOR_PROGRAMS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})


async def on_refused(request: Request, error: Exception) -> Response:
    """Show what the API has refused of a page, and a way on."""
    assert isinstance(error, Refused)
    if error.status == 401:
        return await on_not_signed_in(request, error)
    return await failed(request, error.status, error.error, retry_after=error.retry_after)


async def on_not_signed_in(request: Request, _: Exception) -> Response:
    """Send a browser to the sign-in; what it wanted to see comes afterwards."""
    where = f"/sign-in?{urlencode({'next': _looked_at(request)})}"
    if request.headers.get(HTMX) == "true":
        return Response(status_code=401, headers={"hx-redirect": where, **HEADERS})
    return RedirectResponse(where, status_code=303)


def _looked_at(request: Request) -> str:
    """Return the path of what a browser looks at: the page itself, or the one with the form that it has sent."""
    if request.method == "GET" and request.headers.get(HTMX) != "true":
        return request.url.path + (f"?{request.url.query}" if request.url.query else "")
    # What was typed is still in the form that htmx, or the back button, leaves there.
    page = request.headers.get("hx-current-url") or request.headers.get("referer") or "/"
    return local_path("/" + page.split("://", 1)[-1].partition("/")[2])


async def failed(request: Request, status: int, error: ErrorContent, *, retry_after: str = "") -> HTMLResponse:
    """Return the page of an error, or the part that tells it in the page that is there."""
    words = Words.of(request.headers.get("accept-language", ""))
    part = request.headers.get(HTMX) == "true"
    visitor = None if part else await _visitor(request, words)
    form = getattr(request.state, "form", {}) if status != 412 else {}
    # Shown again only to whoever has sent it: another site's form comes without the token of this session.
    sent = form if visitor is not None and form.get("csrf", [""])[-1] == visitor.csrf else {}
    text = (
        environment(words.language)
        .get_template("error_part.html" if part else "error.html")
        .render(
            visitor=visitor,
            path=request.url.path,
            status=status,
            error=error,
            sent={name: values for name, values in sent.items() if name not in _SECRETS},
            wrong={detail.field.rpartition("/")[2]: detail.message for detail in error.details},
            again=request.method == "GET",
            back=_looked_at(request),
            zone=visitor.zone if visitor else None,
            now=datetime.now(UTC),
        )
    )
    headers = {**HEADERS, **({"retry-after": retry_after} if retry_after else {})}
    if part:
        headers |= {"hx-retarget": "#notices", "hx-reswap": "innerHTML"}
    return HTMLResponse(text, status_code=status, headers=headers)


_SECRETS = frozenset({"csrf", "token"})
"""Fields of forms that a page of an error does not repeat as they were sent."""
_SESSION_S = 1.0
"""For which a page of an error waits to know who looks at it: the ledger may be what has failed."""


async def _visitor(request: Request, words: Words) -> Visitor | None:
    """Return whoever looks at a page of an error, for its menu; None where that is not known."""
    async with api_of(request) as api:
        try:
            async with asyncio.timeout(_SESSION_S):
                return Visitor(request, api, words, await api.get("/auth/session", SessionView))
        except (Refused, TimeoutError):
            return None


# --- templates ---------------------------------------------------------------


@cache
def environment(language: str) -> Environment:
    """Return the templates in a language; everything that is put in is escaped."""
    words = Words.of(language)
    made = Environment(
        loader=PackageLoader("serve.portal", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n", "jinja2.ext.loopcontrols"],
    )
    made.install_gettext_translations(words.catalogue, newstyle=False)  # type: ignore[attr-defined]
    made.globals |= {
        "words": words,
        "static": static,
        "plotly_address": static("plotly.min.js"),
        "in_words": lambda schedule: in_words(schedule, words),
        "translated": lambda text: told(words, text),
        "named": lambda kind, name: named(words, kind, name),
        "named_choice": lambda path, name: named(words, path if path in NAMES else path.rpartition(".")[2], name),
    }
    made.filters |= {
        "number": words.number,
        "score": words.score,
        "percent": words.percent,
        "seconds": words.seconds,
        "ms": words.milliseconds,
        "metric": metric_named,
        "bytes": words.size,
        "moment": time_element,
        "figure": figure_json,
        "segment": lambda text: quote(str(text), safe=""),
        "query": lambda values: urlencode({k: v for k, v in values.items() if v not in (None, "")}, doseq=True),
    }
    return made


def named(words: Words, kind: str, name: object) -> str:
    """Return what people call a state, a family, a kind … that programs call ``name``."""
    text = str(name)
    return words(NAMES.get(kind, {}).get(text, text)) if text else ""


@pass_context
def time_element(context: Context, moment: datetime | None) -> Markup:
    """Return a moment in the reader's zone, which the page's script keeps up to date; hovering shows the exact one."""
    if moment is None:
        return escape(UNKNOWN)
    exact = moment.astimezone(UTC).isoformat(timespec="seconds")
    words: Words = context["words"]
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact, exact, words.moment(moment, context.get("zone"))
    )


def figure_json(figure: Any) -> Markup:
    """Return a figure as JSON that may stand in a page: no text in it can end the element that it stands in."""
    text = json.dumps(figure, allow_nan=False, separators=(",", ":"))
    for sign in "<>&'":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - JSON without the signs that mean something in HTML


@cache
def static(name: str) -> str:
    """Return the address of a file, which changes whenever one of them does, so that browsers may keep it for a year.

    The files' part of it is one for all: a script that imports another one by its name gets the one that the page has.
    """
    return f"/static/{_version()}/{name}"


@cache
def _version() -> str:
    digest = hashlib.sha256(version("plotly").encode())
    for folder in ("", "vendor"):
        for file in sorted((resources.files("serve.portal") / "static" / folder).iterdir(), key=lambda one: one.name):
            if file.is_file():
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

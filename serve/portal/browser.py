"""Browsers: their cookies, and what shows that a page of ours sends a call and not somebody else's.

Between a sign-in's begin and end nothing is stored here: what ties them
together (state, nonce, PKCE's verifier) is derived from a secret in a cookie
of ten minutes.

Sources: RFC 6265bis (prefixes, SameSite), RFC 7636 (PKCE), OWASP's
cheat sheet on cross-site request forgery (token by HMAC, Origin).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from secrets import compare_digest, token_urlsafe
from urllib.parse import urlsplit

from fastapi import Request
from starlette.responses import Response

from factory.errors import Detail, InvalidRequest
from factory.settings import Settings
from serve.errors import Forbidden, Unauthorized
from serve.portal.oidc import Secrets

CSRF_HEADER = "X-CSRF-Token"
SIGN_IN_S = 600
"""For which a sign-in may take; then it begins again."""
SECURE_SESSION = "__Host-factory_session"
"""Name of the session's cookie: by the prefix, a browser takes it from this host only, and only encrypted."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]{0,500}")
"""A path of this host: no second slash or backslash, which browsers take for another host; nothing unprintable."""


def local_path(path: str) -> str:
    """Return a path of this host; the first page where it is none.

    >>> local_path("/variants"), local_path("//elsewhere.example"), local_path("https://elsewhere.example/")
    ('/variants', '/', '/')
    """
    return path if _LOCAL.fullmatch(path) else "/"


@dataclass(frozen=True)
class Cookies:
    """The cookies of a portal.

    Args:
        settings: Say at which address browsers reach it.
    """

    settings: Settings

    @property
    def secure(self) -> bool:
        """Whether browsers come by https."""
        return urlsplit(self.settings.public).scheme == "https"

    @property
    def session_name(self) -> str:
        """Name of the session's cookie."""
        return SECURE_SESSION if self.secure else SECURE_SESSION.removeprefix("__Host-")

    @property
    def sign_in_name(self) -> str:
        """Name of the cookie of a sign-in that has begun."""
        return f"{'__Host-' if self.secure else ''}factory_sign_in"

    def session_of(self, request: Request) -> str | None:
        """Return the secret of a call's session, or None."""
        return request.cookies.get(self.session_name) or None

    def sign_in_of(self, request: Request) -> SignIn:
        """Return the sign-in that a call's browser has begun.

        Raises:
            Unauthorized: it has begun none, or too long ago.
        """
        return SignIn.read(request.cookies.get(self.sign_in_name, ""))

    def keep_session(self, response: Response, secret: str) -> None:
        """Give a browser its session; it is forgotten when the browser is closed, and ends here by itself."""
        self._set(response, self.session_name, secret, None)

    def keep_sign_in(self, response: Response, sign_in: SignIn) -> None:
        """Give a browser what ties the end of its sign-in to the begin."""
        self._set(response, self.sign_in_name, sign_in.text, SIGN_IN_S)

    def forget_session(self, response: Response) -> None:
        """Let a browser forget its session."""
        self._set(response, self.session_name, "", 0)

    def forget_sign_in(self, response: Response) -> None:
        """Let a browser forget its sign-in."""
        self._set(response, self.sign_in_name, "", 0)

    def _set(self, response: Response, name: str, value: str, max_age: int | None) -> None:
        response.set_cookie(name, value, max_age=max_age, path="/", secure=self.secure, httponly=True, samesite="lax")


@dataclass(frozen=True)
class SignIn:
    """A sign-in that has begun.

    Attributes:
        secret: Which only the browser has.
        begun: When, in seconds since 1970.
        following: Path where the browser goes afterwards.
    """

    secret: str
    begun: int
    following: str

    @classmethod
    def begin(cls, following: str) -> SignIn:
        """Return a new one.

        Raises:
            InvalidRequest: where it goes afterwards is no path of this host.
        """
        if not _LOCAL.fullmatch(following):
            raise InvalidRequest(
                f"next: {following[:80]!r} is no path of this portal.",
                hint="Give a path that begins with one slash, as /variants.",
                details=[Detail("next", "is no path of this portal")],
            )
        return cls(token_urlsafe(32), int(time.time()), following)

    @classmethod
    def read(cls, text: str) -> SignIn:
        """Return the one of a cookie.

        Raises:
            Unauthorized: it is none, or too old.
        """
        again = "Begin again: GET /auth/login."
        secret, _, rest = text.partition(".")
        begun, _, encoded = rest.partition(".")
        try:
            found = cls(secret, int(begun), base64.urlsafe_b64decode(encoded).decode())
        except (ValueError, binascii.Error) as error:
            raise Unauthorized("This browser has not begun to sign in.", hint=again) from error
        if len(secret) < 40 or not _LOCAL.fullmatch(found.following):
            raise Unauthorized("This browser has not begun to sign in.", hint=again)
        if abs(time.time() - found.begun) > SIGN_IN_S:
            raise Unauthorized("The sign-in has taken too long.", hint=again)
        return found

    @property
    def text(self) -> str:
        """It, as a cookie's value."""
        return f"{self.secret}.{self.begun}.{base64.urlsafe_b64encode(self.following.encode()).decode()}"

    @property
    def secrets(self) -> Secrets:
        """What ties the provider's answer to it; none of them tells another."""
        return Secrets(*(self._derived(what) for what in ("state", "nonce", "verifier")))

    def _derived(self, what: str) -> str:
        message = f"{what}\n{self.begun}\n{self.following}"
        digest = hmac.digest(self.secret.encode(), message.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def require_state(self, state: str) -> None:
        """Refuse an answer that is not to this sign-in.

        Raises:
            Unauthorized: its state is another one.
        """
        if not compare_digest(state.encode(), self.secrets.state.encode()):
            raise Unauthorized("This is the answer to another sign-in.", hint="Begin again: GET /auth/login.")


def csrf_token(secret: str) -> str:
    """Return what a page of ours sends along with a session's changes; others cannot read it."""
    return hmac.digest(hashlib.sha256(secret.encode()).digest(), b"csrf", "sha256").hex()


def require_our_origin(request: Request, settings: Settings) -> None:
    """Refuse a call that a page of another origin sends.

    Raises:
        Forbidden: its browser says that it is one.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    if (origin is None or origin in _ours(settings)) and site in ("same-origin", "none"):
        return
    raise Forbidden(
        f"A page of {(origin or 'another site')[:80]!r} may not do this here.",
        hint="Open the portal itself; FACTORY_PUBLIC_URL has to be the address that browsers show.",
        details=[Detail("Origin", "is another one")],
    )


def _ours(settings: Settings) -> tuple[str, ...]:
    """Return where pages of ours come from: on the machine itself by any of its names, unless an address is set."""
    names = ("127.0.0.1", "localhost", "[::1]")
    return (settings.public_url,) if settings.public_url else tuple(f"http://{n}:{settings.portal_port}" for n in names)


def require_csrf(request: Request, secret: str, settings: Settings) -> None:
    """Refuse a change that comes with a session's cookie, and not from a page of ours.

    Raises:
        Forbidden: its token is missing or wrong, or its browser names another origin.
    """
    if request.method in _SAFE:
        return
    require_our_origin(request, settings)
    if not compare_digest(request.headers.get(CSRF_HEADER, "").encode(), csrf_token(secret).encode()):
        raise Forbidden(
            f"With a session, a change needs the header {CSRF_HEADER}.",
            hint="GET /auth/session tells it; programs use a token instead of a session.",
            details=[Detail(CSRF_HEADER, "is missing or wrong")],
        )

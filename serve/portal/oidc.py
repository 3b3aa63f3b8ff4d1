"""The OpenID Connect provider that people sign in with: authorization code flow with PKCE, state and nonce.

What the provider says is believed only from an ID token that is signed with
one of its keys, for this portal, by this issuer, with the nonce of this very
sign-in, and not expired (OpenID Connect Core 1.0, 3.1.3.7).

Sources: Authlib for the protocol and the claims, joserfc for the signature.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from requests import RequestException

from factory.errors import Detail, InvalidRequest, ServiceFault, StorageFault
from factory.settings import Settings
from factory.spec import SCOPES, Grant
from serve.errors import Overloaded, Unauthorized

log = logging.getLogger(__name__)

CALLBACK = "/auth/callback"
"""Path to which the provider sends people back; it has to be registered there below FACTORY_PUBLIC_URL."""
TIMEOUT_S = 10.0
AT_ONCE = 4
"""Sign-ins that may wait for the provider at a time: anybody can begin one, and a provider that hangs would take every
thread that answers calls."""
TURN_S = 1.0
"""For which one waits for its turn."""
LEEWAY_S = 60
"""By which the provider's clock may differ from ours."""
KNOWN_S = 3600.0
"""For which what the provider says of itself is good."""
KEYS_S = 30.0
"""Between two looks at its keys, where a token names one that is not known: anybody can send such a token."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Of signatures with a key pair; with a shared secret whoever reads our settings could sign."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_AGAIN = "Begin again: GET /auth/login."

R = TypeVar("R")


@dataclass(frozen=True)
class Person:
    """Who has signed in, as the provider says.

    Attributes:
        subject: The provider's id of the person, which never changes.
        grants: What the groups give by FACTORY_OIDC_TEAMS.
    """

    subject: str
    email: str
    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class Secrets:
    """What ties an answer of the provider to the browser that began the sign-in."""

    state: str
    nonce: str
    verifier: str


@dataclass
class Provider:
    """The provider of the settings; safe to use from several threads.

    Args:
        issuer: Its name, an address.
        client_id: The portal's at the provider.
        client_secret: Likewise; None for a public client.
        redirect_uri: Where it sends people back to.
        scopes: What it is asked for.
        groups_claim: Claim with a person's groups.
        teams: What each group gives.
    """

    issuer: str
    client_id: str
    client_secret: str | None = field(repr=False)
    redirect_uri: str
    scopes: str
    groups_claim: str
    teams: Mapping[str, tuple[Grant, ...]]
    _turns: threading.Semaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _metadata: tuple[float, dict[str, Any]] | None = field(default=None, repr=False)
    _keys: tuple[float, KeySet] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Provider | None:
        """Return the provider of the settings; None where they name none.

        Raises:
            InvalidRequest: the settings do not fit together.
            StorageFault: the file with the secret cannot be read.
        """
        if settings.oidc_issuer is None:
            return None
        if settings.oidc_client_id is None:
            raise _setting("FACTORY_OIDC_CLIENT_ID", "is not set, but FACTORY_OIDC_ISSUER is.", "Set both, or neither.")
        if not _is_safe(settings.oidc_issuer):
            raise _setting(
                "FACTORY_OIDC_ISSUER",
                f"{settings.oidc_issuer!r} is not encrypted.",
                "Use https; plain http is for a provider on this machine.",
            )
        return cls(
            issuer=settings.oidc_issuer,
            client_id=settings.oidc_client_id,
            client_secret=_client_secret(settings),
            redirect_uri=f"{settings.public}{CALLBACK}",
            scopes=settings.oidc_scopes,
            groups_claim=settings.oidc_groups_claim,
            teams=teams_of_groups(settings.oidc_teams or ""),
        )

    def begin(self, secrets: Secrets) -> str:
        """Return the address at the provider where a person signs in.

        Raises:
            Overloaded: too many wait for the provider.
            ServiceFault: the provider does not answer, or is not what the settings say.
        """
        with self._turn(), self._session() as session:
            where = self._endpoint("authorization_endpoint")
            url, _ = session.create_authorization_url(
                where, state=secrets.state, nonce=secrets.nonce, code_verifier=secrets.verifier
            )
        return str(url)

    def finish(self, code: str, secrets: Secrets) -> Person:
        """Return who has signed in, for the code that the provider sent.

        Args:
            code: As it came.
            secrets: Of the same sign-in.

        Raises:
            Overloaded: too many wait for the provider.
            ServiceFault: the provider does not answer, or not as it should.
            Unauthorized: it refuses the code, or its ID token is not good.
        """
        with self._turn():
            return self._person(self._claims(self._redeemed(code, secrets.verifier), secrets.nonce))

    def _redeemed(self, code: str, verifier: str) -> dict[str, Any]:
        """Return what the provider gives for a code."""
        with self._session() as session:
            where = self._endpoint("token_endpoint")
            try:
                token = self._asked(
                    lambda: session.fetch_token(
                        where,
                        grant_type="authorization_code",
                        code=code,
                        code_verifier=verifier,
                        redirect_uri=self.redirect_uri,
                        allow_redirects=False,
                    )
                )
            except OAuthError as error:
                log.warning("sign-in: the provider refused the code: %s", error)
                raise Unauthorized(f"The provider refused the sign-in: {_shown(error.error)}.", hint=_AGAIN) from error
        return dict(token)

    def _claims(self, token: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        """Return the claims of an ID token that is good."""
        text = token.get("id_token")
        if not isinstance(text, str):
            raise Unauthorized("The provider sent no ID token.", hint="Let FACTORY_OIDC_SCOPES begin with openid.")
        registry = JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False)
        try:
            try:
                decoded = jwt.decode(text, self._key_set(), registry=registry)
            except InvalidKeyIdError:  # the provider has changed its keys
                decoded = jwt.decode(text, self._key_set(fresh=True), registry=registry)
            options = {
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self.client_id},
            }
            params = {"nonce": nonce, "client_id": self.client_id, "access_token": token.get("access_token")}
            claims = CodeIDToken(decoded.claims, decoded.header, options, params)
            claims.validate(leeway=LEEWAY_S)
        except (JoseError, ValueError, TypeError) as error:
            log.warning("sign-in: an ID token was refused: %s", error)
            raise Unauthorized(f"The provider's ID token is not good: {_shown(error)}.", hint=_AGAIN) from error
        return dict(claims)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        subject, email = claims["sub"], claims.get("email")
        groups = claims.get(self.groups_claim) or ()
        groups = [groups] if isinstance(groups, str) else groups
        given = [group for group in groups if isinstance(group, str)] if isinstance(groups, list | tuple) else []
        return Person(
            subject=str(subject),
            email=email if isinstance(email, str) and email.isprintable() and len(email) <= 255 else "",
            grants=tuple(grant for group in dict.fromkeys(given) for grant in self.teams.get(group, ())),
        )

    # --- what the provider says of itself ------------------------------------------

    def _endpoint(self, name: str) -> str:
        found = self._described().get(name)
        if not isinstance(found, str) or not _is_safe(found):
            raise ServiceFault(
                f"The sign-in provider names no {name} that can be used.",
                hint="Check FACTORY_OIDC_ISSUER: its discovery document has to name it, with https.",
            )
        return found

    def _described(self) -> dict[str, Any]:
        with self._lock:
            if self._metadata is not None and time.monotonic() - self._metadata[0] < KNOWN_S:
                return self._metadata[1]
            found = self._get(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self.issuer:
                raise ServiceFault(
                    f"The sign-in provider calls itself {_shown(found.get('issuer'))}, not as the settings do.",
                    hint="Let FACTORY_OIDC_ISSUER be exactly what its discovery document says.",
                )
            self._metadata = (time.monotonic(), found)
            return found

    def _key_set(self, *, fresh: bool = False) -> KeySet:
        where = self._endpoint("jwks_uri")
        with self._lock:
            good_s = KEYS_S if fresh else KNOWN_S
            if self._keys is None or time.monotonic() - self._keys[0] > good_s:
                found = self._get(where)
                try:
                    self._keys = (time.monotonic(), KeySet.import_key_set(found))  # type: ignore[arg-type]
                except (JoseError, ValueError, TypeError, KeyError) as error:
                    raise ServiceFault(
                        f"The sign-in provider's keys at {where} cannot be read: {_shown(error)}.",
                        hint="Check the jwks_uri of FACTORY_OIDC_ISSUER.",
                    ) from error
            return self._keys[1]

    def _get(self, url: str) -> dict[str, Any]:
        with self._session() as session:
            answer = self._asked(lambda: session.get(url, withhold_token=True, allow_redirects=False))
            if answer.status_code != 200:
                raise ServiceFault(
                    f"The sign-in provider answered {answer.status_code} to {url}.", hint="Check FACTORY_OIDC_ISSUER."
                )
            found = self._asked(answer.json)
        if not isinstance(found, dict):
            raise ServiceFault(
                f"The sign-in provider answered no JSON object to {url}.", hint="Check FACTORY_OIDC_ISSUER."
            )
        return found

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(timeout=TURN_S):
            raise Overloaded("Too many sign-ins wait for the provider.", hint="Try again in a moment.")
        try:
            yield
        finally:
            self._turns.release()

    def _session(self) -> Any:
        session = OAuth2Session(
            self.client_id,
            self.client_secret,
            scope=self.scopes,
            redirect_uri=self.redirect_uri,
            code_challenge_method="S256",
            default_timeout=TIMEOUT_S,
        )
        # A proxy of the environment is for other machines.
        session.trust_env = urlsplit(self.issuer).hostname not in _LOOPBACK
        return session

    def _asked(self, ask: Callable[[], R]) -> R:
        """Turn what goes wrong on the way into ours."""
        try:
            return ask()
        except OAuthError:
            raise
        except (RequestException, ValueError) as error:  # ValueError: no JSON, or no object
            raise ServiceFault(
                f"The sign-in provider does not answer as it should: {type(error).__name__}.",
                hint="Try again in a minute; an operator checks FACTORY_OIDC_ISSUER. Tokens work meanwhile.",
            ) from error


def teams_of_groups(text: str) -> dict[str, tuple[Grant, ...]]:
    """Return what each group may do, as FACTORY_OIDC_TEAMS says.

    >>> teams_of_groups("data=growth:read+submit, platform=*:admin")["platform"]
    (Grant(team=None, scopes=('admin',)),)

    Raises:
        InvalidRequest: an entry cannot be understood.
    """
    found: dict[str, tuple[Grant, ...]] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        group, equals, given = entry.rpartition("=")
        team, colon, names = given.partition(":")
        scopes = tuple(scope for scope in SCOPES if scope in names.split("+"))
        try:
            if not (group and equals and team and colon and len(scopes) == len(names.split("+"))):
                raise ValueError
            grant = Grant(team=None if team == "*" else team, scopes=scopes)
        except ValueError as error:
            raise _setting(
                "FACTORY_OIDC_TEAMS",
                f"{entry!r} is not GROUP=TEAM:SCOPE+SCOPE.",
                f"Write data=growth:read+submit, for example; * is all teams, scopes are {', '.join(SCOPES)}.",
            ) from error
        found[group] = (*found.get(group, ()), grant)
    return found


def _client_secret(settings: Settings) -> str | None:
    file, given = settings.oidc_client_secret_file, settings.oidc_client_secret
    if file is None:
        return None if given is None else given.get_secret_value()
    if given is not None:
        raise _setting("FACTORY_OIDC_CLIENT_SECRET", "is set, and so is the file with it.", "Set one of them.")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFault(
            f"FACTORY_OIDC_CLIENT_SECRET_FILE: {str(file)!r} cannot be read: {error}.",
            hint="Name a file that this user may read, with the secret and nothing else.",
        ) from error


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _setting(name: str, problem: str, hint: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {problem}", hint=hint, details=[Detail(name, problem)])


def _shown(found: object) -> str:
    """Return what somebody else wrote as a short text that can be printed."""
    text = str(found)[:200]
    return text if text.isprintable() else repr(text)

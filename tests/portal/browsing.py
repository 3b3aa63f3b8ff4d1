"""A browser, and an OpenID Connect provider to sign in at: a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from factory.ledger import schema
from serve.portal.browser import CSRF_HEADER
from serve.portal.oidc import CALLBACK
from tests.portal.conftest import SETUP, Client, MakeWorld, World

PROGRAM = Path(__file__).with_name("oidc_provider.py")
HERE, THERE = "http://portal", "https://factory.example.com"
CLIENT, SECRET = "portal", "secret-of-the-portal"
COOKIE = "factory_session"


@dataclass(frozen=True)
class Running:
    """A provider that runs."""

    issuer: str

    def does(self, **control: Any) -> None:
        """Say who signs in next, and what the provider does wrong."""
        assert httpx.post(f"{self.issuer}/control", json=control, trust_env=False).status_code == 204


@contextmanager
def providing() -> Iterator[Running]:
    """Run a provider on a free port."""
    command = [sys.executable, str(PROGRAM), *(f"{where}{CALLBACK}" for where in (HERE, THERE))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        try:
            yield Running(json.loads(running.stdout.readline())["issuer"])
        finally:
            running.kill()


def with_ann(make_world: MakeWorld, provider: Running, **changes: Any) -> World:
    """Return a portal whose people sign in at a provider; ann is in both teams."""
    world = make_world(**configured(provider, **changes))
    world.ledger.add_member("growth", "oidc|7", email="ann@example.com", scopes=["read", "submit"], by=SETUP)
    world.ledger.add_member("risk", "oidc|7", scopes=["admin"], by=SETUP)
    return world


def configured(provider: Running, **changes: Any) -> dict[str, Any]:
    base = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET, "public_url": HERE}
    return base | changes


@dataclass
class Browser:
    """A browser: keeps cookies, and follows the way to the provider and back itself."""

    world: World
    cookies: dict[str, str] = field(default_factory=dict)
    address: str = "10.0.0.7"

    def __call__(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        headers = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items() if value)}
        client = Client(self.world.app, None, address=self.address, headers=headers if headers["cookie"] else {})
        response = client(method, url if url.startswith("http") else f"{HERE}{url}", **arguments)
        for one in response.headers.get_list("set-cookie"):
            name, _, value = one.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return response

    def begin(self, following: str = "/variants") -> str:
        """Go to the provider, and return the address that it sends the browser back to."""
        response = self("GET", "/auth/login", params={"next": following})
        assert response.status_code == 303, response.text
        there = httpx.get(response.headers["location"], trust_env=False)
        assert there.status_code == 302, there.text
        return there.headers["location"]

    def sign_in(self, following: str = "/variants") -> httpx.Response:
        return self("GET", self.begin(following))

    @property
    def session(self) -> dict[str, Any]:
        response = self("GET", "/auth/session")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def change(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        """Make a change as a page of the portal does."""
        return self(method, url, headers={CSRF_HEADER: self.session["csrf_token"]}, **arguments)


def sessions(world: World) -> int:
    with world.ledger._read() as connection:
        return len(connection.execute(select(schema.sessions)).all())

"""A browser, and a portal that it signs in to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx
from sqlalchemy import select

from factory.ledger import schema
from serve.portal.browser import CSRF_HEADER
from tests.portal.conftest import SETUP, Client, MakeWorld, World
from tests.portal.providing import HERE, Running, configured


def with_ann(make_world: MakeWorld, provider: Running, **changes: Any) -> World:
    """Return a portal whose people sign in at a provider; ann is in both teams."""
    world = make_world(**configured(provider, **changes))
    world.ledger.add_member("growth", "oidc|7", email="ann@example.com", scopes=["read", "submit"], by=SETUP)
    world.ledger.add_member("risk", "oidc|7", scopes=["admin"], by=SETUP)
    return world


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

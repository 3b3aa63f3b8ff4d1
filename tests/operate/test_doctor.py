"""What the doctor says of sign-in and of the ledger; the rest of it is tried on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from factory.operate import doctor
from factory.operate.doctor import Check
from factory.settings import Settings

ISSUER = "https://idp.example.com/realms/staff"


def said(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception, **settings: Any) -> Check:
    """Return what is said of sign-in where a provider answers so."""

    def get(url: str, **_: object) -> httpx.Response:
        assert url == f"{ISSUER}/.well-known/openid-configuration"
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(httpx, "get", get)
    (check,) = doctor._sign_in(Settings(_env_file=None, **settings))
    return check


def named(issuer: str) -> httpx.Response:
    return httpx.Response(200, json={"issuer": issuer})


PORTAL: dict[str, Any] = {
    "oidc_issuer": ISSUER,
    "oidc_client_id": "factory",
    "public_url": "https://factory.example.com",
}


def test_a_provider_is_well_where_it_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    check = said(monkeypatch, named(ISSUER), **PORTAL)
    assert (check.state, "https://factory.example.com/auth/callback" in check.message) == ("ok", True)
    assert "by tokens only" in said(monkeypatch, named(ISSUER)).message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.ConnectError("no"), "does not answer"),
        (httpx.Response(200, text="<h1>Hello</h1>"), "does not answer"),
        (httpx.Response(200, json=["x"]), "calls itself None"),
        (named(f"{ISSUER}/"), f"calls itself '{ISSUER}/'"),
    ],
    ids=str,
)
def test_a_provider_that_is_not_is_told(
    answer: httpx.Response | Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = said(monkeypatch, answer, **PORTAL)
    assert (check.state, message in check.message) == ("wrong", True), check
    assert "FACTORY_OIDC_ISSUER" in check.hint


def test_a_client_without_an_id_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check = said(monkeypatch, named(ISSUER), oidc_issuer=ISSUER)
    assert (check.state, check.message) == ("wrong", "FACTORY_OIDC_CLIENT_ID is not set")


def test_the_ledgers_password_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Postgres:
        url = "postgresql+psycopg://factory:***@db/factory"

        def __enter__(self) -> Postgres:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def requests(self, *, limit: int) -> list[object]:
            return []

    monkeypatch.setattr(doctor.Ledger, "open", lambda _url: Postgres())
    settings = Settings(_env_file=None, home=tmp_path, ledger_url="postgresql://factory:s3cr3t@db/factory")
    (check,) = doctor._ledger(settings)
    assert "s3cr3t" not in check.message
    assert "***" in check.message

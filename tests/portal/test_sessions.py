"""Sessions of browsers: their cookies, their ends, and changes that pages of other sites would like to make."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from factory.ledger import Refusal
from factory.ledger.moments import now
from serve.portal.browser import CSRF_HEADER
from serve.portal.oidc import CALLBACK
from tests.answers import error_of
from tests.portal.browsing import Browser, sessions, with_ann
from tests.portal.conftest import SETUP, MakeWorld, World, fields_of
from tests.portal.providing import COOKIE, HERE, THERE, Running, configured


@pytest.fixture
def world(make_world: MakeWorld, provider: Running) -> World:
    return with_ann(make_world, provider)


# --- cookies and ends --------------------------------------------------------------------


def test_cookies_are_for_this_host_only_and_out_of_scripts_reach(make_world: MakeWorld, provider: Running) -> None:
    world = make_world(**configured(provider, public_url=THERE))
    world.ledger.add_member("growth", "oidc|7", scopes=["read"], by=SETUP)
    browser = Browser(world)
    begun = browser("GET", "/auth/login")
    response = browser("GET", httpx.get(begun.headers["location"], trust_env=False).headers["location"])
    for one in [*begun.headers.get_list("set-cookie"), *response.headers.get_list("set-cookie")]:
        name, *attributes = one.lower().split("; ")
        assert name.startswith("__host-factory_")
        assert {"httponly", "secure", "samesite=lax", "path=/"} <= set(attributes)
        assert not [a for a in attributes if a.startswith("domain")]
    assert browser.cookies["__Host-factory_sign_in"] == ""
    assert browser("GET", "/api/v1/me").status_code == 200


def test_a_sign_in_gives_a_new_secret_and_ends_the_session_before(world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    first = dict(browser.cookies)
    browser.sign_in()
    assert browser.cookies[COOKIE] != first[COOKIE]
    error_of(Browser(world, first)("GET", "/api/v1/me"), 401)
    assert sessions(world) == 1


def test_signing_out_here_and_everywhere(world: World) -> None:
    here, there, elsewhere = Browser(world), Browser(world), Browser(world)
    for browser in (here, there, elsewhere):
        browser.sign_in()
    kept = Browser(world, dict(here.cookies))
    assert here.change("POST", "/auth/logout").status_code == 204
    assert here.cookies[COOKIE] == ""
    error_of(kept("GET", "/api/v1/me"), 401)
    assert there.change("POST", "/auth/logout", json={"everywhere": True}).status_code == 204
    error_of(elsewhere("GET", "/api/v1/me"), 401)
    assert sessions(world) == 0


def test_an_operator_signs_somebody_out(world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    error_of(world("growth/admin").delete("/people/oidc|7/sessions"), 403)
    assert world("operator").delete("/people/oidc|7/sessions").status_code == 204
    error_of(browser("GET", "/api/v1/me"), 401)


def test_a_session_ends_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = Browser(world)
    browser.sign_in()
    later = now() + timedelta(hours=12, seconds=1)
    monkeypatch.setattr("factory.ledger.moments.clock", lambda: later)
    assert error_of(browser("GET", "/api/v1/me"), 401)["message"] == Refusal.NO_SESSION.value


# --- sessions from other pages -----------------------------------------------------------


@pytest.mark.parametrize("header", [{}, {CSRF_HEADER: "x"}, {CSRF_HEADER: ""}])
def test_a_change_with_a_cookie_needs_what_only_our_page_knows(header: dict[str, str], world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    for method, url in [("POST", "/api/v1/requests"), ("DELETE", "/api/v1/tokens/t-1"), ("POST", "/auth/logout")]:
        error = error_of(browser(method, url, headers=header, json={}), 403)
        assert fields_of(error) == {CSRF_HEADER}
    assert browser("GET", "/api/v1/me").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_another_origin_changes_nothing_whatever_it_knows(headers: dict[str, str], world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    known = {CSRF_HEADER: browser.session["csrf_token"], **headers}
    assert fields_of(error_of(browser("POST", "/auth/logout", headers=known), 403)) == {"Origin"}
    body = {"token": world.secrets["growth/read"]}
    assert fields_of(error_of(Browser(world)("POST", "/auth/token", headers=headers, json=body), 403)) == {"Origin"}
    ours = {CSRF_HEADER: known[CSRF_HEADER], "origin": HERE, "sec-fetch-site": "same-origin"}
    assert browser("POST", "/auth/logout", headers=ours).status_code == 204


def test_another_sessions_csrf_token_is_no_use(world: World) -> None:
    one, other = Browser(world), Browser(world)
    one.sign_in()
    other.sign_in()
    error_of(one("POST", "/auth/logout", headers={CSRF_HEADER: other.session["csrf_token"]}), 403)


# --- tokens in browsers ------------------------------------------------------------------


def test_a_token_opens_a_session_that_ends_with_it(make_world: MakeWorld) -> None:
    world = make_world(public_url=HERE)
    issued = world.ledger.issue_token("page", team="growth", scopes=["read", "deploy"], by=SETUP)
    browser = Browser(world)
    view = browser("POST", "/auth/token", json={"token": issued.secret})
    assert (view.status_code, view.json()["teams"]) == (200, [{"team": "growth", "scopes": ["read", "deploy"]}])
    assert issued.secret not in str(browser.cookies)
    assert browser("GET", "/api/v1/me").json()["token_id"] == issued.record.id
    assert browser.session["csrf_token"] == view.json()["csrf_token"]
    world.ledger.revoke_token(issued.record.id, by=SETUP)
    assert "revoked" in error_of(browser("GET", "/api/v1/me"), 401)["message"]


def test_a_token_that_is_not_good_opens_no_session(make_world: MakeWorld) -> None:
    world = make_world(public_url=HERE)
    browser = Browser(world)
    error_of(browser("POST", "/auth/token", json={"token": "mvf_guess"}), 401)
    job = world.ledger.issue_token("job", team="growth", scopes=["read"], request_id=world.submitted(), by=SETUP)
    error_of(browser("POST", "/auth/token", json={"token": job.secret}), 403)
    assert (browser.cookies, sessions(world)) == ({}, 0)
    error_of(browser("GET", "/auth/login"), 404)
    error_of(browser("GET", CALLBACK), 404)
    error_of(world("growth/read").get(f"{HERE}/auth/session"), 403)


def test_a_session_of_ended_browsers_shuts_nobody_out(world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    ended = Browser(world, dict(browser.cookies))
    browser.change("POST", "/auth/logout")
    assert {ended("GET", "/api/v1/me").status_code for _ in range(40)} == {401}
    assert Browser(world, {COOKIE: "mvs_guess"})("GET", "/api/v1/me").status_code == 401


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 204),
        ("http://127.0.0.1:8080", 204),
        ("http://[::1]:8080", 204),
        ("http://localhost", 403),
        ("http://localhost:8081", 403),
        ("https://localhost:8080", 403),
        ("http://localhost.evil.example:8080", 403),
    ],
)
def test_on_the_machine_itself_any_of_its_names_is_ours(origin: str, status: int, make_world: MakeWorld) -> None:
    local = make_world()
    browser = Browser(local)
    given = browser("POST", "/auth/token", json={"token": local.secrets["growth/read"]})
    headers = {CSRF_HEADER: given.json()["csrf_token"], "origin": origin}
    assert browser("POST", "/auth/logout", headers=headers).status_code == status

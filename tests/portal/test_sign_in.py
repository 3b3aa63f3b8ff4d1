"""People sign in at a real OpenID Connect provider: what is good opens a session, and what is not never does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import select

from factory.errors import InvalidRequest, StorageFault
from factory.ledger import AuditQuery, Refusal, schema
from factory.ledger.schema import now
from factory.settings import Settings
from serve.portal.browser import CSRF_HEADER
from serve.portal.oidc import CALLBACK, Provider, teams_of_groups
from tests.portal.conftest import SETUP, Client, MakeWorld, World, error_of, fields_of

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


@pytest.fixture(scope="module")
def process() -> Iterator[Running]:
    command = [sys.executable, str(PROGRAM), *(f"{where}{CALLBACK}" for where in (HERE, THERE))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        yield Running(json.loads(running.stdout.readline())["issuer"])
        running.kill()


@pytest.fixture
def provider(process: Running) -> Running:
    process.does()
    return process


@pytest.fixture
def world(make_world: MakeWorld, provider: Running) -> World:
    """A portal whose people sign in at the provider; ann is in both teams."""
    world = make_world(**configured(provider))
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


# --- the good way --------------------------------------------------------------------


def test_who_signs_in_may_what_the_teams_give(world: World) -> None:
    browser = Browser(world)
    response = browser.sign_in("/variants?team=growth")
    assert (response.status_code, response.headers["location"]) == (303, "/variants?team=growth")
    session = browser.session
    assert (session["me"]["name"], session["me"]["team"], session["email"]) == (
        "person:oidc|7",
        "growth",
        "ann@example.com",
    )
    assert session["teams"] == [
        {"team": "growth", "scopes": ["read", "submit"]},
        {"team": "risk", "scopes": ["admin"]},
    ]
    assert browser("GET", "/api/v1/me").json()["expires"] == session["expires"]
    assert browser("GET", "/api/v1/requests").status_code == 200
    error_of(browser("GET", "/api/v1/audit"), 403)
    assert browser.change("PUT", "/auth/session", json={"team": "risk"}).status_code == 204
    assert browser("GET", "/api/v1/audit").status_code == 200
    error_of(browser("GET", "/api/v1/teams/growth"), 404)
    (row,) = world.ledger.audit_page(AuditQuery(action="session.start")).items
    assert (row.who, row.origin, row.detail["email"]) == ("person:oidc|7", "10.0.0.7", "ann@example.com")


def test_what_a_person_does_is_in_the_audit_log_by_the_providers_id(world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    browser.change("PUT", "/auth/session", json={"team": "risk"})
    made = browser.change("POST", "/api/v1/tokens", json={"name": "mine", "scopes": ["read"]})
    assert made.json()["token"]["created_by"] == "person:oidc|7"
    assert world.ledger.audit_page(limit=1).items[0].who == "person:oidc|7"


def test_taking_a_person_out_of_a_team_counts_at_once(world: World) -> None:
    browser = Browser(world)
    browser.sign_in()
    world.ledger.remove_member("growth", "oidc|7", by=SETUP)
    assert browser.session["me"]["team"] == "risk"
    world.ledger.remove_member("risk", "oidc|7", by=SETUP)
    assert error_of(browser("GET", "/api/v1/me"), 401)["message"] == Refusal.NO_TEAM.value


def test_groups_give_teams_until_the_session_ends(make_world: MakeWorld, provider: Running) -> None:
    world = make_world(**configured(provider, oidc_teams="data=growth:read+deploy,platform=*:admin"))
    provider.does(person={"sub": "new", "groups": ["data", "unheard-of"]})
    browser = Browser(world)
    browser.sign_in()
    assert browser.session["teams"] == [{"team": "growth", "scopes": ["read", "deploy"]}]
    assert browser.session["email"] == ""
    provider.does(person={"sub": "root", "groups": "platform"})
    operator = Browser(world)
    operator.sign_in()
    assert operator.session["me"]["team"] is None
    assert operator.change("POST", "/api/v1/teams", json={"name": "sales"}).status_code == 201


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
    monkeypatch.setattr("factory.ledger.schema.clock", lambda: later)
    assert error_of(browser("GET", "/api/v1/me"), 401)["message"] == Refusal.NO_SESSION.value


# --- what is not good ------------------------------------------------------------------


def refused(world: World, status: int, message: str, *, browser: Browser | None = None) -> None:
    """Check that a sign-in is refused with a clear answer, and that there is no session."""
    browser = browser or Browser(world)
    error = error_of(browser.sign_in(), status)
    assert message in error["message"]
    assert not browser.cookies.get(COOKIE)
    assert sessions(world) == 0


WRONG = {
    "nonce": ({"nonce": "another"}, "'nonce'"),
    "no nonce": ({"nonce": None}, "nonce"),
    "audience": ({"aud": "another-client"}, "'aud'"),
    "no audience": ({"aud": None}, "aud"),
    "authorized party": ({"aud": [CLIENT, "other"], "azp": "other"}, "azp"),
    "issuer": ({"iss": "https://evil.example"}, "'iss'"),
    "no issuer": ({"iss": None}, "iss"),
    "expired": ({"exp": 1_700_000_000}, "expired"),
    "no expiry": ({"exp": None}, "exp"),
    "to come": ({"iat": 4_000_000_000}, "issued in the future"),
    "no subject": ({"sub": None}, "sub"),
    "numeric subject": ({"sub": 7}, "sub"),
    "another access token's": ({"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}, "at_hash"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_id_token_that_is_not_good_opens_nothing(wrong: str, world: World, provider: Running) -> None:
    claims, message = WRONG[wrong]
    provider.does(claims=claims)
    refused(world, 401, message)


@pytest.mark.parametrize("key", ["foreign", "shared", "second"])
def test_an_id_token_of_another_key_opens_nothing(key: str, world: World, provider: Running) -> None:
    provider.does(key=key)
    refused(world, 401, "is not good")


def test_a_key_that_the_provider_has_changed_is_looked_up(
    world: World, provider: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Browser(world).sign_in().status_code == 303
    provider.does(key="second", published=["first", "second"])
    error_of(Browser(world).sign_in(), 401)  # looked up a moment ago
    monkeypatch.setattr("serve.portal.oidc.KEYS_S", 0.0)
    assert Browser(world).sign_in().status_code == 303


def test_an_unknown_person_is_told_the_id_by_which_an_admin_adds_it(world: World, provider: Running) -> None:
    provider.does(person={"sub": "stranger", "email": "ann@example.com"})
    browser = Browser(world)
    error = error_of(browser.sign_in(), 403)
    assert "'stranger' is in no team" in error["message"]
    assert "factory teams add" in error["hint"]
    assert (sessions(world), browser.cookies.get(COOKIE)) == (0, None)


def test_an_answer_to_another_sign_in_opens_nothing(world: World) -> None:
    """A page of somebody else sends its victim here, with its own code or with one that it stole."""
    attacker, victim = Browser(world), Browser(world)
    stolen = attacker.begin()
    victim.begin()
    error_of(victim("GET", stolen), 401)  # the state is the attacker's
    query = parse_qs(urlsplit(stolen).query)
    mine = parse_qs(urlsplit(victim.begin()).query)
    mixed = {"code": query["code"][0], "state": mine["state"][0]}
    error_of(victim("GET", CALLBACK, params=mixed), 401)  # PKCE's verifier is not the code's
    error_of(Browser(world)("GET", stolen), 401)  # a browser that has begun nothing
    assert sessions(world) == 0


def test_a_code_is_good_once(world: World) -> None:
    browser = Browser(world)
    back = browser.begin()
    begun = dict(browser.cookies)
    assert browser("GET", back).status_code == 303
    error_of(Browser(world, begun)("GET", back), 401)
    assert sessions(world) == 1


@pytest.mark.parametrize("change", ["state", "cookie", "old", "next", "garbage"])
def test_a_sign_in_that_was_changed_on_the_way_opens_nothing(
    change: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser(world)
    back = browser.begin()
    secret, begun, following = browser.cookies["factory_sign_in"].split(".")
    if change == "state":
        back = back.replace("state=", "state=x")
    elif change == "old":
        passed = time.time() + 601
        monkeypatch.setattr("serve.portal.browser.time.time", lambda: passed)
    else:
        changed = {"cookie": f"{secret[::-1]}.{begun}.{following}", "next": f"{secret}.{begun}.Ly9ldmlsLmV4YW1wbGU="}
        browser.cookies["factory_sign_in"] = changed.get(change, "a.b.c")
    error_of(browser("GET", back), 401)
    assert sessions(world) == 0


def test_what_the_provider_says_instead_of_a_code(world: World) -> None:
    browser = Browser(world)
    state = parse_qs(urlsplit(browser.begin()).query)["state"][0]
    error = error_of(browser("GET", CALLBACK, params={"state": state, "error": "access_denied"}), 401)
    assert "access_denied" in error["message"]
    error_of(browser("GET", CALLBACK, params={"state": state}), 401)
    error = error_of(browser("GET", CALLBACK, params={"state": state, "code": "x", "iss": "https://evil.example"}), 401)
    assert "Another provider" in error["message"]
    error_of(browser("GET", CALLBACK, params={"state": state, "code": "made-up", "session_state": "x"}), 401)


def test_a_provider_that_is_gone_is_503_and_tokens_still_work(make_world: MakeWorld) -> None:
    world = make_world(oidc_issuer="http://127.0.0.1:9", oidc_client_id=CLIENT, public_url=HERE)
    response = Browser(world)("GET", "/auth/login")
    error = error_of(response, 503)
    assert (error["code"], response.headers["retry-after"]) == ("service_fault", "1")
    assert "127.0.0.1" not in response.text
    assert world("growth/read").get("/me").status_code == 200


PLAYED = {
    "keys gone": {"answer": {"/keys": (500, "no")}},
    "no keys": {"answer": {"/keys": (200, "[]")}},
    "token gone": {"answer": {"/token": (502, "<h1>Bad gateway</h1>")}},
    "no JSON": {"answer": {"/token": (200, "<h1>Hello</h1>")}},
}


@pytest.mark.parametrize("played", PLAYED)
def test_a_provider_that_answers_strangely_is_503_and_never_a_session(
    played: str, world: World, provider: Running
) -> None:
    browser = Browser(world)
    back = browser.begin()
    provider.does(**PLAYED[played])
    assert error_of(browser("GET", back), 503)["code"] == "service_fault"
    provider.does()
    assert sessions(world) == 0
    assert browser.sign_in().status_code == 303


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "https://evil.example"},
        {"answer": {"/.well-known/openid-configuration": (200, "{}")}},
        {"answer": {"/.well-known/openid-configuration": (302, "")}},
        {"answer": {"/.well-known/openid-configuration": (200, "[1]")}},
    ],
    ids=str,
)
def test_a_provider_that_is_not_what_the_settings_say(wrong: dict[str, Any], world: World, provider: Running) -> None:
    provider.does(**wrong)
    error_of(Browser(world)("GET", "/auth/login"), 503)


def test_refused_sign_ins_are_counted_by_address(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = {Browser(world)("GET", CALLBACK, params={"state": "x"}).status_code for _ in range(40)}
    assert statuses == {401, 429}
    assert Browser(world, address="10.0.0.8").sign_in().status_code == 303


@pytest.mark.parametrize(
    "following", ["//evil.example", "/\\evil.example", "https://evil.example", "evil", "", "/a b", "/a\r\nb", "/é"]
)
def test_a_sign_in_leads_nowhere_else(following: str, world: World) -> None:
    error = error_of(Browser(world)("GET", "/auth/login", params={"next": following}), 400)
    assert fields_of(error) == {"next"}


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


# --- settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"oidc_client_id": None}, "FACTORY_OIDC_CLIENT_ID"),
        ({"oidc_issuer": "http://idp.example.com"}, "FACTORY_OIDC_ISSUER"),
        ({"oidc_teams": "growth:read"}, "FACTORY_OIDC_TEAMS"),
        ({"oidc_teams": "data=growth:root"}, "FACTORY_OIDC_TEAMS"),
        ({"oidc_teams": "data=Growth!:read"}, "FACTORY_OIDC_TEAMS"),
        ({"oidc_client_secret_file": "here"}, "FACTORY_OIDC_CLIENT_SECRET"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_the_start(changes: dict[str, Any], named: str) -> None:
    base = {"oidc_issuer": "https://idp.example.com", "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
    with pytest.raises(InvalidRequest, match=named):
        Provider.of(Settings(_env_file=None, **base | changes))


def test_the_secret_comes_from_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    chosen = Settings(
        _env_file=None, oidc_issuer="https://idp.example.com", oidc_client_id=CLIENT, oidc_client_secret_file=file
    )
    with pytest.raises(StorageFault, match="cannot be read"):
        Provider.of(chosen)
    file.write_text(f"{SECRET}\n")
    provider = Provider.of(chosen)
    assert provider is not None
    assert provider.client_secret == SECRET
    assert SECRET not in repr(provider)
    direct = Settings(_env_file=None, oidc_client_secret=SECRET)
    assert SECRET not in repr(direct)
    assert "oidc_client_secret" not in direct.model_dump()


def test_a_group_may_give_several_teams() -> None:
    given = teams_of_groups("data=growth:read,data=risk:admin, cn=ops=*:read")
    assert [grant.team for grant in given["data"]] == ["growth", "risk"]
    assert given["cn=ops"][0].team is None

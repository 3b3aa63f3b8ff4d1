"""People sign in at a real OpenID Connect provider: what is good opens a session, and what is not never does."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from factory.errors import InvalidRequest, StorageFault
from factory.ledger import AuditQuery, Ledger, Refusal
from factory.settings import Settings
from serve.portal.oidc import AT_ONCE, CALLBACK, Provider, teams_of_groups
from tests.answers import error_of
from tests.portal.browsing import Browser, sessions, with_ann
from tests.portal.conftest import SETUP, MakeWorld, World, fields_of
from tests.portal.providing import CLIENT, COOKIE, HERE, SECRET, Running, configured
from tests.serving import portal


@pytest.fixture
def world(make_world: MakeWorld, provider: Running) -> World:
    return with_ann(make_world, provider)


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


def test_all_of_it_over_real_connections(provider: Running, tmp_path: Path) -> None:
    """A browser's own cookie jar and redirects, a listening portal and a listening provider."""

    def settings(url: str) -> Settings:
        home = tmp_path / "home"
        home.mkdir()
        return Settings(_env_file=None, home=home, **configured(provider, public_url=url))

    with portal(settings) as url:
        provider.does(redirect_uris=[f"{url}{CALLBACK}"], person={"sub": "oidc|7", "email": "ann@example.com"})
        with Ledger.open(f"sqlite:///{tmp_path / 'home' / 'ledger.db'}") as ledger:
            ledger.create_team("growth", by=SETUP)
            ledger.add_member("growth", "oidc|7", scopes=["read", "admin"], by=SETUP)
        with httpx.Client(base_url=url, follow_redirects=True, trust_env=False) as browser:
            came = browser.get("/auth/login", params={"next": "/api/v1/me"})
            assert (came.status_code, came.json()["name"], len(came.history)) == (200, "person:oidc|7", 3)
            token = browser.get("/auth/session").json()["csrf_token"]
            ours = {"x-csrf-token": token, "origin": url, "sec-fetch-site": "same-origin"}
            made = browser.post("/api/v1/tokens", json={"name": "mine", "scopes": ["read"]}, headers=ours)
            assert made.json()["token"]["created_by"] == "person:oidc|7"
            assert browser.post("/auth/logout", headers=ours).status_code == 204
            assert browser.get("/api/v1/me").status_code == 401
            assert list(browser.cookies) == []


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


def test_a_provider_that_hangs_holds_up_nobody_else(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.portal.oidc.TURN_S", 0.01)
    codes: list[str] = []

    def begin() -> None:
        codes.append(error_of(Browser(world)("GET", "/auth/login"), 503)["code"])

    with socket.create_server(("127.0.0.1", 0)) as silent:
        issuer = f"http://127.0.0.1:{silent.getsockname()[1]}"
        world = make_world(oidc_issuer=issuer, oidc_client_id=CLIENT, public_url=HERE)
        turns = world.app.state.portal.provider._turns
        waiting = [threading.Thread(target=begin) for _ in range(AT_ONCE)]
        for thread in waiting:
            thread.start()
        hanging, _ = silent.accept()
        while turns.acquire(blocking=False):  # until all of them wait
            turns.release()
            time.sleep(0.01)
        begin()
        assert codes == ["overloaded"]
        assert world("growth/read").get("/me").status_code == 200
    hanging.close()
    for thread in waiting:
        thread.join()
    assert codes == ["overloaded", *["service_fault"] * AT_ONCE]


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

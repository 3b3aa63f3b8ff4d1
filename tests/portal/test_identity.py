"""Who may do what: tokens, scopes, teams, jobs, and how often; from which address."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from factory.ledger.moments import now
from factory.settings import Settings
from factory.spec import SCOPES, Actor
from factory.testing.jobs import FakeJobs
from serve.buckets import REMEMBERED, Buckets, KnownSecrets
from serve.portal.app import create_app
from serve.portal.context import FAILED_SIGN_INS
from tests.answers import error_of
from tests.portal.conftest import Client, MakeWorld, World, fields_of

ANN = Actor(who="ann")

NEEDED = {
    "submit": [
        *("create_batch", "delete_batch", "pause_batch", "resume_batch", "run_batch"),
        "submit_request",
        "cancel_request",
        "retry_request",
        "upload_dataset",
        "forget_dataset",
        "share",
        "unshare",
    ],
    "deploy": [
        *("promote_variant", "roll_back_variant", "set_deployment"),
        *("approve_proposal", "reject_proposal"),
        *("export_version", "look_at_onnx"),
    ],
    "publish": ["publish_recipe", "withdraw_recipe"],
    "admin": [
        *("create_team", "change_team", "archive_team", "list_members", "put_member", "remove_member"),
        *("list_tokens", "create_token", "list_audit", "end_sessions", "set_priority"),
    ],
    "read": [
        *(
            "list_requests",
            "show_request",
            "list_trials",
            "show_progress",
            "screen_dataset",
            "list_attempts",
            "follow_events",
            "read_log",
        ),
        *("quote_request", "list_datasets", "show_dataset", "list_recipes", "show_recipe", "list_variants"),
        *(
            "show_variant",
            "show_version",
            "show_report",
            "try_version",
            "list_deployments",
            "show_deployment",
            "show_traffic",
            "show_history",
            "list_teams",
        ),
        *("list_proposals", "show_proposal", "try_version"),
        *("show_team", "list_shares", "list_usage", "list_variant_costs", "show_metrics", "show_cluster"),
        *("list_feature_services", "show_feature_service", "list_recipe_versions"),
        *("list_batches", "show_batch", "list_batch_runs", "show_batch_log", "show_due_times"),
    ],
    "any": ["show_me", "show_token", "rotate_token", "revoke_token"],
    "session": ["show_session", "choose_team", "sign_out"],
    "none": ["show_health", "show_readiness", "begin_sign_in", "finish_sign_in", "start_session"],
}


def routes() -> dict[str, tuple[str, str]]:
    """Return name → method and path of every route."""
    app = create_app(Settings(_env_file=None), jobs=FakeJobs())
    found = {}
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            found[operation["operationId"]] = (method.upper(), path)
    return found


@pytest.fixture(scope="module")
def all_routes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("routes"))
        return routes()


def test_every_route_asks_for_what_is_promised(all_routes: dict[str, tuple[str, str]], world: World) -> None:
    promised = {name: scope for scope, names in NEEDED.items() for name in names}
    assert set(promised) == set(all_routes)
    values = {
        "request_id": "r-1",
        "digest": "0" * 64,
        "name": "growth",
        "version": "1",
        "subject": "ann",
        "number": "1",
    }
    for name, (method, path) in all_routes.items():
        url = path.format(**values, token_id="t-1", proposal_id="p-1")
        scope = promised[name]
        if scope == "none":
            assert Client(world.app, None)(method, f"http://portal{url}").status_code in (200, 400, 404, 503)
            continue
        error_of(Client(world.app, None)(method, f"http://portal{url}"), 401)
        if scope == "session":
            assert "session" in error_of(world("growth/admin")(method, f"http://portal{url}"), 403)["message"]
        if scope in ("any", "session"):
            continue
        lacking = world("growth/only_submit") if scope != "submit" else world("growth/read")
        error = error_of(lacking(method, f"http://portal{url}"), 403)
        assert f"the scope '{scope}'" in error["message"], name
        assert error["details"] == [{"field": "scope", "message": scope}]


def test_admin_is_every_scope(world: World) -> None:
    assert world("growth/admin").post("/requests", json=world.order()).status_code == 202


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic eDp5", "mvf_x", "Bearer x", "Bearer mvf_ä"])
def test_without_a_good_token_nothing_is_told(header: str | None, world: World) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    response = world(None).get("/requests", headers=headers)
    error = error_of(response, 401)
    assert response.headers["www-authenticate"] == 'Bearer realm="factory"'
    assert "Authorization: Bearer" in error["hint"]


def test_revocation_expiry_and_archiving_count_at_once(world: World) -> None:
    issued = world.ledger.issue_token("ci", team="growth", scopes=["read"], by=ANN)
    client = Client(world.app, issued.secret)
    assert client.get("/me").json()["team"] == "growth"
    world.ledger.revoke_token(issued.record.id, by=ANN)
    assert "revoked" in error_of(client.get("/me"), 401)["message"]
    soon = now() + timedelta(milliseconds=150)
    short = Client(
        world.app, world.ledger.issue_token("x", team="growth", scopes=["read"], expires=soon, by=ANN).secret
    )
    while datetime.now(UTC) < soon:
        assert short.get("/me").status_code in (200, 401)
    assert "expired" in error_of(short.get("/me"), 401)["message"]
    world.ledger.archive_team("risk", by=ANN)
    assert "archived" in error_of(world("risk/admin").get("/me"), 401)["message"]


def test_a_jobs_token_reads_its_request_and_does_nothing_else(world: World) -> None:
    mine, other = world.submitted(), world.submitted(seed=1)
    issued = world.ledger.issue_token("job", team="growth", scopes=["admin"], request_id=mine, by=ANN)
    job = Client(world.app, issued.secret)
    for part in ("", "/trials", "/attempts", "/events?limit=5"):
        assert job.get(f"/requests/{mine}{part}", headers={"accept": "application/json"}).status_code == 200
    for method, url in [
        ("GET", f"/requests/{other}"),
        ("GET", "/requests"),
        ("GET", "/me"),
        ("GET", "/teams"),
        ("GET", "/tokens"),
        ("POST", f"/requests/{mine}/cancel"),
        ("POST", f"/requests/{mine}/retry"),
        ("POST", "/requests"),
        ("POST", "/tokens"),
        ("POST", f"/tokens/{issued.record.id}/rotate"),
    ]:
        assert mine in error_of(job(method, url), 403)["message"]


def test_a_token_makes_so_many_calls_a_minute(make_world: MakeWorld) -> None:
    world = make_world(requests_a_minute=5)
    statuses = [world("growth/read").get("/me").status_code for _ in range(6)]
    assert statuses == [200] * 5 + [429]
    response = world("growth/read").get("/me")
    error_of(response, 429)
    assert 1 <= int(response.headers["retry-after"]) <= 12
    assert world("growth/admin").get("/me").status_code == 200


def test_failed_sign_ins_are_counted_by_address_and_shut_nobody_else_out(world: World) -> None:
    good = world("growth/read")
    assert good.get("/me").status_code == 200
    stranger = Client(world.app, "mvf_guess")
    statuses = [stranger.get("/me").status_code for _ in range(FAILED_SIGN_INS + 2)]
    assert statuses == [401] * FAILED_SIGN_INS + [429] * 2
    assert good.get("/me").status_code == 200  # known at this address
    assert int(world("growth/admin").get("/me").headers["retry-after"]) >= 1  # not known yet
    assert world("growth/admin", address="10.0.0.8").get("/me").status_code == 200


@pytest.mark.parametrize(
    ("proxies", "peer", "told", "origin"),
    [
        (None, "10.0.0.7", "1.2.3.4", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.7", "6.6.6.6, 1.2.3.4, 10.0.0.9", "1.2.3.4"),
        ("10.0.0.7", "10.0.0.7", "1.2.3.4, 5.6.7.8", "5.6.7.8"),
        ("10.0.0.7", "10.0.0.8", "1.2.3.4", "10.0.0.8"),
        ("10.0.0.7", "10.0.0.7", "", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7", "unknown", "10.0.0.7"),
        ("::1,10.0.0.7", "::1", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_audit_log_has_the_address_that_is_believed(
    proxies: str | None, peer: str, told: str, origin: str, make_world: MakeWorld
) -> None:
    world = make_world(trusted_proxies=proxies)
    client = world("operator", address=peer)
    assert client.post("/teams", json={"name": "sales"}, headers={"x-forwarded-for": told}).status_code == 201
    (row,) = world.ledger.audit_page(limit=1).items
    assert (row.action, row.origin) == ("team.create", origin)


def test_proxies_that_are_no_addresses_are_refused_at_the_start(make_world: MakeWorld) -> None:
    from factory.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match="FACTORY_TRUSTED_PROXIES"):
        make_world(trusted_proxies="proxy.example.com")


def test_what_is_for_all_teams_is_for_operators(world: World) -> None:
    for url in ("http://portal/metrics",):
        assert fields_of(error_of(world("growth/admin").get(url), 403)) == {"team"}
    error_of(world("growth/admin").post("/teams", json={"name": "sales"}), 403)
    error_of(world("growth/admin").post("/teams/growth/archive"), 403)


def test_a_bucket_fills_up_again() -> None:
    time = [0.0]
    buckets = Buckets(60, clock=lambda: time[0])
    assert [buckets.take("a") for _ in range(61)] == [0.0] * 60 + [pytest.approx(1.0)]
    assert buckets.take("b") == 0.0
    time[0] = 1.0
    assert (buckets.wait_s("a"), buckets.take("a")) == (0.0, 0.0)
    assert buckets.take("a") == pytest.approx(1.0)
    time[0] = 100.0
    assert [buckets.take("a") for _ in range(60)] == [0.0] * 60


def test_memory_of_callers_is_bounded() -> None:
    buckets = Buckets(1, most=100, clock=lambda: 0.0)
    assert sum(buckets.take(str(n)) for n in range(1000)) == 0
    assert len(buckets._full_at) <= 101
    known = KnownSecrets()
    for n in range(REMEMBERED + 5):
        known.add(str(n))
    assert "0" not in known
    assert str(REMEMBERED + 4) in known


def test_scopes_are_those_of_the_factory() -> None:
    assert set(NEEDED) - {"any", "session", "none"} <= set(SCOPES)

"""Who may call the predictor: tokens, their scopes, teams and variants, how often, and while the ledger is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from factory.errors import InvalidRequest, NotFound, StorageFault
from factory.spec import Principal
from serve import remembered
from serve.doors import Doors
from serve.remembered import Changes
from tests.answers import error_of

from .calls import CHURN, one
from .conftest import SETUP, Caller, MakePredictor, Shelf


@pytest.fixture
def teams(own_shelf: Shelf, churn: Any) -> Shelf:
    """Two teams with a variant each."""
    for team in ("growth", "risk"):
        own_shelf.ledger.create_team(team, by=SETUP)
        own_shelf.put(f"{team}.churn", churn)
    return own_shelf


def holding(
    shelf: Shelf, make_caller: MakePredictor, *scopes: Any, team: str | None = "growth", **bounds: Any
) -> Caller:
    secret = shelf.ledger.issue_token("caller", team=team, scopes=scopes, by=SETUP, **bounds).secret
    return Caller(make_caller(shelf).app, secret)


def test_every_door_to_a_variant_asks_for_a_token(teams: Shelf, make_caller: MakePredictor) -> None:
    nobody = Caller(make_caller(teams).app, None)
    for method, path in (
        ("POST", CHURN),
        ("POST", "/variants/growth.churn/versions/1/invocations"),
        ("POST", "/variants/growth.churn/explain"),
        ("POST", "/v2/models/growth.churn/infer"),
        ("GET", "/v2/models/growth.churn"),
        ("GET", "/v2/models/growth.churn/ready"),
        ("POST", "/variants/growth.nothing/invocations"),
    ):
        answer = nobody(method, path, content=b"{}")
        assert error_of(answer, 401)["code"] == "unauthorized"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        assert nobody.get(path).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer mvf_nothing", "Bearer " + "x" * 5000]
)
def test_what_is_no_token_opens_nothing(header: str, teams: Shelf, make_caller: MakePredictor) -> None:
    nobody = Caller(make_caller(teams).app, None)
    error_of(nobody.post(**one(), headers={"authorization": header}), 401)


@pytest.mark.parametrize(
    ("scopes", "status"), [(["predict"], 200), (["read"], 200), (["admin"], 200), (["submit"], 403), (["deploy"], 403)]
)
def test_a_scope_is_asked_for(scopes: list[Any], status: int, teams: Shelf, make_caller: MakePredictor) -> None:
    assert holding(teams, make_caller, *scopes).post(**one()).status_code == status


def test_another_teams_variant_does_not_exist_until_it_is_shared(teams: Shelf, make_caller: MakePredictor) -> None:
    ours = holding(teams, make_caller, "predict")
    for path in ("/variants/risk.churn/invocations", "/variants/risk.chrun/invocations", "/variants/none/invocations"):
        error = error_of(ours.post(**one(path)), 404)
        assert "risk.churn'?" not in error["message"], "nothing of another team is named"
    near = error_of(ours.post(**one("/variants/growth.chrun/invocations")), 404)
    assert "Did you mean 'growth.churn'?" in near["message"]
    teams.ledger.share("variant", "risk.churn", team="risk", with_team="growth", by=SETUP)
    fresh = Caller(make_caller(teams).app, ours.secret)
    assert fresh.post(**one("/variants/risk.churn/invocations")).status_code == 200
    everything = holding(teams, make_caller, "predict", team=None)
    assert everything.post(**one("/variants/risk.churn/invocations")).status_code == 200


def test_a_token_may_be_for_some_variants_only(teams: Shelf, churn: Any, make_caller: MakePredictor) -> None:
    teams.put("growth.score", churn)
    bounded = holding(teams, make_caller, "predict", variants="growth.ch*")
    assert bounded.post(**one()).status_code == 200
    error = error_of(bounded.post(**one("/variants/growth.score/invocations")), 403)
    assert "growth.ch*" in error["message"]
    for scopes, pattern in ((["predict", "read"], "growth.*"), (["predict"], "GROWTH"), (["predict"], "")):
        with pytest.raises(InvalidRequest, match="variants"):
            teams.ledger.issue_token("x", team="growth", scopes=scopes, variants=pattern, by=SETUP)
    issued = teams.ledger.issue_token("x", team="growth", scopes=["predict"], variants="growth.ch*", by=SETUP)
    assert teams.ledger.rotate_token(issued.record.id, by=SETUP).record.variants == "growth.ch*"


def test_a_jobs_token_predicts_nothing(teams: Shelf, make_caller: MakePredictor) -> None:
    request_id = teams.ledger.variant("growth.churn", 1).request_id
    job = holding(teams, make_caller, "read", request_id=request_id)
    error_of(job.post(**one()), 403)


def test_a_revocation_counts_within_a_second(
    teams: Shelf, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(remembered, "clock", lambda: clock[0])
    issued = teams.ledger.issue_token("caller", team="growth", scopes=["predict"], by=SETUP)
    caller = Caller(make_caller(teams).app, issued.secret)
    assert caller.post(**one()).status_code == 200
    teams.ledger.revoke_token(issued.record.id, by=SETUP)
    clock[0] += remembered.MAX_AGE_S
    error_of(caller.post(**one()), 401)


def test_a_token_makes_so_many_calls_a_minute(teams: Shelf, make_caller: MakePredictor) -> None:
    app = make_caller(teams, a_minute=2).app
    first, second = (
        Caller(app, teams.ledger.issue_token(name, team="growth", scopes=["predict"], by=SETUP).secret)
        for name in ("a", "b")
    )
    assert [first.post(**one()).status_code for _ in range(3)] == [200, 200, 429]
    assert int(first.post(**one()).headers["retry-after"]) >= 1
    assert second.post(**one()).status_code == 200, "others have a number of their own"


# --- without the ledger ------------------------------------------------------------


class Keys:
    """A ledger that can be away, and counts how often it is asked."""

    def __init__(self, holder: Principal) -> None:
        self.holder, self.is_away, self.asked = holder, False, 0

    def authenticate(self, _: str) -> Principal:
        self.asked += 1
        if self.is_away:
            raise StorageFault("away", hint="wait")
        return self.holder

    def may_see(self, *_: str) -> bool:
        return True

    def variant(self, name: str, version: int, *, seen_by: str | None = None) -> Any:
        raise NotFound(f"{name}/{version} {seen_by}", hint="none")


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_a_known_caller_stays_known_for_a_quarter_of_an_hour_without_the_ledger(
    thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(remembered, "clock", lambda: clock[0])
    keys = Keys(Principal(name="token:a/t-1", team="growth", scopes=frozenset({"predict"}), token_id="t-1"))

    async def calls() -> None:
        doors = Doors(keys, thread, a_minute=1e9, changes=Changes(lambda: 1, thread))

        async def admit(secret: str) -> None:
            await doors.admit(f"Bearer {secret}", "growth.churn", origin=lambda: "10.0.0.7")

        for _ in range(3):
            await admit("mvf_a")
        assert keys.asked == 1, "once a second"
        keys.is_away = True
        for _ in range(5):
            clock[0] += 1.5
            await admit("mvf_a")
            while doors._holders._renewals:
                await asyncio.sleep(0.001)
        assert keys.asked == 6
        with pytest.raises(StorageFault):
            await admit("mvf_other")
        clock[0] += 900
        with pytest.raises(StorageFault):
            await admit("mvf_a")

    asyncio.run(calls())

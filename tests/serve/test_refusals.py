"""What nobody known can make of the ledger: refusals are counted by address, and health asks for it once a second."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from factory.settings import Settings
from serve import remembered
from serve.addresses import Origins, host_of_peer, networks, origin_of
from serve.doors import REFUSALS_A_MINUTE
from serve.limits import Limits
from tests.answers import error_of

from .calls import one
from .conftest import SETUP, MakePredictor, Shelf

MOST = int(REFUSALS_A_MINUTE)


class Counting:
    """A ledger that counts what it is asked."""

    def __init__(self, ledger: Any) -> None:
        self._ledger, self.asked = ledger, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.asked[name] += 1
            return getattr(self._ledger, name)(*arguments, **named)

        return call


@pytest.fixture
def counting(
    own_shelf: Shelf, churn: Any, make_caller: MakePredictor, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Counting]:
    """A predictor for which no time passes, and its ledger."""
    monkeypatch.setattr(remembered, "clock", lambda: 100.0)
    own_shelf.put("growth.churn", churn)
    ledger = Counting(own_shelf.ledger)
    caller = make_caller(Shelf(own_shelf.folder, ledger))
    caller.app.core.doors._refusals._clock = lambda: 100.0
    return caller, ledger


async def posted(app: Any, secret: str, *, client: str = "127.0.0.1", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(client, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as caller:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await caller.post(**one(), headers={"authorization": f"Bearer {secret}", **named})


def test_tokens_that_open_nothing_are_not_asked_for_without_end(counting: tuple[Any, Counting]) -> None:
    caller, ledger = counting
    good = ledger.issue_token("good", team=None, scopes=["predict"], by=SETUP).secret
    late = ledger.issue_token("late", team=None, scopes=["predict"], by=SETUP).secret

    async def scenario() -> None:
        assert (await posted(caller.app, good)).status_code == 200
        for n in range(MOST):
            error_of(await posted(caller.app, f"mvf_{n}"), 401)
        asked = ledger.asked["authenticate"]
        for n in range(MOST):
            refused = await posted(caller.app, f"mvf_other{n}")
            assert error_of(refused, 429)["code"] == "too_many_requests"
            assert int(refused.headers["retry-after"]) >= 1
        assert ledger.asked["authenticate"] == asked
        assert (await posted(caller.app, good)).status_code == 200, "who is known is let in"
        assert (await posted(caller.app, late)).status_code == 429
        elsewhere = await posted(caller.app, late, client="10.0.0.9")
        assert elsewhere.status_code == 200, "others have a number of their own"

    asyncio.run(scenario())


def test_a_client_with_a_token_that_is_over_shuts_out_nobody_of_its_address(counting: tuple[Any, Counting]) -> None:
    caller, ledger = counting
    good = ledger.issue_token("good", team=None, scopes=["predict"], by=SETUP).secret

    async def scenario() -> None:
        for _ in range(2 * MOST):
            error_of(await posted(caller.app, "mvf_over"), 401)
        assert ledger.asked["authenticate"] == 1
        assert (await posted(caller.app, good)).status_code == 200

    asyncio.run(scenario())


def test_where_a_call_comes_from_is_the_word_of_our_own_proxy_only(counting: tuple[Any, Counting]) -> None:
    caller, _ = counting

    async def scenario() -> None:
        for n in range(MOST):
            error_of(await posted(caller.app, f"mvf_{n}", x_forwarded_for="10.9.9.9, 10.0.0.1"), 401)
        error_of(await posted(caller.app, "mvf_x", x_forwarded_for="10.0.0.1"), 429)
        error_of(await posted(caller.app, "mvf_x", x_forwarded_for="10.0.0.2"), 401)
        for n in range(MOST):
            error_of(await posted(caller.app, f"mvf_y{n}", client="10.0.0.3", x_forwarded_for=f"10.1.0.{n}"), 401)
        error_of(await posted(caller.app, "mvf_z", client="10.0.0.3", x_forwarded_for="10.2.0.1"), 429)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("client", "forwarded", "origin"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["8.8.8.8"], "10.0.0.1"),
        ("127.0.0.1", ["8.8.8.8"], "8.8.8.8"),
        ("127.0.0.1", ["9.9.9.9", "8.8.8.8"], "8.8.8.8"),
        ("127.0.0.1", ["9.9.9.9, 192.168.0.7"], "9.9.9.9"),
        ("127.0.0.1", ["9.9.9.9, 127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["nonsense"], "127.0.0.1"),
        ("local", ["8.8.8.8"], "local"),
    ],
)
def test_addresses(client: str, forwarded: list[str], origin: str) -> None:
    own, named = networks("127.0.0.0/8"), networks("192.168.0.0/24")
    assert origin_of(client, forwarded, named, first=own) == origin


def test_behind_tls_a_balancer_is_believed_only_where_it_is_named(tmp_path: Path) -> None:
    """The calls of HAProxy for TLS come from this machine, with the address of whoever has called it last."""
    told = {"client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", b"9.9.9.9, 8.8.8.8, 10.0.0.1, 127.0.0.1")]}
    certificate = tmp_path / "chain.pem"
    for named, origin in (("10.0.0.1", "8.8.8.8"), (None, "10.0.0.1")):
        settings = Settings(home=tmp_path, serve_tls_cert=certificate, trusted_proxies=named)
        assert Origins(Limits.of(settings).proxies).of(told) == origin


def test_over_grpc_it_is_the_same(counting: tuple[Any, Counting]) -> None:
    core = counting[0].app.core
    headers = [(b"x-forwarded-for", b"10.0.0.1")]
    for peer, origin in (("ipv4:127.0.0.1:5", "10.0.0.1"), ("ipv4:10.0.0.9:5", "10.0.0.9"), ("unix:", "")):
        connection = {"peer": lambda peer=peer: peer, "headers": headers}
        assert core.origins.of(connection) == origin
    assert host_of_peer("ipv6:[2001:db8::7]:443") == "2001:db8::7"


def test_health_asks_the_ledger_once_a_second_however_many_ask(counting: tuple[Any, Counting]) -> None:
    caller, ledger = counting

    async def scenario() -> None:
        async with caller.client() as client:
            answers = await asyncio.gather(*(client.get("/v2/health/ready") for _ in range(50)))
            assert {each.status_code for each in answers} == {200}

    ledger.asked.clear()
    asyncio.run(scenario())
    assert ledger.asked == {"catalogue_mark": 1}

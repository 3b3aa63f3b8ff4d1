"""Dead letters are sent again on real brokers; what cannot be is left, told, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.errors import InvalidData
from factory.topics.base import Received, broker_of
from serve import stream
from serve.messages import dead_letter
from tests.topics.brokers import server

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=["redis", "nats", pytest.param("amqp", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(request.param, tmp_path_factory.mktemp(request.param)) as address:
        yield address


async def sent(url: str, *letters: bytes) -> None:
    broker = broker_of(url)
    await broker.start()
    try:
        await broker.send("shop.dead", [("", letter) for letter in letters])
    finally:
        await broker.stop()


async def waiting(url: str) -> int:
    broker = broker_of(url)
    await broker.start()
    try:
        return await broker.waiting("shop", "shop")
    finally:
        await broker.stop()


def test_a_replay_goes_on_past_letters_without_their_message(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FACTORY_TOPICS_URL", url)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path))
    error = InvalidData("The message is too large.")
    small, large = Received(b'{"record": {"age": 1}}', "m-1"), Received(b"x" * 5_000, "m-2")
    letter = dead_letter(small, error, topic="shop")
    lost = dead_letter(large, error, topic="shop", most_bytes=1_000)
    asyncio.run(sent(url, lost, b"no letter", letter, letter, letter))
    for n in (3, 1):
        assert stream.main(["replay", "--from", "shop.dead"]) == 1
        told = capsys.readouterr()
        assert told.out == f"{n} messages of shop.dead were sent to shop again.\n"
        assert "2 messages of shop.dead cannot be sent again, and are still there." in told.err
        assert "message 'm-2' of 'shop' is without it" in told.err
        assert "This is no dead letter: b'no letter'" in told.err
        if n == 3:
            asyncio.run(sent(url, letter))
    assert asyncio.run(waiting(url)) == 4

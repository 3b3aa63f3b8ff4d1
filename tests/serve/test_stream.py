"""Consumers as processes of their own on real brokers: killed and started again, they lose and repeat nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.settings import Settings
from factory.topics.base import Listening, Received, Reply, broker_of
from factory.variants.bundle import Bundle
from tests.topics.brokers import server

from .conftest import customers

pytestmark = pytest.mark.slow

FULL = os.environ.get("FACTORY_TEST_FULL") == "1"
MESSAGES, KILLS = (100_000, 10) if FULL else (4_000, 3)
PATIENCE_S = 900.0 if FULL else 120.0
NAME = "growth.churn"


@pytest.fixture(scope="module", params=["redis", "nats", "amqp"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(request.param, tmp_path_factory.mktemp(request.param)) as address:
        yield address


def environment(settings: Settings, url: str) -> dict[str, str]:
    away = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in away}
    return kept | {"FACTORY_HOME": str(settings.home), "FACTORY_TOPICS_URL": url, "OMP_NUM_THREADS": "1"}


def stream(settings: Settings, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("factory")), "stream", *words]
    return subprocess.run(
        command, env=environment(settings, url), capture_output=True, text=True, timeout=120, check=False
    )


@contextmanager
def consumer(settings: Settings, url: str, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a consumer until it is told to stop."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.stream", "run", *words],
            env=environment(settings, url),
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_for(log: Path, text: str, *, times: int = 1) -> None:
    deadline = time.monotonic() + 90
    while log.read_text().count(text) < times:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def sent(url: str, topic: str, bodies: Sequence[bytes]) -> None:
    async def scenario() -> None:
        broker = broker_of(url)
        await broker.start()
        await broker.send(topic, [("", body) for body in bodies])
        await broker.stop()

    asyncio.run(scenario())


def left(url: str, topic: str, group: str) -> int:
    async def scenario() -> int:
        broker = broker_of(url)
        await broker.start()
        try:
            return await broker.waiting(topic, group)
        finally:
            await broker.stop()

    return asyncio.run(scenario())


def read(url: str, topic: str, n: int) -> list[dict[str, Any]]:
    """Return what is published in a topic, once it is n messages and a moment longer."""

    async def scenario() -> list[bytes]:
        found: list[bytes] = []
        broker = broker_of(url)
        await broker.start()

        async def handle(batch: Sequence[Received]) -> None:
            await broker.settle([Reply(one, f"{topic}.read", b"-") for one in batch])
            found.extend(one.body for one in batch)

        await broker.listen(Listening(topic, "reader"), handle)
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < n and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        await broker.stop()
        return found

    return [json.loads(body) for body in asyncio.run(scenario())]


def questions(n: int) -> list[dict[str, Any]]:
    frame = customers(n).drop(columns=["churned", "spend"])
    frame["since"] = frame["since"].dt.strftime("%Y-%m-%d")
    records = json.loads(frame.to_json(orient="records"))
    return [{"id": str(i), "record": record} for i, record in enumerate(records)]


def test_killed_consumers_lose_nothing_and_answer_nothing_twice(
    url: str, registered_home: Settings, churn: Bundle, tmp_path: Path
) -> None:
    asked, log, topic = questions(MESSAGES), tmp_path / "log", f"orders-{MESSAGES}"
    words = (NAME, "--from", topic, "--batch", "64", "--idle", "3", "--group", "shop")
    sent(url, topic, [json.dumps(one).encode() for one in asked])
    for n in range(KILLS):
        with consumer(registered_home, url, log, *words) as process:
            wait_for(log, "growth.churn answers", times=n + 1)
            time.sleep(1.0 + 0.3 * n if FULL else 0.05 + 0.15 * n)
            process.kill()
            process.wait()
    with consumer(registered_home, url, log, *words) as last:
        wait_for(log, "growth.churn answers", times=KILLS + 1)
        deadline = time.monotonic() + PATIENCE_S
        while left(url, topic, "shop") or (url.startswith("amqp") and not _silent(url, topic)):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
    assert last.returncode == 0, log.read_text()
    told = read(url, f"{topic}.predictions", len(asked))
    times = Counter(one["id"] for one in told)
    assert set(times) == {one["id"] for one in asked}
    assert set(times.values()) == {1}
    assert {one["variant"] for one in told} == {f"{NAME}/1"}
    by_id = {one["id"]: one["predictions"][0] for one in told}
    frame = customers(MESSAGES).drop(columns=["churned", "spend"])
    frame["since"] = frame["since"].dt.strftime("%Y-%m-%d")
    right = churn.predict_raw({name: frame[name].to_numpy(dtype=object) for name in frame})[:, 1]
    np.testing.assert_allclose([by_id[str(i)]["probability_yes"] for i in range(MESSAGES)], right, atol=1e-6)


def _silent(url: str, topic: str) -> bool:
    """Return whether RabbitMQ has nothing under way either: it says how many wait, not how many are delivered."""
    time.sleep(2.0)
    return left(url, topic, "shop") == 0


def test_rows_of_a_file_are_sent_answered_given_up_and_sent_again(
    url: str, registered_home: Settings, tmp_path: Path
) -> None:
    rows = customers(20).drop(columns=["churned", "spend"])
    rows.insert(0, "customer", [f"c{i}" for i in range(20)])
    rows["age"] = rows["age"].astype(object)
    rows.loc[3, "age"] = "old"
    rows.to_csv(tmp_path / "rows.csv", index=False)
    log = tmp_path / "log"
    done = stream(
        registered_home, url, "send", "--data", str(tmp_path / "rows.csv"), "--to", "rows", "--key", "customer"
    )
    assert (done.returncode, done.stdout) == (0, "20 messages were sent to rows.\n"), done.stderr
    with consumer(registered_home, url, log, NAME, "--from", "rows", "--to", "answers", "--dead", "lost") as process:
        wait_for(log, "growth.churn answers")
        told = read(url, "answers", 19)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert len({one["id"] for one in told}) == 19
    assert "c3" not in {one["id"] for one in told}
    assert "20 answered, 1 of them dead letters" in log.read_text()
    again = stream(registered_home, url, "replay", "--from", "lost", "--to", "mended")
    assert (again.returncode, again.stdout) == (0, "1 messages of lost were sent to mended again.\n"), again.stderr
    [message] = read(url, "mended", 1)
    assert message["record"]["age"] == "old"
    again = stream(registered_home, url, "replay", "--from", "lost", "--to", "mended")
    assert again.stdout == "0 messages of lost were sent to mended again.\n"


def test_the_topics_are_described_without_a_password(url: str, registered_home: Settings) -> None:
    scheme, _, rest = url.partition("://")
    secret = f"{scheme}://guest:guest@{rest.rpartition('@')[2]}"
    done = stream(registered_home, secret, "describe", NAME, "--from", "rows")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["asyncapi"].startswith("3.")
    assert "guest" not in done.stdout
    properties = json.dumps(document["components"]["schemas"])
    for word in ("income", "dataframe_records", "predictions", "message_base64"):
        assert word in properties
    addresses = json.dumps(document["channels"])
    for topic in ("rows", "rows.predictions", "rows.dead"):
        assert topic in addresses


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("run", "growth.chern", "--from", "rows"), 2, "Did you mean 'growth.churn'?"),
        (("run", NAME, "--from", "a b"), 2, "A topic's name has letters"),
        (("run", NAME, "--from", "rows", "--dead", "rows"), 2, "need three topics"),
        (("replay", "--from", "lost"), 2, "Name the topic with --to"),
        (("send", "--data", "missing.csv", "--to", "rows"), 2, "missing.csv"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    registered_home: Settings, words: tuple[str, ...], code: int, sentence: str
) -> None:
    done = stream(registered_home, "redis://127.0.0.1:1", *words)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert sentence in done.stderr

"""What a consumer does with messages: answers, dead letters, patience, and nothing settled that is not answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from factory.errors import FactoryError, InvalidData, ServiceFault, SystemFault
from factory.topics.base import Broker, GivenBack, Handler, Listening, Received, Reply
from serve import consumer as module
from serve.consumer import MOST_TRIES, SETTLE_TRIES, Consumer, Topics
from serve.in_hand import MOST_ENDED, InHand, fingerprint
from serve.together import Question, Told

TOPICS = Topics("in", "out", "dead")
FOLDER = Path()
"""Of what is in hand; each test has its own."""


class MemoryBroker(Broker):
    """Keeps what is settled; the brokers of ``factory.topics`` are tested on real servers."""

    def __init__(self) -> None:
        super().__init__("memory://here")
        self.settled: list[Reply] = []
        self.faults: list[Exception] = []

    @property
    def stream(self) -> Any:
        raise AssertionError

    async def connect(self) -> None:
        raise AssertionError

    async def listen(self, to: Listening, handler: Handler) -> None:
        raise AssertionError

    async def make(self, topic: str) -> None:
        assert topic in ("out", "dead")

    async def publish(self, topic: str, messages: Sequence[tuple[str, bytes]]) -> None:
        raise AssertionError

    async def waiting(self, topic: str, group: str) -> int:
        return 0

    async def publish_and_acknowledge(self, replies: Sequence[Reply]) -> int:
        if self.faults:
            raise self.faults.pop(0)
        self.settled += replies
        return 0


def messages(*bodies: object, deliveries: int = 1) -> list[Received]:
    found = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    return [Received(body, f"{i}-0", deliveries) for i, body in enumerate(found)]


Answering = Callable[[Sequence[Question]], Awaitable[list[Told | FactoryError]]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.serve.test_consumer.FOLDER", tmp_path)

    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(module, "MOST_WAIT_S", 0.002)
    monkeypatch.setattr(module, "wall_sleep", at_once)


def handled(
    batch: Sequence[Received],
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Question], Told | FactoryError],
    *,
    broker: MemoryBroker | None = None,
    stop_after_calls: int | None = None,
) -> tuple[MemoryBroker, Consumer, list[int]]:
    """Let a consumer handle a batch whose questions are answered by a function; also return the sizes of its calls."""
    broker = broker or MemoryBroker()
    sizes: list[int] = []

    async def scenario() -> Consumer:
        consumer = Consumer(None, broker, name="growth.*", topics=TOPICS, in_hand=InHand(FOLDER))  # type: ignore[arg-type]

        async def together(_: object, questions: Sequence[Question], __: object) -> list[Told | FactoryError]:
            if questions:
                sizes.append(len(questions))
            if stop_after_calls is not None and len(sizes) >= stop_after_calls:
                consumer.stopping.set()
            return [answer(question) for question in questions]

        monkeypatch.setattr(module, "answer_together", together)
        await consumer.handle(batch)
        return consumer

    return broker, asyncio.run(scenario()), sizes


def told(question: Question) -> Told:
    return Told(f"{question.name}/3", b'{"predictions":[{"prediction":1}]}')


ASK = {"id": "7", "variant": "growth.churn", "record": {"x": 1}}


def test_answers_and_dead_letters_are_settled_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, consumer, sizes = handled(messages(ASK, b"no json", ASK | {"id": 8}), monkeypatch, told)
    assert sizes == [2]
    by_id = {reply.to.id: reply for reply in broker.settled}
    assert [by_id[f"{i}-0"].topic for i in range(3)] == ["out", "dead", "out"]
    assert [by_id[f"{i}-0"].key for i in range(3)] == ["7", "", "8"]
    assert json.loads(by_id["0-0"].body) == {"id": "7", "variant": "growth.churn/3", "predictions": [{"prediction": 1}]}
    assert json.loads(by_id["1-0"].body)["error"]["code"] == "invalid_request"
    assert (consumer.counts.answered, consumer.counts.dead) == (2, 1)


def test_what_its_sender_has_to_mend_is_a_dead_letter_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, _, sizes = handled(messages(ASK), monkeypatch, lambda _: InvalidData("no column x"))
    assert sizes == [1]
    [letter] = [json.loads(reply.body) for reply in broker.settled]
    assert letter["error"]["message"] == "no column x"
    assert json.loads(letter["message"]) == ASK


def test_a_service_that_is_away_is_waited_for_and_the_others_are_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def answer(question: Question) -> Told | FactoryError:
        nonlocal tries
        tries += question.key == "late"
        return ServiceFault("away") if question.key == "late" and tries < 10 else told(question)

    broker, consumer, sizes = handled(messages(ASK, ASK | {"id": "late"}), monkeypatch, answer)
    assert [reply.key for reply in broker.settled] == ["7", "late"]
    assert sizes == [2] + [1] * 9
    assert (consumer.counts.answered, consumer.counts.dead, consumer.counts.waits) == (2, 0, 9)


def test_what_the_factory_fails_on_again_and_again_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, _, sizes = handled(messages(ASK), monkeypatch, lambda _: SystemFault("failed"))
    assert len(sizes) == MOST_TRIES
    assert [reply.topic for reply in broker.settled] == ["dead"]


def died(batch: Sequence[Received], *, alone: bool) -> None:
    """Leave behind what a consumer leaves that has died with messages in hand."""
    held = [batch] if not alone else [[one] for one in batch]
    for i, part in enumerate(held):
        (FOLDER / f"9999999-{i}.json").write_text(json.dumps([fingerprint(one.body) for one in part]))


def test_what_a_dead_consumer_had_is_answered_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = messages(*(ASK | {"id": str(n)} for n in range(5)))
    died(batch[1:3], alone=False)
    broker, _, sizes = handled(batch, monkeypatch, told)
    assert sizes == [3, 1, 1]
    assert [reply.key for reply in broker.settled] == ["0", "3", "4", "1", "2"]
    assert handled(batch, monkeypatch, told)[2] == [5]
    assert list(FOLDER.glob("*-*.json")) == []


def test_what_has_ended_two_consumers_alone_is_given_up_and_takes_nothing_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = messages(*(ASK | {"id": str(n)} for n in range(3)))
    for _ in range(MOST_ENDED):
        died(batch[1:2], alone=True)
        InHand(FOLDER)
    broker, _, _ = handled(batch, monkeypatch, told)
    assert {reply.to.id: reply.topic for reply in broker.settled} == {"0-0": "out", "2-0": "out", "1-0": "dead"}
    [letter] = [json.loads(reply.body) for reply in broker.settled if reply.topic == "dead"]
    assert "2 consumers have died with this message alone in hand" in letter["error"]["message"]


def test_what_was_answered_after_all_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever kills consumers now and then does not make a message poison; nor is one that was repaired."""
    batch = messages(ASK | {"id": "0"})
    for _ in range(2 * MOST_ENDED):
        died(batch, alone=True)
        broker, _, _ = handled(batch, monkeypatch, told)
        assert [reply.topic for reply in broker.settled] == ["out"]
    assert InHand(FOLDER).ended(batch[0].body) == 0


def test_what_a_living_consumer_has_in_hand_is_nobody_elses(tmp_path: Path) -> None:
    mine = InHand(tmp_path)
    mine.take([b"a", b"b"])
    other = InHand(tmp_path)
    assert not other.suspects(b"a")
    assert len(list(tmp_path.glob("*-*.json"))) == 1
    mine.drop()
    assert list(tmp_path.glob("*-*.json")) == []


def test_an_answer_that_the_broker_cannot_take_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBroker, "most_bytes", 300)
    large = Told("growth.churn/3", b'{"predictions":[' + b"1," * 500 + b"1]}")
    broker, _, _ = handled(messages(ASK), monkeypatch, lambda _: large)
    [letter] = broker.settled
    assert letter.topic == "dead"
    assert "the broker takes 300" in json.loads(letter.body)["error"]["message"]


def test_the_same_id_for_two_variants_is_two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, _, _ = handled(messages(ASK, ASK | {"variant": "growth.other"}), monkeypatch, told)
    assert len({reply.about for reply in broker.settled}) == 2
    assert {reply.key for reply in broker.settled} == {"7"}


def test_what_nobody_expected_ends_the_consumer_and_settles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: Question) -> Told:
        raise RuntimeError("unheard of")

    broker, consumer, _ = handled(messages(ASK), monkeypatch, answer)
    assert broker.settled == []
    assert isinstance(consumer.failure, SystemFault)
    assert consumer.stopping.is_set()


def test_a_consumer_that_is_to_stop_leaves_what_it_cannot_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, consumer, sizes = handled(messages(ASK), monkeypatch, lambda _: ServiceFault("away"), stop_after_calls=3)
    assert len(sizes) == 3
    assert broker.settled == []
    assert consumer.failure is None


def test_answers_that_the_broker_does_not_take_are_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    broker.faults = [ConnectionError("gone")] * 3
    handled(messages(ASK), monkeypatch, told, broker=broker)
    assert [reply.topic for reply in broker.settled] == ["out"]


def test_a_broker_that_takes_nothing_ends_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    broker.faults = [ConnectionError("gone")] * SETTLE_TRIES
    _, consumer, _ = handled(messages(ASK), monkeypatch, told, broker=broker)
    assert isinstance(consumer.failure, ServiceFault)
    assert "has taken no answers" in consumer.failure.message
    assert consumer.stopping.is_set()


def test_what_the_broker_has_taken_back_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    broker.faults = [GivenBack()]
    _, consumer, _ = handled(messages(ASK), monkeypatch, told, broker=broker)
    assert broker.settled == []
    assert consumer.failure is None
    assert not consumer.stopping.is_set()

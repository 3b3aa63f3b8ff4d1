"""``python -m serve.stream``: answer the messages of a topic, send dead letters again, describe topics, send rows.

A consumer is a predictor without HTTP: the same table of names, traffic, log
and counts.  Several of a group share a topic's messages.  ``factory stream``
starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import signal
import sys
import time
from contextlib import suppress
from hashlib import sha256

from faststream.specification import AsyncAPI

from factory.data.tables import read_table
from factory.errors import Detail, FactoryError, InvalidRequest, ServiceFault, listing, suggest
from factory.settings import Settings, load_settings
from factory.topics.base import Broker, Handler, Listening, broker_of
from serve.consumer import Consumer, Topics
from serve.core import Core
from serve.in_hand import InHand
from serve.messages import Answer, DeadLetter, Question, messages_of, question_for
from serve.progress import Bar
from serve.release import release
from serve.replay import Replay
from serve.replica import build
from serve.store import Reference
from serve.upkeep import preload

logger = logging.getLogger(__name__)

BATCH = 256
IDLE_S = 60.0
TOLD_EVERY_S = 10.0
SENT_AT_ONCE = 5_000
_ANSWERS, _DEAD = ".predictions", ".dead"
_REPLAY = "factory-replay"
_TOPIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked, and return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        settings = load_settings()
        for option in ("from", "to", "dead", "group"):
            _require_topic(option, getattr(options, option, None))
        asyncio.run(options.command(options, settings))
    except FactoryError as error:
        sys.stderr.write(f"{error.message} {error.hint}".strip() + "\n")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve.stream", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    for command, text in ((run, "answer messages until it is stopped"), (describe, "print an AsyncAPI document")):
        one = commands.add_parser(command.__name__, help=text)
        one.set_defaults(command=command)
        one.add_argument("name", help="team.name, team.name@alias, team.name/version, or a pattern as 'team.*'")
        one.add_argument("--from", required=True, help="topic of the messages")
        one.add_argument("--to", help="topic of the answers")
        one.add_argument("--dead", help="topic of what cannot be answered")
        one.add_argument("--group", help="consumers that share the messages")
        one.add_argument("--batch", type=int, default=BATCH, help="messages that are answered together at most")
        one.add_argument("--idle", type=float, default=IDLE_S, help="seconds until another consumer gets a message")
    again = commands.add_parser("replay", help="send dead letters to their topic again")
    again.set_defaults(command=replay)
    again.add_argument("--from", required=True, help="topic of the dead letters")
    again.add_argument("--to", help="topic that gets the messages; if empty the dead letters' without .dead")
    rows = commands.add_parser("send", help="send rows as messages")
    rows.set_defaults(command=send)
    rows.add_argument("--data", required=True, help="Parquet, CSV or Arrow")
    rows.add_argument("--to", required=True, help="topic of the messages")
    rows.add_argument("--key", help="column whose value is a message's id; left out of its row")
    rows.add_argument("--as", choices=("record", "entity"), default="record", help="what a row holds")
    return parser


def _require_topic(option: str, name: str | None) -> None:
    if name is not None and _TOPIC.fullmatch(name) is None:
        message = f"A topic's name has letters, digits, '.', '_' and '-', 200 at most; received {name[:210]!r}."
        raise InvalidRequest(f"{option}: {message}", hint="Choose another name.", details=[Detail(option, message)])


def _broker(settings: Settings) -> Broker:
    url = settings.topics_url
    return broker_of(None if url is None else url.get_secret_value())


def _topics(options: argparse.Namespace) -> Topics:
    source = getattr(options, "from")
    return Topics(source, options.to or source + _ANSWERS, options.dead or source + _DEAD)


def _require_apart(topics: Topics) -> None:
    if len({topics.source, topics.answers, topics.dead}) < 3:
        raise InvalidRequest(
            "Messages, answers and dead letters need three topics: a consumer would read what it writes.",
            hint="Give --to and --dead names of their own.",
            details=[Detail("to", topics.answers), Detail("dead", topics.dead)],
        )


def _listening(options: argparse.Namespace) -> Listening:
    group = options.group or f"factory-{re.sub('[^A-Za-z0-9_-]', '-', options.name)}"
    return Listening(getattr(options, "from"), group, most=max(1, options.batch), idle_s=max(1.0, options.idle))


# --- answering ----------------------------------------------------------------------


async def run(options: argparse.Namespace, settings: Settings) -> None:
    """Answer messages until this process is asked to stop.

    Raises:
        NotFound: there is no such variant.
        ServiceFault: the broker is not there, or takes nothing any more.
    """
    settings.prepare_home()
    broker, to, topics = _broker(settings), _listening(options), _topics(options)
    _require_apart(topics)
    # Of another broker's messages of the same name this one's consumers know nothing.
    place = sha256(broker.shown.encode()).hexdigest()[:12]
    in_hand = InHand(settings.root / "streams" / f"{to.topic}--{to.group}--{place}")
    core = build(settings).core
    over, telling = asyncio.Event(), None
    try:
        await _load(core, options.name)
        await broker.start()
        consumer = Consumer(core, broker, name=options.name, topics=topics, in_hand=in_hand)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, consumer.stopping.set)
        telling = asyncio.create_task(core.keep_telling(over))
        await _listened(broker, to, consumer.handle)
        where = f"{to.topic} at {broker.shown}"
        logger.info("%s answers %s in %s; what it cannot goes to %s.", options.name, where, topics.answers, topics.dead)
        await _attended(consumer, broker, to)
    finally:
        await broker.stop()
        over.set()
        if telling is not None:
            await telling
        core.close()
    if consumer.failure is not None:
        raise consumer.failure


async def _listened(broker: Broker, to: Listening, handler: Handler) -> None:
    """Begin to read a topic.

    Raises:
        ServiceFault: the broker does not let us.
    """
    try:
        await broker.listen(to, handler)
    except FactoryError:
        raise
    except Exception as error:
        # Each driver has errors of its own.
        raise ServiceFault(
            f"{to.topic!r} at {broker.shown} cannot be read: {type(error).__name__}: {error}.",
            hint="Is there something else of this name, and may this user read it and write beside it?",
        ) from error


async def _load(core: Core, name: str) -> None:
    """Load what answers before the first message is taken; of a pattern the first champions."""
    if "*" in name:
        await preload(core)
    else:
        await core.cache.get(await core.table.resolve(Reference.written(name)))


async def _attended(consumer: Consumer, broker: Broker, to: Listening) -> None:
    """Say now and then what was done, until the consumer is to stop."""
    counts = consumer.counts
    before, since = 0, time.monotonic()
    while not consumer.stopping.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(consumer.stopping.wait(), TOLD_EVERY_S)
        if not broker.listens and not consumer.stopping.is_set():
            consumer.failure = ServiceFault(
                f"The broker at {broker.shown} gives no messages of {to.topic} any more.",
                hint="Was it emptied? Start this consumer again: it makes what is missing.",
            )
            consumer.stopping.set()
        done, now = counts.answered + counts.dead, time.monotonic()
        if done != before or consumer.stopping.is_set():
            logger.info(
                "%s answered, %s of them dead letters, %.0f a second; %s repeated; %s wait.",
                f"{done:,}",
                f"{counts.dead:,}",
                (done - before) / (now - since),
                f"{counts.repeated:,}",
                await _waiting(broker, to),
            )
        before, since = done, now


async def _waiting(broker: Broker, to: Listening) -> str:
    try:
        return f"{await broker.waiting(to.topic, to.group):,}"
    except Exception:  # noqa: BLE001
        # It is told for people only, and each driver has errors of its own.
        return "an unknown number"


# --- dead letters --------------------------------------------------------------------


async def replay(options: argparse.Namespace, settings: Settings) -> None:
    """Send the dead letters that are there now to their topic again.

    Where they go is not read from them: whoever may write a letter could choose it.

    Raises:
        InvalidRequest: it is not known where to.
        SystemFault: some are no letters, or are without their message: they are left, and all others are sent.
        ServiceFault: the broker is not there.
    """
    broker = _broker(settings)
    source = getattr(options, "from")
    to = options.to or source.removesuffix(_DEAD)
    if to == source:
        raise InvalidRequest(
            f"to: It does not follow from {source!r} where its messages came from.",
            hint=f"Name the topic with --to; for TOPIC{_DEAD} it is TOPIC.",
            details=[Detail("to", "is missing")],
        )
    await broker.start()
    again = Replay(broker, to)
    try:
        again.wanted = await broker.waiting(source, _REPLAY)
        if again.wanted:
            await _listened(broker, Listening(source, _REPLAY, idle_s=5.0), again.handle)
        await again.ended()
    finally:
        await broker.stop()
        sys.stdout.write(f"{again.done:,} messages of {source} were sent to {to} again.\n")
    again.require_whole(source)


# --- rows as messages -----------------------------------------------------------------


async def send(options: argparse.Namespace, settings: Settings) -> None:
    """Send the rows of a table as messages, one each.

    Raises:
        InvalidData: the table cannot be read.
        InvalidRequest: it has no such key.
        ServiceFault: the broker is not there.
    """
    broker = _broker(settings)
    frame = read_table(options.data, max_rows=settings.max_rows)
    if options.key is not None and options.key not in frame.columns:
        raise InvalidRequest(
            f"key: There is no column {options.key!r}.{suggest(options.key, frame.columns)}",
            hint=f"Columns: {listing(frame.columns)}.",
            details=[Detail("key", f"{options.key!r} is not a column")],
        )
    await broker.start()
    try:
        with Bar(options.to, total=len(frame), unit="messages") as bar:
            for first in range(0, len(frame), SENT_AT_ONCE):
                part = frame.iloc[first : first + SENT_AT_ONCE]
                await broker.send(options.to, messages_of(part, key=options.key, as_=getattr(options, "as")))
                bar.advance(len(part), len(part))
    finally:
        await broker.stop()
    sys.stdout.write(f"{len(frame):,} messages were sent to {options.to}.\n")


# --- as they are described --------------------------------------------------------------


async def describe(options: argparse.Namespace, settings: Settings) -> None:
    """Print the AsyncAPI document of a consumer's topics.

    Raises:
        NotFound: there is no such variant.
    """
    broker, topics = _broker(settings), _topics(options)
    question = Question
    if "*" not in options.name:
        core = build(settings).core
        try:
            variant = await core.table.resolve(Reference.written(options.name))
            question = question_for((await core.cache.get(variant)).bundle)
        finally:
            core.close()
    stream = broker.stream
    positional, named = broker.place(topics.source)
    subscriber = stream.subscriber(*positional, **named, title=topics.source, description="Rows to predict.")

    async def predict(message: question) -> None:  # type: ignore[valid-type]
        """Predict the rows of a message."""

    predict.__annotations__["message"] = question
    subscriber(predict)
    published = ((topics.answers, Answer, "Predictions."), (topics.dead, DeadLetter, "What cannot be answered."))
    for topic, schema, text in published:
        positional, named = broker.place(topic)
        stream.publisher(*positional, **named, title=topic, description=text, schema=schema)
    about = AsyncAPI(
        stream,
        title=options.name,
        version=release(),
        description=f"Answers of {options.name} to the messages of {topics.source}.",
    )
    sys.stdout.write(about.to_specification().to_json() + "\n")


if __name__ == "__main__":
    sys.exit(main())

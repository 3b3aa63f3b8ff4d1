"""Many questions answered at once: those of one version are one prediction, and each still has an answer of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from factory.errors import FactoryError, ServiceFault, StorageFault, SystemFault
from factory.spec import Variant
from serve import predictions
from serve.call import Call, Message
from serve.core import Core
from serve.errors import DeadlineExceeded, status_of
from serve.inputs import Payload, check_rows
from serve.joined import joined, shape_of, shares
from serve.predictions import Asked, Prediction
from serve.store import Reference
from serve.traffic import KEY_HEADER, Choice

logger = logging.getLogger(__name__)

Form = Callable[[Prediction], bytes]
Made = Prediction | FactoryError


@dataclass(frozen=True)
class Question:
    """What is to be predicted.

    Attributes:
        name: Variant, as people write it: ``team.name``, ``team.name@alias`` or ``team.name/version``.
        key: What it is about; whoever sends the same one gets the same version.
        payload: The rows.
        body: As it was sent; stands for the key where there is none.
    """

    name: str
    key: str
    payload: Payload
    body: bytes = b""


@dataclass(frozen=True)
class Told:
    """An answer.

    Attributes:
        by: ``name/version`` that has made it.
        body: As it was formed.
    """

    by: str
    body: bytes


async def answer_together(core: Core, questions: Sequence[Question], form: Form) -> list[Told | FactoryError]:
    """Return an answer or an error for each question, in their order.

    What they have in common is predicted in one go. Where that fails, each is predicted alone, so that an error is
    told to whoever has made it. Canary, shadow, log and counts are those of the predictor's calls.

    Args:
        core: Of this process.
        questions: What is asked.
        form: Makes the body of an answer.
    """
    found = await asyncio.gather(*(_asked(core, question) for question in questions))
    asked = {i: one for i, one in enumerate(found) if isinstance(one, Asked)}
    made, choices = await _made_together(core, {i: (one, questions[i].key) for i, one in asked.items()})
    told: list[Told | FactoryError] = []
    for i, one in enumerate(found):
        if isinstance(one, FactoryError):
            told.append(one)
        else:
            told.append(await _answered(core, one, questions[i].key, form, made.get(i), choices[i]))
    return told


async def _asked(core: Core, question: Question) -> Asked | FactoryError:
    try:
        check_rows(question.payload, max_rows=core.limits.rows)
        reference = Reference.written(question.name)
        return Asked(reference, await core.table.resolve(reference), question.payload, question.body)
    except FactoryError as error:
        return error


async def _answered(
    core: Core, asked: Asked, key: str, form: Form, made: Prediction | FactoryError | None, choice: Choice
) -> Told | FactoryError:
    """Return the answer of one question."""
    headers = {KEY_HEADER.encode(): key.encode()} if key else {}
    call = Call(method="POST", parts=(), headers=headers, receive=_nothing)
    began = time.perf_counter()
    answer: Told | FactoryError

    def known(variant: Variant) -> Prediction | None:
        return made if isinstance(made, Prediction) and made.loaded.variant.version == variant.version else None

    try:
        if isinstance(made, FactoryError):
            raise made
        async with asyncio.timeout(core.limits.deadline_s):
            body = await core.answered(call, asked, form, made=known, choice=choice)
        answer = Told(call.answer_headers["x-variant"], body)
    except TimeoutError:
        answer = DeadlineExceeded(f"The answer was not ready within {core.limits.deadline_s:g} s.")
    except FactoryError as error:
        answer = error
    except Exception as error:
        logger.exception("a message failed")
        answer = SystemFault(f"The predictor failed on this message: {type(error).__name__}.")
    took_s = time.perf_counter() - began + (made.ms / 1e3 if isinstance(made, Prediction) else 0.0)
    status = status_of(answer) if isinstance(answer, FactoryError) else 200
    core.note(call, "invoke", status=status, took_s=took_s)
    return answer


async def _nothing() -> Message:
    raise AssertionError("the body of a message is read already")


# --- predicted together -----------------------------------------------------------


async def _made_together(
    core: Core, asked: Mapping[int, tuple[Asked, str]]
) -> tuple[dict[int, Made], dict[int, Choice]]:
    """Return predictions by question, and who is to answer each.

    Predicted are all that have company, and those of canaries, which are asked for nothing twice where they hang. Where
    something is away for all, that is an error.
    """
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    choices: dict[int, Choice] = {}
    for i, (one, key) in asked.items():
        choice = choices[i] = await core.traffic.choose(one.reference, one.variant, key.encode() or one.body)
        who = choice.canary or choice.champion
        groups[who.name, who.version, choice.canary is None, *shape_of(one.payload)].append(i)
    made: dict[int, Made] = {}
    for members in groups.values():
        payloads = [asked[i][0].payload for i in members]
        for part in _parts(members, payloads, most=core.limits.rows):
            those = {i: asked[i][0].payload for i in part}
            choice = choices[part[0]]
            if choice.canary is not None:
                found, by_canary = await _by_canary(core, choice, those)
                made |= found
                if not by_canary:
                    choices |= {i: replace(choices[i], canary=None, watched=None) for i in part}
            elif len(part) > 1:
                made |= await _one_go(core, choice.champion, those)
    return made, choices


async def _by_canary(core: Core, choice: Choice, payloads: Mapping[int, Payload]) -> tuple[dict[int, Made], bool]:
    """Return a canary's predictions as :func:`_one_go`, or its champion's, and whether they are the canary's.

    They are the champion's where the canary fails on all of them, which counts once against it: to ask it again for
    each would keep all that wait behind them.
    """
    assert choice.canary is not None
    assert choice.watched is not None
    failed: Exception | None = None
    if choice.watched.asked:
        going = _one_go(core, choice.canary, payloads, threads=choice.watched.threads)
        try:
            found = await core.traffic.ask(choice.watched, going, deadline_s=core.limits.deadline_s)
        except TimeoutError as error:
            failed = error
        else:
            failed = next((one for one in found.values() if isinstance(one, FactoryError)), None)
            if failed is None:
                return found, True
    began = time.monotonic()
    found = await _one_go(core, choice.champion, payloads)
    if failed is not None and not any(isinstance(one, FactoryError) for one in found.values()):
        champion_s = time.monotonic() - began
        core.traffic.failed(choice.watched, failed, champion_s=champion_s, deadline_s=core.limits.deadline_s)
    return found, False


def _parts(members: Sequence[int], payloads: Sequence[Payload], *, most: int) -> Iterable[list[int]]:
    """Return groups of no more rows than a request may have."""
    part: list[int] = []
    rows = 0
    for i, payload in zip(members, payloads, strict=True):
        if part and rows + payload.n_rows > most:
            yield part
            part, rows = [], 0
        part.append(i)
        rows += payload.n_rows
    yield part


async def _one_go(
    core: Core, variant: Variant, payloads: Mapping[int, Payload], *, threads: Executor | None = None
) -> dict[int, Made]:
    """Return the predictions of payloads of one shape; none where they cannot be made together.

    Where a store is away, each would find that out by itself, one after the other: all are told.
    """
    try:
        async with asyncio.timeout(core.limits.deadline_s):
            loaded = await core.cache.get(variant, threads)
            columns = await core.columns(None, joined(list(payloads.values())), loaded)
            whole = await core.run(False, lambda: predictions.predicted(columns, loaded), threads)
    except (ServiceFault, StorageFault) as error:
        return dict.fromkeys(payloads, error)
    except TimeoutError:
        late = DeadlineExceeded(f"The answers were not ready within {core.limits.deadline_s:g} s.")
        return dict.fromkeys(payloads, late)
    except FactoryError:
        return {}
    except Exception:
        logger.warning("%s/%d failed on a batch", variant.name, variant.version, exc_info=True)
        return {}
    return dict(zip(payloads, shares(whole, list(payloads.values())), strict=True))

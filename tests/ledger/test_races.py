"""Two processes that want the same at the same moment: one gets it, the other is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from factory.errors import Conflict
from factory.ledger import Ledger
from factory.spec import VariantRequest

N = 30

RACE = """
import os
from factory.errors import Conflict
from factory.ledger import Idempotency, Ledger
from factory.spec import RequestState, VariantRequest

order = VariantRequest.model_validate_json(sys.argv[2])

def won(race, act):
    try:
        print(race, act())
    except Conflict:
        pass

with Ledger.open(sys.argv[1]) as ledger:
    begin()
    for n in range(30):
        won("step", lambda: ledger.advance(f"race-{n}", RequestState.QUEUED, "").request_id)
        won("attempt", lambda: ledger.admit(f"race-{n}").request_id)
        won("end", lambda: ledger.end_attempt(f"open-{n}-1", "done", str(os.getpid())).message)
        won("key", lambda: ledger.create_request(order, idempotency=Idempotency("t-1", f"key-{n}", "d")).id)
        won("lead", lambda: ledger.lead(f"lead-{n}", str(os.getpid())))
        won("note", lambda: ledger.note("race-0", "note", "").sequence)
"""


def test_of_two_processes_one_gets_what_both_want(
    ledger: Ledger, url: str, order: VariantRequest, together: Callable[..., list[list[str]]]
) -> None:
    ids = [ledger.create_request(order, request_id=f"race-{n}").id for n in range(N)]
    open_ = [ledger.admit(ledger.create_request(order, request_id=f"open-{n}").id) for n in range(N)]
    one, other = together(RACE, *[[url, order.model_dump_json(by_alias=True)]] * 2)

    def of(race: str) -> tuple[list[str], list[str]]:
        mine, theirs = ([line.split()[1] for line in lines if line.startswith(race)] for lines in (one, other))
        return mine, theirs

    # Each step and each attempt is one process's, and the other was told that it came too late.
    for race in ("step", "attempt"):
        mine, theirs = of(race)
        assert Counter(mine + theirs) == Counter(ids), race
    assert all(len(ledger.attempts(request_id)) == 1 for request_id in ids)
    # Both ends were answered by the first, and it counted once.
    mine, theirs = of("end")
    assert mine == theirs
    assert [ledger.attempt(attempt.submission_id).message for attempt in open_] == mine
    assert {ledger.request(attempt.request_id).n_events for attempt in open_} == {3}
    # Under one key both got the same request.
    mine, theirs = of("key")
    assert mine == theirs
    assert len(set(mine)) == N == len(ledger.requests(limit=200)) - 2 * N
    # One of them leads.
    mine, theirs = of("lead")
    assert [{a, b} for a, b in zip(mine, theirs, strict=True)] == [{"1", "None"}] * N
    # Events are numbered without a gap, and chained.
    mine, theirs = of("note")
    assert len(set(mine + theirs)) == 2 * N
    events = ledger.events("race-0")
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [ledger.verify_events(request_id) for request_id in ids] == [None] * N


def test_of_eight_threads_one_admits(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id

    def admit(_: int) -> str:
        try:
            return ledger.admit(request_id).submission_id
        except Conflict as conflict:
            return conflict.code

    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(admit, range(8)))
    assert answers == {f"{request_id}-1": 1, "conflict": 7}

"""Claims: one live driver at a time; a dead one is taken over."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta

import psutil
import pytest
from sqlalchemy import update

from factory.errors import Conflict
from factory.ledger import Ledger, moments, schema
from factory.spec import RequestState, VariantRequest

HOLD = """
import sys, time
from factory.ledger import Ledger
claim = Ledger.open(sys.argv[1]).claim(sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def request_id(ledger: Ledger, order: VariantRequest) -> str:
    return ledger.create_request(order).id


def test_claim_counts_attempts_and_names_the_driver(ledger: Ledger, request_id: str) -> None:
    for attempt in (1, 2):
        with ledger.claim(request_id) as claim:
            assert claim.held
            assert claim.record.attempt == attempt
            assert ledger.request(request_id).driver == claim.record.driver
        assert not claim.held
        claim.release()
    assert ledger.request(request_id).driver is None
    assert ledger.request(request_id).attempt == 2


def test_claimed_request_is_refused_even_to_its_own_process(ledger: Ledger, request_id: str) -> None:
    with ledger.claim(request_id), pytest.raises(Conflict, match="worked on by process"):
        ledger.claim(request_id)
    assert ledger.request(request_id).attempt == 1


@pytest.mark.parametrize("state", [RequestState.SERVING, RequestState.FAILED])
def test_ended_request_cannot_be_claimed(ledger: Ledger, request_id: str, state: RequestState) -> None:
    ledger.reach(request_id, state, "")
    with pytest.raises(Conflict, match=f"{state}.*nothing left"):
        ledger.claim(request_id)


def test_live_process_keeps_its_claim_and_a_killed_one_loses_it_at_once(
    ledger: Ledger, url: str, request_id: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(HOLD, url, request_id)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Conflict, match=str(holder.pid)):
        ledger.claim(request_id)
    holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while holder.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with ledger.claim(request_id) as claim:
        assert claim.record.attempt == 2


def test_driver_of_another_host_is_trusted_until_its_lease_ends(ledger: Ledger, request_id: str) -> None:
    lost = ledger.claim(request_id, lease_s=0.6)
    lost._over.set()
    with ledger._write() as connection:
        connection.execute(update(schema.requests).values(driver_host="node-2", driver_pid=1))
    with pytest.raises(Conflict, match="node-2"):
        ledger.claim(request_id)
    time.sleep(0.7)
    with ledger.claim(request_id) as claim:
        assert claim.record.attempt == 2
        assert not lost.renew()
        assert claim.held
        lost.release()
        assert ledger.request(request_id).driver is not None


def test_recycled_process_id_does_not_keep_a_claim(ledger: Ledger, request_id: str) -> None:
    lost = ledger.claim(request_id)
    with ledger._write() as connection:
        connection.execute(update(schema.requests).values(driver_started=schema.requests.c.driver_started - 100))
    with ledger.claim(request_id) as claim:
        assert claim.record.attempt == 2
    lost.release()


def test_claim_is_renewed_while_its_process_lives(ledger: Ledger, request_id: str) -> None:
    with ledger.claim(request_id, lease_s=0.4) as claim:
        time.sleep(1)
        assert claim.held
        with pytest.raises(Conflict):
            ledger.claim(request_id)


@pytest.mark.parametrize("by_s", [-7200, 7200])
def test_clock_that_is_set_frees_no_request_and_blocks_none(
    ledger: Ledger, request_id: str, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    """The kernel then tells another start of the host and of each process; both move alike."""
    with ledger.claim(request_id) as claim:
        boot_time, create_time = psutil.boot_time, psutil.Process.create_time
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + by_s)
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + by_s)
        assert claim.renew()
        with pytest.raises(Conflict, match="worked on by process"):
            ledger.claim(request_id)


def test_lease_from_before_the_clock_was_set_back_does_not_block(ledger: Ledger, request_id: str) -> None:
    lost = ledger.claim(request_id)
    lost._over.set()
    with ledger._write() as connection:
        later = moments.now() + timedelta(hours=2)
        connection.execute(update(schema.requests).values(driver_host="node-2", driver_lease_until=later))
    with ledger.claim(request_id) as claim:
        assert claim.record.attempt == 2

"""Leads: one at a time, renewed, taken over; what a deposed leader still tries is refused."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from factory.errors import Conflict, InvalidRequest
from factory.ledger import Ledger, moments
from factory.ledger.moments import now
from factory.spec import VariantRequest


class Reason:
    rule, sentence, eta_s = "quota", "waiting", None


def set_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    moment = now() + timedelta(seconds=by_s)
    monkeypatch.setattr(moments, "clock", lambda: moment)


def test_one_leads_and_renews(ledger: Ledger) -> None:
    assert ledger.leader("controller") is None
    assert ledger.lead("controller", "a") == 1
    assert ledger.lead("controller", "b") is None
    assert ledger.lead("controller", "a") == 1
    assert ledger.leader("controller") == "a"
    assert ledger.lead("other", "b") == 1


def test_lead_that_ran_out_is_taken_with_a_higher_epoch(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.lead("controller", "a", 15)
    set_clock(monkeypatch, 14)
    assert ledger.lead("controller", "b") is None
    set_clock(monkeypatch, 2)
    assert ledger.leader("controller") is None
    assert ledger.lead("controller", "b") == 2
    assert ledger.lead("controller", "a") is None


def test_lead_that_nobody_took_meanwhile_goes_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.lead("controller", "a") == 1
    set_clock(monkeypatch, 3600)
    assert ledger.lead("controller", "a") == 1


def test_lead_that_is_given_back_is_free_at_once(ledger: Ledger) -> None:
    epoch = ledger.lead("controller", "a")
    assert epoch is not None
    ledger.resign("controller", epoch)
    assert ledger.leader("controller") is None
    assert ledger.lead("controller", "b") == 2
    ledger.resign("controller", epoch)
    assert ledger.leader("controller") == "b"


def test_clock_that_is_set_back_blocks_nobody(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.lead("controller", "a")
    set_clock(monkeypatch, -7200)
    assert ledger.leader("controller") is None
    assert ledger.lead("controller", "b") == 2


def test_what_a_deposed_leader_tries_is_refused(
    ledger: Ledger, order: VariantRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = ledger.create_request(order).id
    epoch = ledger.lead("controller", "a")
    assert epoch is not None
    with ledger.fenced("controller", epoch):
        ledger.admit(request_id)
        set_clock(monkeypatch, 60)
        ledger.note(request_id, "note", "Late, but nobody else leads.")
        assert ledger.lead("controller", "b") == 2
        for act in (
            lambda: ledger.end_attempt(f"{request_id}-1", "lost"),
            lambda: ledger.note(request_id, "note", "Too late."),
            lambda: ledger.hold({request_id: Reason()}),
        ):
            with pytest.raises(Conflict, match="epoch 1 is over") as caught:
                act()
            assert caught.value.details[0].field == "epoch"
        assert ledger.request(request_id).n_events == 3
    ledger.note(request_id, "note", "Outside of the fence.")
    assert ledger.open_attempts()[0].ended_at is None


def test_fence_is_of_its_thread_alone(ledger: Ledger, order: VariantRequest) -> None:
    request_id = ledger.create_request(order).id
    with ledger.fenced("controller", 7), ThreadPoolExecutor(1) as pool:
        assert pool.submit(ledger.note, request_id, "note", "").result()
        with pytest.raises(Conflict, match="epoch 7"):
            ledger.note(request_id, "note", "")


def test_no_new_leader_while_a_change_of_the_old_one_is_under_way(ledger: Ledger, url: str) -> None:
    """Else the old one's change could come after the new one's first look."""
    epoch = ledger.lead("controller", "a", 0.01)
    assert epoch is not None
    time.sleep(0.02)
    took = threading.Event()

    def take() -> None:
        with Ledger.open(url) as other:
            assert other.lead("controller", "b") == 2
            took.set()

    thread = threading.Thread(target=take)
    with ledger.fenced("controller", epoch), ledger._write():
        thread.start()
        assert not took.wait(0.3)
    thread.join()
    assert took.is_set()


@pytest.mark.parametrize("lease_s", [0, -1, 61, float("nan")])
def test_lease_is_bounded(ledger: Ledger, lease_s: float) -> None:
    with pytest.raises(InvalidRequest, match="lease_s"):
        ledger.lead("controller", "a", lease_s)
    for name, holder in (("", "a"), ("n" * 65, "a"), ("n", ""), ("n", "h" * 256)):
        with pytest.raises(InvalidRequest, match="characters"):
            ledger.lead(name, holder)

"""What is PostgreSQL's own: its faults with hints, waiting for its restart, locks that do not stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import event, select, update

from factory.errors import Conflict, InvalidRequest, StorageFault
from factory.ledger import Ledger, schema
from factory.ledger.engines import exclusive
from factory.spec import RequestState, VariantRequest
from tests.postgres import GUARDED, PASSWORD, PostgresServer

from .conftest import make_order

GONE = "?timeout=0.1"
"""Appended to a URL, so that nothing is waited for."""


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture(autouse=True)
def runs_again(url: str, postgres: PostgresServer) -> Iterator[None]:
    """The server runs after each test, whatever happened to it."""
    yield
    postgres.start()


def with_name(url: str, name: str) -> str:
    return url.rpartition("/")[0] + "/" + name


def test_url_with_and_without_a_driver_is_understood(url: str) -> None:
    for same in (url, url.replace("postgresql://", "postgresql+psycopg://")):
        with Ledger.open(same) as ledger:
            ledger.ping()
            assert ledger.requests() == []


def test_server_that_does_not_run_is_named(
    postgres: PostgresServer, url: str, order: VariantRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger.open(url + GONE) as ledger:
        postgres.stop()
        for act in (ledger.ping, lambda: ledger.create_request(order), lambda: Ledger.open(url + GONE)):
            with pytest.raises(StorageFault, match=r"refused|closed the connection") as caught:
                act()
            assert "Start the database server" in caught.value.hint
    assert "waiting up to" in caplog.text


def test_wrong_password_and_missing_names_are_told_at_once(postgres: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    began = time.monotonic()
    for wrong, said, hint in (
        (postgres.url(name, user=GUARDED, password="hush-hush"), "password authentication failed", "Correct the user"),
        (postgres.url(name, user=GUARDED), "no password supplied", "Add the password"),
        (postgres.url(name, user="nobody"), 'role "nobody" does not exist', "Create the user"),
        (with_name(url, "nowhere"), 'database "nowhere" does not exist', "Create the user and the database"),
        (url.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid", "Correct the host"),
    ):
        with pytest.raises(StorageFault, match=said) as caught:
            Ledger.open(wrong, patience_s=600)
        assert hint in caught.value.hint
        assert "hush-hush" not in str(caught.value.as_dict())
    assert time.monotonic() - began < 300  # none of them was tried again until the patience was over


def test_password_is_used_and_never_shown(postgres: PostgresServer) -> None:
    postgres.execute(f"CREATE DATABASE guarded OWNER {GUARDED}")
    try:
        with Ledger.open(postgres.url("guarded", user=GUARDED, password=PASSWORD)) as ledger:
            assert ledger.create_request(make_order())
            assert PASSWORD not in ledger.url
            assert GUARDED in ledger.url
    finally:
        postgres.execute("DROP DATABASE guarded WITH (FORCE)")


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_ledger_goes_on_after_the_server_was_restarted(
    postgres: PostgresServer, url: str, order: VariantRequest, how: str
) -> None:
    with Ledger.open(url) as ledger:
        before = ledger.create_request(order).id
        getattr(postgres, how)()
        postgres.start()
        assert ledger.request(before).request == order
        assert ledger.note(before, "note", "Goes on.").sequence == 2
        assert ledger.verify_events(before) is None


def test_call_waits_for_a_server_that_comes_back(postgres: PostgresServer, url: str, order: VariantRequest) -> None:
    with Ledger.open(url, patience_s=60) as ledger:
        ledger.ping()
        postgres.stop()
        made: list[str] = []
        waiter = threading.Thread(target=lambda: made.append(ledger.create_request(order).id))
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        postgres.start()
        waiter.join(60)
        assert [r.id for r in ledger.requests()] == made


def test_who_comes_after_one_that_waited_in_vain_does_not_wait_as_well(
    postgres: PostgresServer, url: str, order: VariantRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    pause = time.sleep

    def counted(seconds: float) -> None:
        pauses.append(seconds)
        pause(seconds)

    with Ledger.open(url, patience_s=0.5) as ledger:
        postgres.stop()
        monkeypatch.setattr("factory.ledger.database.GIVEN_UP_S", 600.0)
        monkeypatch.setattr("factory.ledger.database.time.sleep", counted)
        for waits in (True, False, False):
            pauses.clear()
            with pytest.raises(StorageFault, match="connection failed"):
                ledger.create_request(order)
            assert bool(pauses) == waits
        postgres.start()
        assert ledger.create_request(order).id
        monkeypatch.setattr("factory.ledger.database.GIVEN_UP_S", 0.0)
        postgres.stop()
        pauses.clear()
        with pytest.raises(StorageFault, match="connection failed"):
            ledger.ping()
        assert pauses
        monkeypatch.undo()
        postgres.start()


def test_transaction_that_the_server_did_not_survive_left_nothing(
    postgres: PostgresServer, url: str, order: VariantRequest
) -> None:
    with Ledger.open(url) as ledger:
        request_id = ledger.create_request(order).id

        def change_while_it_dies() -> None:
            with ledger._write() as connection:
                connection.execute(update(schema.requests).values(state="failed"))
                postgres.kill()
                connection.execute(select(1))

        with pytest.raises(StorageFault) as caught:
            change_while_it_dies()
        assert "database server stopped" in caught.value.hint
        postgres.start()
        assert ledger.request(request_id).state == "received"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_call_in_the_midst_of_which_the_server_ends_is_made_again(
    postgres: PostgresServer, url: str, order: VariantRequest, how: str
) -> None:
    with Ledger.open(url) as ledger, Ledger.open(url + GONE) as impatient:
        request_id = ledger.create_request(order).id

        def broken_off_once(which: Ledger) -> None:
            ends = iter([getattr(postgres, how)])

            def end(_: object) -> None:
                for act in ends:
                    act()

            event.listen(which._engine, "commit", end)

        broken_off_once(ledger)
        caller = threading.Thread(target=ledger.note, args=(request_id, "note", "It is there once."))
        caller.start()
        caller.join(0.5)
        assert caller.is_alive()
        postgres.start()
        caller.join(60)
        assert [one.kind for one in ledger.events(request_id)] == ["state", "note"]
        assert ledger.verify_events(request_id) is None
        broken_off_once(impatient)
        with pytest.raises(StorageFault):
            impatient.note(request_id, "note", "It is not there.")


def test_lock_that_is_held_is_waited_for_and_then_told(url: str, order: VariantRequest) -> None:
    with Ledger.open(url) as ledger, Ledger.open(f"{url}?timeout=0.1") as impatient:
        request_id = ledger.create_request(order).id
        with ledger._write() as connection:
            ledger._locked(connection, request_id)
            assert impatient.request(request_id).state == "received"
            with pytest.raises(StorageFault, match="lock timeout") as caught:
                impatient.note(request_id, "note", "")
            assert "Another process" in caught.value.hint
        assert impatient.note(request_id, "note", "").sequence == 2


def test_deadlock_is_told_and_one_of_both_goes_on(url: str, order: VariantRequest) -> None:
    with Ledger.open(url) as ledger:
        one, other = (ledger.create_request(order).id for _ in range(2))
        both = threading.Barrier(2)
        faults: list[StorageFault] = []

        def change(first: str, second: str) -> None:
            try:
                with ledger._write() as connection:
                    ledger._locked(connection, first)
                    both.wait()
                    ledger._locked(connection, second)
            except StorageFault as fault:
                faults.append(fault)

        threads = [threading.Thread(target=change, args=pair) for pair in ((one, other), (other, one))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [("deadlock" in fault.message, "try again" in fault.hint) for fault in faults] == [(True, True)]


def test_process_that_hangs_in_a_transaction_lets_go_of_its_locks(url: str) -> None:
    with Ledger.open(url) as ledger, ledger._read() as connection:
        for limit in ("idle_in_transaction_session_timeout", "statement_timeout"):
            assert connection.exec_driver_sql(f"SHOW {limit}").scalar() == "1min"
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "15s"


def test_reading_sees_one_moment_and_changes_nothing(url: str, order: VariantRequest) -> None:
    with Ledger.open(url) as ledger:
        request_id = ledger.create_request(order).id
        state = select(schema.requests.c.state)
        with ledger._read() as connection:
            assert connection.scalar(state) == "received"
            ledger.reach(request_id, RequestState.QUEUED, "")
            assert connection.scalar(state) == "received"
        with pytest.raises(StorageFault, match="read-only"), ledger._read() as connection:
            connection.execute(update(schema.requests).values(state="failed"))


def test_change_without_a_row_to_lock_is_made_by_one_at_a_time(url: str) -> None:
    with Ledger.open(url) as ledger, Ledger.open(f"{url}?timeout=0.1") as other, ledger._write() as connection:
        exclusive(connection, "alias of growth.churn")
        with other._write() as free:
            exclusive(free, "alias of growth.basket")
        with pytest.raises(StorageFault, match="lock timeout"), other._write() as busy:
            exclusive(busy, "alias of growth.churn")


def test_connections_are_kept_few(postgres: PostgresServer, url: str, order: VariantRequest) -> None:
    """Each running request has a ledger of its own, and a server takes some hundred connections."""
    with Ledger.open(url) as ledger:
        request_id = ledger.create_request(order).id
        for number in range(20):
            ledger.note(request_id, "note", str(number))
        with psycopg.connect(postgres.url("postgres")) as connection:
            mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'factory'"
            assert connection.execute(mine, (url.rpartition("/")[2],)).fetchone() == (1,)


def test_value_that_does_not_fit_is_the_senders_fault(url: str) -> None:
    with Ledger.open(url) as ledger:
        with pytest.raises(InvalidRequest, match="too long"):
            ledger.create_request(make_order(recipe="r" * 100))
        with pytest.raises(InvalidRequest, match="cannot be stored or looked up"):
            ledger.variant("growth.churn", 10**30)


def test_unique_keys_make_a_lost_race_a_conflict(url: str, order: VariantRequest) -> None:
    with Ledger.open(url) as ledger:
        row = ledger.create_request(order, request_id="mine")
        with ledger._read() as connection:
            values = connection.execute(select(schema.requests)).one()._asdict()
        with pytest.raises(Conflict, match="same moment") as caught, ledger._write() as connection:
            connection.execute(schema.requests.insert().values(values))
        assert "\n" not in caught.value.message
        assert ledger.request("mine") == row

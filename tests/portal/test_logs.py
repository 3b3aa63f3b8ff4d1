"""What a job prints: read, followed while it is written, and kept from whoever may see it no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from factory.ledger.records import ADOPTED
from factory.operate.attending import log_path
from factory.operate.jobs import JobSpec
from factory.testing.jobs import FakeJobs, Script
from serve.portal import tails
from serve.portal.routes import streams
from tests.answers import error_of
from tests.portal.conftest import SETUP, MakeWorld, World


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One whose jobs print two lines."""
    return make_world(jobs=FakeJobs(lambda _: Script(lines=((1.0, "one"), (3.0, "two")))))


def run(world: World) -> str:
    """Let a request run as a job that has printed its first line; return its id."""
    request_id = world.submitted()
    attempt = world.ledger.admit(request_id)
    world.jobs.submit(JobSpec(attempt.submission_id, ("true",)))
    world.jobs.advance(2.0 + 1.5)
    return request_id


def test_the_log_of_a_running_job_is_what_the_cluster_has(world: World) -> None:
    request_id = run(world)
    response = world("growth/read").get(f"/requests/{request_id}/logs")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "one\n"
    error_of(world().get(f"/requests/{request_id}/logs", params={"attempt": 2}), 404)


def test_the_log_of_an_ended_job_is_what_was_kept(world: World) -> None:
    request_id = run(world)
    world.ledger.end_attempt(f"{request_id}-1", "lost")
    path = log_path(world.settings, request_id, 1)
    path.parent.mkdir(parents=True)
    path.write_text("kept\n")
    world.jobs.reachable = False
    assert world().get(f"/requests/{request_id}/logs").text == "kept\n"
    path.unlink()
    assert "retry-after" in world().get(f"/requests/{request_id}/logs").headers


def test_a_request_that_was_not_started_has_no_log(world: World) -> None:
    request_id = world.submitted()
    error = error_of(world().get(f"/requests/{request_id}/logs"), 404)
    assert "has not been started" in error["message"]


def test_an_adopted_job_is_known_by_the_name_that_it_told(world: World) -> None:
    request_id = world.submitted()
    world.ledger.note(request_id, ADOPTED, "Waits.", payload={"job": "raysubmit_1"})
    world.ledger.admit(request_id, kind="adopted")
    world.jobs.submit(JobSpec("raysubmit_1", ("true",)))
    world.jobs.advance(20.0)
    assert world().get(f"/requests/{request_id}/logs").text == "one\ntwo\n"


def followed(address: str, secret: str, place: str, meanwhile: Callable[[str], None]) -> str:
    """Return what a stream tells until its end; after each part of it something happens, told what came before."""

    async def follow() -> str:
        text = ""
        client = httpx.AsyncClient(base_url=address, headers={"authorization": f"Bearer {secret}"}, timeout=10)
        async with client, client.stream("GET", f"/requests/{place}") as got:
            async for chunk in got.aiter_text():
                meanwhile(text)
                text += chunk
        return text

    return asyncio.run(follow())


def test_a_log_is_followed_until_the_job_ends(world: World, address: str) -> None:
    place = f"{run(world)}/logs?follow=true"
    heard = followed(address, world.secrets["growth/read"], place, lambda _: world.jobs.advance(20.0))
    assert heard == "one\ntwo\n"


def test_a_log_that_breaks_off_says_so_and_not_where_the_cluster_is(world: World, address: str) -> None:
    place = f"{run(world)}/logs?follow=true"
    heard = followed(address, world.secrets["growth/read"], place, lambda _: setattr(world.jobs, "reachable", False))
    assert heard == "one\n\n[the log breaks off: the cluster does not answer any more]\n"


def test_so_many_logs_are_followed_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.app.state.portal.tails = tails.Tails(most=0)
    request_id = run(world)
    response = world().get(f"/requests/{request_id}/logs", params={"follow": "true"})
    error_of(response, 503)
    assert response.headers["retry-after"]
    unknown = world.submitted(seed=1)
    world.ledger.admit(unknown)
    error_of(world().get(f"/requests/{unknown}/logs", params={"follow": "true"}), 404)


@pytest.mark.parametrize("what", ["events", "logs"])
@pytest.mark.parametrize("why", ["token", "share"])
def test_who_may_see_it_no_more_hears_no_more(
    what: str, why: str, world: World, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(streams, "LOOK_AGAIN_S", 0.0)
    request_id = run(world)
    world.ledger.share("request", request_id, team="growth", with_team="risk", by=SETUP)
    token = world.ledger.issue_token("x", team="risk", scopes=["read"], by=SETUP)

    def withdraw(before: str) -> None:
        if not before and why == "token":
            world.ledger.revoke_token(token.record.id, by=SETUP)
        elif not before:
            world.ledger.unshare("request", request_id, team="growth", with_team="risk", by=SETUP)
        world.jobs.advance(1.0)

    place = f"{request_id}/logs?follow=true" if what == "logs" else f"{request_id}/events"
    heard = followed(address, token.secret, place, withdraw)
    assert "two" not in heard
    assert ("may not read it any more" in heard) == (what == "logs")

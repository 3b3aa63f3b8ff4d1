"""The client's own promises, against answers that are played: what is repeated, what an error becomes, what is kept."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import factory
from factory import errors
from factory.errors import Conflict, FactoryError, InvalidData, InvalidRequest, NotFound, ServiceFault, UserFault
from factory.remote import Client, Login, find_login, read_login, write_login
from factory.remote.calls import MOST_PAUSE_S
from factory.remote.credentials import checked_url, forget_login, login_file
from factory.remote.sent import Message, messages

URL, TOKEN = "http://factory.test", "mvf_secret-of-the-tests"
ORDER = {"team": "growth", "name": "churn", "recipe": "tabular-auto", "dataset": {"path": "a.csv", "target": "y"}}
RECORD: dict[str, Any] = {
    "id": "r-1",
    "request": ORDER,
    "state": "queued",
    "created": "2026-11-27T12:00:00Z",
    "updated": "2026-11-27T12:00:00Z",
    "attempt": 0,
    "n_events": 2,
}

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Played(httpx.BaseTransport):
    """Gives one answer after the other, the last one again and again, and keeps what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.left, self.asked = list(answers), list[httpx.Request]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FACTORY_URL", raising=False)
    monkeypatch.delenv("FACTORY_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def playing() -> Iterator[Callable[..., tuple[Client, Played, list[float]]]]:
    """A client whose server plays, with the pauses that it would have made."""
    clients: list[Client] = []

    def play(*answers: Answer, **options: Any) -> tuple[Client, Played, list[float]]:
        played, pauses = Played(*answers), list[float]()
        client = Client(URL, TOKEN, transport=played, **options)
        client._sleep = pauses.append
        clients.append(client)
        return client, played, pauses

    yield play
    for client in clients:
        client.close()


def told(status: int, code: str, *, details: Any = (), **headers: str) -> httpx.Response:
    body = {"error": {"code": code, "message": f"It is {code}.", "hint": "Mend it.", "details": list(details)}}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def fine(document: object = RECORD, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=document)


# --- errors ------------------------------------------------------------------------


def tree(kind: type[FactoryError] = FactoryError) -> Iterator[type[FactoryError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


@pytest.mark.parametrize("kind", [kind for kind in tree() if kind.__module__ == errors.__name__])
def test_each_of_our_errors_comes_back_as_itself(kind: type[FactoryError], playing: Any) -> None:
    client, _, _ = playing(told(400, kind.code, details=[{"field": "/a/b~1c", "message": "wrong"}]))
    with pytest.raises(kind) as raised:
        client.request("r-1")
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.hint) == (f"It is {kind.code}.", "Mend it.")
    assert [(d.field, d.message) for d in raised.value.details] == [("a.b/c", "wrong")]


STATUSES = [
    (401, "unauthorized", UserFault),
    (403, "forbidden", UserFault),
    (404, "gone_for_good", NotFound),
    (409, "clash", Conflict),
    (412, "precondition_failed", Conflict),
    (413, "body_too_large", InvalidData),
    (415, "unsupported_media_type", InvalidRequest),
    (500, "bug", errors.SystemFault),
    (504, "deadline_exceeded", ServiceFault),
]


@pytest.mark.parametrize(("status", "code", "kind"), STATUSES)
def test_a_code_that_is_not_known_here_has_the_class_of_its_status(
    status: int, code: str, kind: type[FactoryError], playing: Any
) -> None:
    client, _, _ = playing(told(status, code), retries=0)
    with pytest.raises(kind) as raised:
        client.request("r-1")
    assert type(raised.value) is kind
    assert raised.value.as_dict()["error"]["code"] == code  # type: ignore[index]


STRANGERS = [
    httpx.Response(502, html="<h1>Bad gateway</h1>"),
    httpx.Response(404, text="404 page not found"),
    httpx.Response(302, headers={"location": "https://elsewhere.test/login"}),
    httpx.Response(400, json=["no", "error"]),
    httpx.Response(400, json={"error": "text"}),
    httpx.Response(400, json={"error": {"code": 1}}),
    httpx.Response(200, html="<h1>Sign in</h1>"),
    httpx.Response(200, json={"id": "r-1"}),
    httpx.Response(200, json=None),
]


@pytest.mark.parametrize("answer", STRANGERS)
def test_a_stranger_who_answers_is_told_from_a_factory(answer: httpx.Response, playing: Any) -> None:
    client, played, _ = playing(answer, retries=0)
    with pytest.raises(FactoryError, match=r"not as a factory does|is not understood") as raised:
        client.request("r-1")
    assert URL in raised.value.message
    assert "FACTORY_URL" in {detail.field for detail in raised.value.details}
    assert [request.url.host for request in played.asked] == ["factory.test"], "no redirect was followed"


def test_what_a_newer_server_adds_is_passed_over(playing: Any) -> None:
    newer = RECORD | {"mood": "good", "request": ORDER | {"colour": "blue", "dataset": ORDER["dataset"] | {"x": 1}}}  # type: ignore[operator]
    client, _, _ = playing(fine(newer))
    assert client.request("r-1").request.variant == "growth.churn"


# --- what is repeated ----------------------------------------------------------------


def test_a_submission_is_repeated_under_the_same_key(playing: Any) -> None:
    client, played, pauses = playing(
        httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), told(503, "storage_fault"), fine(status=202)
    )
    assert client.submit(ORDER).id == "r-1"
    keys = {request.headers["idempotency-key"] for request in played.asked}
    assert (len(played.asked), len(keys)) == (4, 1)
    assert all(json.loads(request.content) == ORDER for request in played.asked)
    assert len(pauses) == 3
    client.submit(ORDER)
    assert played.asked[-1].headers["idempotency-key"] not in keys
    client.submit(ORDER, key="mine")
    assert played.asked[-1].headers["idempotency-key"] == "mine"


def test_what_may_have_been_done_is_not_done_again(playing: Any) -> None:
    client, played, _ = playing(httpx.ReadTimeout("slow"), fine())
    with pytest.raises(ServiceFault, match="did not answer in time"):
        client.promote("growth.churn/3", why="Better.")
    assert len(played.asked) == 1


def test_whoever_promotes_or_rolls_back_may_say_which_champion_it_has_seen(playing: Any) -> None:
    client, played, _ = playing(told(409, "conflict"), told(409, "conflict"), told(409, "conflict"))
    for call in (
        lambda: client.promote("growth.churn/3", why="Better.", instead_of=2),
        lambda: client.rollback("growth.churn", why="Worse.", instead_of=3),
        lambda: client.rollback("growth.churn", why="Worse."),
    ):
        with pytest.raises(Conflict):
            call()
    assert [json.loads(one.content).get("instead_of") for one in played.asked] == [2, 3, None]


@pytest.mark.parametrize("answer", [httpx.ConnectError("refused"), httpx.ConnectTimeout("silence")])
def test_what_was_never_sent_is_sent_again(answer: Exception, playing: Any) -> None:
    client, played, _ = playing(answer, told(409, "conflict"))
    with pytest.raises(Conflict):
        client.promote("growth.churn/3", why="Better.")
    assert len(played.asked) == 2


def test_a_server_that_asks_to_come_again_is_asked_again_when_it_says(playing: Any) -> None:
    client, played, pauses = playing(
        told(429, "too_many_requests", retry_after="7"),
        told(503, "storage_fault", retry_after="2"),
        told(409, "conflict"),
    )
    with pytest.raises(Conflict):
        client.promote("growth.churn/3", why="Better.")
    assert len(played.asked) == 3
    assert pauses[0] >= 7
    assert pauses[1] >= 2


def test_nobody_waits_longer_than_is_sensible(playing: Any) -> None:
    client, _, pauses = playing(told(429, "too_many_requests", retry_after="3600"))
    with pytest.raises(UserFault, match="too_many_requests"):
        client.request("r-1")
    assert pauses == []


@pytest.mark.parametrize("answer", [told(400, "invalid_request"), told(404, "not_found"), told(500, "system_fault")])
def test_an_answer_that_would_be_the_same_is_not_asked_for_again(answer: httpx.Response, playing: Any) -> None:
    client, played, _ = playing(answer)
    with pytest.raises(FactoryError):
        client.request("r-1")
    assert len(played.asked) == 1


def test_a_server_that_is_gone_is_given_up_after_some_tries(playing: Any) -> None:
    client, played, pauses = playing(httpx.ConnectError("refused"), retries=3)
    with pytest.raises(ServiceFault, match=r"http://factory.test cannot be reached: refused"):
        client.request("r-1")
    assert len(played.asked) == 4
    assert all(0 < pause <= MOST_PAUSE_S for pause in pauses)
    assert sum(pauses) < 8


# --- the token -----------------------------------------------------------------------


def test_the_token_is_in_the_header_and_nowhere_else(playing: Any, caplog: pytest.LogCaptureFixture) -> None:
    client, played, _ = playing(httpx.ConnectError("refused"), told(401, "unauthorized"))
    with caplog.at_level(logging.DEBUG), pytest.raises(UserFault) as raised:
        client.request("r-1")
    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in played.asked)
    shown = [repr(client), str(client), repr(raised.value), caplog.text, repr(Login(URL, TOKEN))]
    assert [text for text in shown if TOKEN in text] == []
    assert all(TOKEN not in str(request.url) for request in played.asked)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "Schlüssel"])
def test_what_cannot_be_a_token_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(InvalidRequest, match="FACTORY_TOKEN") as refused:
        Client(URL, token)
    assert token not in str(refused.value.as_dict())


def test_names_cannot_lead_elsewhere(playing: Any) -> None:
    client, played, _ = playing(told(404, "not_found"))
    for name in ("../../metrics", "..", "a/b?c#d", "ä%2f"):
        with pytest.raises(NotFound):
            client.request(name)
        assert played.asked[-1].url.raw_path.startswith(b"/api/v1/requests/")
        assert played.asked[-1].url.raw_path.count(b"/") == 4


# --- where and as whom -----------------------------------------------------------------


def test_without_an_address_it_says_how_to_give_one() -> None:
    with pytest.raises(InvalidRequest, match="FACTORY_URL") as refused:
        Client()
    assert "factory login" in refused.value.hint
    assert find_login() is None


@pytest.mark.parametrize(
    "url", ["", "factory.test", "ftp://x", "http://", "http://a:b@x", "https://x/?q=1", "http://x:99999", "http://[::1"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="FACTORY_URL") as refused:
        checked_url(url)
    assert "a:b" not in refused.value.message


def test_the_environment_wins_over_the_login_and_an_argument_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    write_login(Login("https://stored.test", "mvf_stored"))
    assert find_login() == Login("https://stored.test", "mvf_stored")
    monkeypatch.setenv("FACTORY_TOKEN", " mvf_environment\n")
    assert find_login() == Login("https://stored.test", "mvf_environment")
    monkeypatch.setenv("FACTORY_URL", "https://environment.test/")
    assert find_login() == Login("https://environment.test", "mvf_environment")
    assert find_login("https://given.test", "mvf_given") == Login("https://given.test", "mvf_given")


def test_a_stored_token_goes_nowhere_but_to_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    write_login(Login("https://stored.test", "mvf_stored"))
    Path(".env").write_text("FACTORY_URL=https://elsewhere.test\n")
    assert find_login() == Login("https://elsewhere.test", None)
    monkeypatch.setenv("FACTORY_URL", "https://stored.test/api/v1/")
    assert find_login() == Login("https://stored.test", "mvf_stored")


def test_a_login_is_for_its_user_only() -> None:
    path = write_login(Login(URL, TOKEN))
    assert path == login_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    write_login(Login(URL, "mvf_another"))
    assert read_login() == Login(URL, "mvf_another")
    assert list(path.parent.iterdir()) == [path], "no draft is left"
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match="Others may read"):
        Client()
    Client(URL, TOKEN).close()
    assert forget_login() is None, "it is removed all the same"
    assert not path.exists()


def test_a_broken_login_says_what_to_do() -> None:
    write_login(Login(URL, TOKEN)).write_text('{"url": 7')
    with pytest.raises(errors.StorageFault, match="cannot be read") as broken:
        Client()
    assert "factory login" in broken.value.hint


# --- events --------------------------------------------------------------------------


def test_messages_are_read_however_they_are_cut() -> None:
    text = (
        ': hello\r\n\r\nid: 1\nevent: state\ndata: {"a": "x\u2028y"}\n\nid: 2\ndata: a\ndata:b\nretry: 5\nnonsense\n\n'
        "event: alone\n\nid: 3\ndata: cut off"
    ).encode()
    whole = [None, Message("1", "state", '{"a": "x\u2028y"}'), Message("2", "message", "a\nb")]
    for size in (1, 2, 3, 7, len(text)):
        assert list(messages(text[at : at + size] for at in range(0, len(text), size))) == whole


def test_a_message_without_an_end_is_given_up() -> None:
    with pytest.raises(ServiceFault, match="does not end"):
        list(messages(b"x" * 2**20 for _ in range(64)))


def event(sequence: int, state: str, message: str = "") -> dict[str, Any]:
    moment = f"2026-11-27T12:00:{sequence:02}Z"
    return {
        "request_id": "r-1",
        "sequence": sequence,
        "time": moment,
        "state": state,
        "kind": "state",
        "message": message or f"Now {state}.",
    }


class Cut(httpx.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self.text.encode()
        raise httpx.ReadError("connection reset")


def stream(*events: dict[str, Any], cut: bool = False) -> httpx.Response:
    text = ": hello\n\n" + "".join(f"id: {e['sequence']}\ndata: {json.dumps(e)}\n\n" for e in events)
    headers = {"content-type": "text/event-stream"}
    if cut:
        return httpx.Response(200, headers=headers, stream=Cut(text))
    return httpx.Response(200, headers=headers, content=text)


def test_a_stream_that_breaks_off_is_taken_up_where_it_was(playing: Any) -> None:
    states = ["received", "queued", "preparing", "registered"]
    all_events = [event(number, state) for number, state in enumerate(states, 1)]
    client, played, pauses = playing(
        stream(*all_events[:2], cut=True),
        fine(RECORD | {"state": "queued"}),
        stream(*all_events[1:3]),  # one is sent again
        fine(RECORD | {"state": "preparing", "n_events": 3}),
        httpx.ConnectError("restarting"),
        stream(all_events[3]),
        fine(RECORD | {"state": "registered", "n_events": 4}),
    )
    seen: list[int] = []
    record = client.wait("r-1", progress=lambda e: seen.append(e.sequence))
    assert (record.state, seen) == ("registered", [1, 2, 3, 4])
    resumed = [r.headers["last-event-id"] for r in played.asked if r.url.path.endswith("/events")]
    assert resumed == ["0", "2", "3", "3"]
    assert pauses


def test_events_that_were_are_read_without_waiting_for_more(playing: Any) -> None:
    pages = [{"items": [event(1, "received")], "next": "1"}, {"items": [event(2, "queued")], "next": None}]
    client, played, _ = playing(*map(fine, pages))
    assert [e.sequence for e in client.events("r-1")] == [1, 2]
    assert all(request.headers["accept"] == "application/json" for request in played.asked)


def test_a_wait_ends_when_its_time_is_up(playing: Any) -> None:
    client, _, _ = playing(stream(event(1, "received")))
    with pytest.raises(ServiceFault, match="has not ended within 0 s"):
        client.wait("r-1", timeout_s=0)


def test_a_stream_whose_server_is_gone_is_given_up(playing: Any) -> None:
    client, played, _ = playing(stream(event(1, "received"), cut=True), fine(), httpx.ConnectError("gone"), retries=2)
    with pytest.raises(ServiceFault, match="cannot be reached"):
        client.wait("r-1")
    assert len(played.asked) < 8


# --- pages and uploads ------------------------------------------------------------------


def summary(number: int) -> dict[str, Any]:
    names = ("retry_of", "fault", "door", "submitted_by", "expected_s", "held", "cancel_requested_at")
    kept = {name: RECORD[name] for name in ("state", "created", "updated", "attempt")}
    which = {"id": f"r-{number}", "team": "growth", "variant": "growth.churn", "recipe": "tabular-auto"}
    return kept | which | {"priority": "normal"} | dict.fromkeys(names)


def test_pages_are_asked_for_as_they_are_needed(playing: Any) -> None:
    pages = [{"items": [summary(n) for n in (1, 2)], "next": "c1"}, {"items": [summary(3)], "next": None}]
    client, played, _ = playing(*map(fine, pages))
    found = client.requests(team="growth", states=["queued", "failed"])
    assert played.asked == []
    assert next(found).id == "r-1"
    assert len(played.asked) == 1
    assert [one.id for one in found] == ["r-2", "r-3"]
    first, second = (request.url.params for request in played.asked)
    assert first.get_list("state") == ["queued", "failed"]
    assert ("cursor" in first, second["cursor"]) == (False, "c1")


def test_no_more_is_asked_for_than_is_wanted(playing: Any) -> None:
    client, played, _ = playing(fine({"items": [summary(n) for n in range(5)], "next": "more"}))
    assert len(list(client.requests(most=3))) == 3
    assert [request.url.params["limit"] for request in played.asked] == ["3"]


def test_a_file_is_streamed_with_its_size_and_sent_from_the_beginning_again(tmp_path: Path, playing: Any) -> None:
    content = b"a,b\n" + b"1,2\n" * 200_000
    (tmp_path / "rows.csv").write_bytes(content)
    kept = {"digest": "0" * 64, "team": "growth", "name": "rows.csv", "kind": "csv", "bytes": len(content)}
    kept |= {"created": RECORD["created"], "created_by": "token:ci"}
    client, played, _ = playing(httpx.WriteError("cut"), fine({"dataset": kept, "known": False}, 201))
    told_progress: list[tuple[int, int]] = []
    found = client.upload(tmp_path / "rows.csv", progress=lambda sent, total: told_progress.append((sent, total)))
    assert found.digest == "0" * 64
    assert [request.content == content for request in played.asked] == [True, True]
    assert {request.headers["content-length"] for request in played.asked} == {str(len(content))}
    assert played.asked[0].url.params["filename"] == "rows.csv"
    assert told_progress[-1] == (len(content), len(content))


@pytest.mark.parametrize("data", ["none.csv", ".", object()])
def test_what_cannot_be_uploaded(data: Any, playing: Any) -> None:
    client, played, _ = playing(fine())
    with pytest.raises((InvalidData, InvalidRequest)) as refused:
        client.upload(data)
    assert [detail.field for detail in refused.value.details] == ["data"]
    assert played.asked == []


def test_the_package_offers_the_client() -> None:
    assert factory.Client is Client
    assert "Client" in factory.__all__

"""Uploads over HTTP: streamed, looked at, kept once; each team has its own, and what goes wrong leaves nothing."""

from __future__ import annotations

import errno
import gzip
import io
import os
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from factory.data import uploads
from factory.errors import StorageFault
from factory.ledger import Ledger
from factory.spec import Actor
from serve.portal import uploading
from tests.answers import error_of
from tests.portal.conftest import MakeWorld, World, customers, fields_of

ANN = Actor(who="ann")
CSV = customers().to_csv(index=False).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    customers().to_parquet(buffer, index=False)
    return buffer.getvalue()


def left_over(world: World) -> list[Path]:
    folder = world.settings.uploads
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("c.csv", CSV, "csv"), ("c.csv.gz", gzip.compress(CSV), "csv"), ("c.parquet", parquet(), "parquet")],
)
def test_a_table_is_kept_and_shown(name: str, content: bytes, kind: str, world: World) -> None:
    response = world().post("/datasets", params={"filename": name}, content=content)
    assert response.status_code == 201
    shown = response.json()
    dataset = shown["dataset"]
    assert (dataset["name"], dataset["kind"], dataset["bytes"], dataset["rows"]) == (name, kind, len(content), 300)
    assert (dataset["team"], dataset["columns"]) == ("growth", ["age", "income", "city", "churned"])
    assert len(shown["preview"]["rows"]) == 20
    assert response.headers["location"] == f"/api/v1/datasets/{dataset['digest']}"
    again = world("growth/read").get(f"/datasets/{dataset['digest']}")
    assert again.json() == shown | {"known": True}
    assert [row.action for row in world.ledger.audit_page(limit=1).items] == ["dataset.upload"]


def test_a_form_is_taken_as_the_body_itself(world: World) -> None:
    raw = world().post("/datasets", params={"filename": "c.csv"}, content=CSV).json()["dataset"]["digest"]
    form = world().post("/datasets", files={"file": (r"C:\data\c.csv", CSV)}, data={"team": "growth"})
    assert form.status_code == 200
    assert (form.json()["dataset"]["digest"], form.json()["known"]) == (raw, True)
    assert form.json()["dataset"]["name"] == "c.csv"
    operator = world("operator").post("/datasets", files={"file": ("c.csv", CSV)}, data={"team": "risk"})
    assert operator.status_code == 201
    assert world.ledger.upload_teams(raw) == ["growth", "risk"]
    assert len(left_over(world)) == 1


def test_the_same_bytes_are_one_file_and_no_team_learns_of_the_other(world: World) -> None:
    mine, theirs = world.upload(), world.upload("risk")
    assert mine == theirs
    assert len(left_over(world)) == 1
    assert len(world().get("/datasets").json()["items"]) == 1
    assert world().delete(f"/datasets/{mine}").status_code == 204
    error_of(world().get(f"/datasets/{mine}"), 404)
    error_of(world().delete(f"/datasets/{mine}"), 404)
    assert world("risk/read").get(f"/datasets/{mine}").status_code == 200
    assert len(left_over(world)) == 1
    world("risk/submit").delete(f"/datasets/{mine}")
    assert left_over(world) == []


def test_bytes_that_another_team_uploads_while_they_are_forgotten_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = world.upload()
    ask = Ledger.upload_teams
    answers: list[list[str]] = []

    def late(ledger: Ledger, digest: str) -> list[str]:
        answers.append(ask(ledger, digest))
        if len(answers) == 1:
            world.upload("risk")
        return answers[-1]

    monkeypatch.setattr(Ledger, "upload_teams", late)
    assert world().delete(f"/datasets/{digest}").status_code == 204
    assert answers == [[], ["risk"]]
    assert [path.stem for path in left_over(world)] == [digest]
    assert world("risk/read").get(f"/datasets/{digest}").status_code == 200


def test_datasets_of_others_are_seen_where_they_were_shared_with_the_team(world: World) -> None:
    digest = world.upload()
    theirs = world("risk/read")
    error_of(theirs.get(f"/datasets/{digest}"), 404)
    assert theirs.get("/datasets").json()["items"] == []
    world.ledger.create_team("sales", by=ANN)
    world.ledger.share("dataset", digest, team="growth", with_team="sales", by=ANN)
    error_of(theirs.get(f"/datasets/{digest}"), 404)
    world.ledger.share("dataset", digest, team="growth", with_team="risk", by=ANN)
    assert theirs.get(f"/datasets/{digest}").json()["dataset"]["team"] == "growth"
    assert [item["digest"] for item in theirs.get("/datasets").json()["items"]] == [digest]
    error_of(world("risk/submit").delete(f"/datasets/{digest}"), 404)
    error_of(world("risk/submit").delete(f"/datasets/{digest}", params={"team": "growth"}), 404)


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("c.csv", b"", 422),
        ("c.csv", b"\x00\x01\x02", 422),
        ("c.parquet", CSV, 422),
        ("c.parquet", parquet()[:-20], 422),
        ("c.csv", b"MZ\x90\x00" + b"\x00" * 100, 422),
        ("c.pkl", b"\x80\x04\x95", 422),
        ("", CSV, 400),
        ("a\x07b.csv", CSV, 400),
        ("x" * 300 + ".csv", CSV, 400),
    ],
)
def test_what_is_not_what_it_says_leaves_nothing(name: str, content: bytes, status: int, world: World) -> None:
    error_of(world().post("/datasets", params={"filename": name}, content=content), status)
    error_of(world().post("/datasets", content=content), 400)
    assert left_over(world) == []
    assert world.ledger.upload_page().items == ()


def test_an_upload_that_is_too_large_is_refused_before_and_while_it_comes(make_world: MakeWorld) -> None:
    world = make_world(max_upload_mb=0.01)
    sent = 0

    async def chunked() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield CSV

    error_of(world().post("/datasets", params={"filename": "c.csv"}, content=CSV * 9), 413)
    error_of(world().post("/datasets", params={"filename": "c.csv"}, content=chunked()), 413)
    error_of(world().post("/datasets", files={"file": ("c.csv", CSV * 9)}), 413)
    assert left_over(world) == []


@pytest.mark.parametrize("kind", ["body", "form"])
def test_an_upload_that_is_cut_off_leaves_nothing(kind: str, world: World) -> None:
    request = httpx.Request("POST", "http://x", files={"file": ("c.csv", CSV)})
    whole = request.read() if kind == "form" else CSV
    headers = {"content-type": request.headers["content-type"]} if kind == "form" else {}

    async def cut() -> AsyncIterator[bytes]:
        yield whole[: len(whole) // 2]

    headers |= {"content-length": str(len(whole))}
    response = world().post("/datasets", params={"filename": "c.csv"}, content=cut(), headers=headers)
    assert response.status_code in (400, 422)
    assert left_over(world) == []


def test_a_sender_that_goes_away_leaves_nothing(world: World) -> None:
    import asyncio

    async def gone() -> list[dict[str, Any]]:
        told = iter([{"type": "http.request", "body": CSV, "more_body": True}, {"type": "http.disconnect"}])
        answers: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return next(told)

        async def send(message: Any) -> None:
            answers.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/datasets",
            "raw_path": b"/api/v1/datasets",
            "root_path": "",
            "scheme": "http",
            "query_string": b"filename=c.csv",
            "headers": [(b"authorization", f"Bearer {world.secrets['growth/submit']}".encode())],
            "client": ("10.0.0.7", 1),
            "server": ("portal", 80),
        }
        await world.app(scope, receive, send)
        return answers

    assert asyncio.run(gone())[0]["status"] == 400
    assert left_over(world) == []


def test_a_full_disk_is_told_and_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1e6

    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: Full)
    response = world().post("/datasets", params={"filename": "c.csv"}, content=CSV)
    assert "free" in error_of(response, 503)["message"]
    assert response.headers["retry-after"]
    assert left_over(world) == []


@pytest.mark.parametrize("kind", ["body", "form"])
def test_a_disk_that_becomes_full_meanwhile_is_told_and_leaves_nothing(kind: str, world: World) -> None:
    """A limit on files stands in for the disk: the system refuses to write on."""
    content = CSV * 100
    sent: dict[str, Any] = {"content": content} if kind == "body" else {"files": {"file": ("c.csv", content)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, before[1]))
    try:
        response = world().post("/datasets", params={"filename": "c.csv"}, **sent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = error_of(response, 503)
    assert error["code"] == "storage_fault"
    assert "nothing of the upload was kept" in error["hint"]
    assert str(world.settings.root) not in response.text
    assert left_over(world) == []
    assert world().post("/datasets", params={"filename": "c.csv"}, **sent).status_code == 201


def test_an_upload_that_cannot_be_recorded_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise StorageFault("The ledger is away.", hint="Start it.")

    with monkeypatch.context() as patch:
        patch.setattr(type(world.ledger), "record_upload", gone)
        error_of(world().post("/datasets", params={"filename": "c.csv"}, content=CSV), 503)
    assert left_over(world) == []
    digest = world().post("/datasets", params={"filename": "c.csv"}, content=CSV).json()["dataset"]["digest"]
    with monkeypatch.context() as patch:
        patch.setattr(type(world.ledger), "record_upload", gone)
        error_of(world("risk/submit").post("/datasets", params={"filename": "c.csv"}, content=CSV), 503)
    assert world().get(f"/datasets/{digest}").status_code == 200, "what others have stays"


def test_a_disk_that_does_not_answer_is_a_503_and_tells_no_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = world.upload()

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(world.settings.uploads / "secret.csv"))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", broken)
        response = world().get(f"/datasets/{digest}")
    assert error_of(response, 503)["message"].endswith("Input/output error.")
    assert "secret" not in response.text
    assert response.headers["retry-after"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", broken)
        assert world().delete(f"/datasets/{digest}").status_code == 204
    error_of(world().get(f"/datasets/{digest}"), 404)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=" + "b" * 300, b"x"),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="team"\r\n\r\ngrowth\r\n--b--',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="team"\r\n\r\n' + b"x" * 2000 + b"\r\n--b--",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x: y\r\n" * 40 + b"\r\n\r\n--b--"),
        ("multipart/form-data; boundary=b", b"--b\r\nx: y\r\n\r\nz\r\n" * 30 + b"--b--"),
    ],
)
def test_forms_that_are_none(content_type: str, body: bytes, world: World) -> None:
    error_of(world().post("/datasets", content=body, headers={"content-type": content_type}), 400)
    assert left_over(world) == []


def test_forms_with_more_than_a_file_and_its_team(world: World) -> None:
    two = [("file", ("a.csv", CSV)), ("file", ("b.csv", CSV))]
    error_of(world().post("/datasets", files=two), 400)
    assert fields_of(error_of(world().post("/datasets", files=two[:1], data={"taem": "x"}), 400)) == {"taem"}
    error_of(world().post("/datasets", files=two[:1], data={"team": "risk"}), 404)
    error_of(world().post("/datasets", params={"filename": "a.csv", "team": "risk"}, content=CSV), 404)
    assert fields_of(error_of(world("operator").post("/datasets", files=two[:1]), 400)) == {"team"}
    assert left_over(world) == []


def test_an_upload_is_handed_on_as_it_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "AT_ONCE", 16 * 1024)
    sent, taken, ahead = 0, [0], []
    write = uploads.Incoming.write

    def watched(self: uploads.Incoming, chunk: bytes) -> None:
        taken.append(taken[-1] + len(chunk))
        write(self, chunk)

    async def stream() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(40):
            ahead.append(sent - taken[-1])
            yield CSV if sent == 0 else CSV[CSV.index(b"\n") + 1 :]
            sent += len(CSV)

    monkeypatch.setattr(uploads.Incoming, "write", watched)
    response = world().post("/datasets", params={"filename": "c.csv"}, content=stream())
    assert response.json()["dataset"]["rows"] == 300 * 40
    assert taken[-1] == response.json()["dataset"]["bytes"]
    assert max(ahead) < 16 * 1024 + 3 * len(CSV)


def test_a_digest_that_is_none(world: World) -> None:
    for digest in ("x", "0" * 63, "..%2f..", "A" * 64):
        assert world().get(f"/datasets/{digest}").status_code in (400, 404)
    error_of(world().get(f"/datasets/{'0' * 64}"), 404)

"""Outcomes: who may tell them, how they are read, and that none is lost on its way into files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from factory.errors import InvalidRequest
from serve import journal, outcomes, recording
from serve.journal import Outcome
from tests.answers import error_of

from .calls import CHURN, ROW
from .conftest import SETUP, Caller, Shelf
from .recorded import recorder, writing, written


def test_outcomes_are_written_beside(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    own_shelf.put("growth.churn", churn)
    kept = recorder(tmp_path)
    caller = writing(own_shelf, kept)
    told = [
        {"key": "4711", "outcome": "yes", "time": "2026-11-29T10:00:00+01:00"},
        {"key": "4712", "outcome": 12.5},
        {"key": "4713", "outcome": True},
    ]
    answer = caller.post("/variants/growth.churn/outcomes", json={"outcomes": told})
    assert answer.json() == {"written": 3}
    caller.post("/variants/growth.churn/outcomes", json={"outcomes": [{"key": "4714", "outcome": "no"}]})
    kept.close()
    assert len(list(tmp_path.rglob("*.parquet"))) == 1, "one file of many rows, not one for each call"
    assert not list((tmp_path / "outcomes-journal").iterdir())
    frame = written(tmp_path, "outcomes")
    assert frame[["key", "outcome"]].values.tolist() == [
        ["4711", "yes"],
        ["4712", "12.5"],
        ["4713", "true"],
        ["4714", "no"],
    ]
    assert frame["time"][0] == pd.Timestamp("2026-11-29T09:00:00Z")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"outcomes": []}, 400),
        ({"outcomes": [{"key": "a", "outcome": 1}]} | {f"x{n}": 1 for n in range(1_000)}, 400),
        ({"outcomes": [{"key": "a", "outcome": 1} | {f"x{n}": 1 for n in range(1_000)}]}, 400),
        ({"outcomes": [{"key": "", "outcome": 1}]}, 400),
        ({"outcomes": [{"key": "a"}]}, 400),
        ({"outcomes": [{"key": "a", "outcome": 1, "time": "yesterday"}]}, 400),
        ({"outcomes": [{"key": str(k), "outcome": 1} for k in range(51)]}, 413),
    ],
)
def test_outcomes_that_are_none_are_refused(
    body: dict[str, Any], status: int, own_shelf: Shelf, churn: Any, tmp_path: Path
) -> None:
    own_shelf.put("growth.churn", churn)
    error_of(writing(own_shelf, recorder(tmp_path)).post("/variants/growth.churn/outcomes", json=body), status)
    assert not (tmp_path / "outcomes").exists()


def test_outcomes_are_looked_at_in_parts_and_named_by_their_place_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "LOOKED_AT", 2)
    good: dict[str, Any] = {"key": "a", "outcome": 1}
    body = {"outcomes": [good, good, good, {"key": "a"}, {}]}
    with pytest.raises(InvalidRequest) as refused:
        outcomes.read_outcomes(json.dumps(body).encode(), most=50)
    assert [detail.field for detail in refused.value.details] == ["outcomes.3.outcome"]
    many = good | {f"x{n}": 1 for n in range(1_000)}
    with pytest.raises(InvalidRequest, match=r"outcomes\.2: It has 1,002 fields; key, outcome and time are allowed\."):
        outcomes.read_outcomes(json.dumps({"outcomes": [good, good, many]}).encode(), most=50)
    assert len(outcomes.read_outcomes(json.dumps({"outcomes": [good] * 5}).encode(), most=50)) == 5


def test_a_full_disk_is_told_of_an_outcome_and_not_of_a_prediction(
    own_shelf: Shelf, churn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_shelf.put("growth.churn", churn)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    kept = recorder(tmp_path)
    caller = writing(own_shelf, kept)
    told = {"outcomes": [{"key": "a", "outcome": 1}]}
    with monkeypatch.context() as broken:
        broken.setattr(recording.pq, "write_table", full)
        broken.setattr(journal.os, "fsync", full)
        assert "No space left" in error_of(caller.post("/variants/growth.churn/outcomes", json=told), 503)["message"]
        assert caller.post(CHURN, json={"dataframe_records": [ROW]}).status_code == 200
        kept.flush()
        assert not list(tmp_path.rglob("*.parquet*"))
    assert caller.post("/variants/growth.churn/outcomes", json={"outcomes": [{"key": "b", "outcome": 2}]}).is_success
    with monkeypatch.context() as broken:
        broken.setattr(recording.pq, "write_table", full)
        kept.close()
    kept.flush()
    assert written(tmp_path, "outcomes")["key"].tolist() == ["b"], "what was answered with an error is not kept"


def test_outcomes_of_a_killed_replica_are_made_into_files_once(tmp_path: Path) -> None:
    told = "from datetime import UTC, datetime; moment = datetime(2026, 11, 29, tzinfo=UTC)"
    code = f"""
import os, signal
from pathlib import Path
from serve.recording import Recorder
from serve.journal import Outcome
{told}
kept = Recorder(Path({str(tmp_path)!r}), percent=0, days=30)
kept.put_outcomes("growth.churn", [Outcome("a", "yes", moment), Outcome("b", "no", moment)])
kept.put_outcomes("growth.spend", [Outcome("c", "1.5", moment)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    [left] = (tmp_path / "outcomes-journal").iterdir()
    with left.open("ab") as file:
        file.write(b'{"variant": "growth.churn", "rows": [["d", "y')  # of a call that was never answered
    lines = left.read_bytes()
    recorder(tmp_path).flush()
    assert sorted(written(tmp_path, "outcomes")["key"]) == ["a", "b", "c"]
    assert not left.exists()
    left.write_bytes(lines)  # killed between the files and the end of the journal
    recorder(tmp_path).flush()
    assert sorted(written(tmp_path, "outcomes")["key"]) == ["a", "b", "c"], "nothing twice"


def test_a_journal_that_cannot_be_read_keeps_no_later_one_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "outcomes-journal"
    folder.mkdir()
    good = b'{"variant": "growth.churn", "rows": [["b", "yes", 1790000000000000]]}\n'
    odd = [b"null\n", b'{"rows": []}\n', b'{"variant": "growth.churn", "rows": [["a", "yes"]]}\n', b"\xff\n"]
    (folder / "no-moment.jsonl").write_bytes(good)
    (folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-aaaaaaaa.jsonl").write_bytes(b"".join(odd) + good)
    crashed = folder / "crashed.draft"
    crashed.touch()
    os.utime(crashed, (1e9, 1e9))
    recorder(tmp_path).flush()
    assert written(tmp_path, "outcomes")["key"].tolist() == ["b"]
    assert [path.name for path in folder.iterdir()] == ["no-moment.jsonl"]


def test_what_another_replica_writes_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_ROWS", 3)
    one, other = recorder(tmp_path), recorder(tmp_path)
    moment = datetime.now(UTC)
    one.put_outcomes("growth.churn", [Outcome("a", "yes", moment)])
    other.flush()
    assert written(tmp_path, "outcomes").empty
    one.put_outcomes("growth.churn", [Outcome("b", "yes", moment), Outcome("c", "yes", moment)])
    other.flush()
    assert len(written(tmp_path, "outcomes")) == 3, "a journal that is full is anybody's"
    one.close()
    other.close()


def test_outcomes_are_told_by_the_variants_own_team(own_shelf: Shelf, churn: Any, tmp_path: Path) -> None:
    ledger = own_shelf.ledger
    for team in ("growth", "risk"):
        ledger.create_team(team, by=SETUP)
    own_shelf.put("growth.churn", churn)
    app = writing(own_shelf, recorder(tmp_path)).app
    told = {"outcomes": [{"key": "a", "outcome": 1}]}

    def tell(team: str | None, *scopes: Any) -> httpx.Response:
        secret = ledger.issue_token("caller", team=team, scopes=scopes, by=SETUP).secret
        return Caller(app, secret).post("/variants/growth.churn/outcomes", json=told)

    error_of(tell("risk", "predict"), 404)
    ledger.share("variant", "growth.churn", team="growth", with_team="risk", by=SETUP)
    app = writing(own_shelf, recorder(tmp_path)).app
    assert "another team's" in error_of(tell("risk", "predict"), 403)["message"]
    assert "may only read" in error_of(tell("growth", "read"), 403)["message"]
    assert "may only read" in error_of(tell(None, "read"), 403)["message"]
    assert tell("growth", "predict").is_success
    assert tell("growth", "deploy").is_success
    assert "not for outcomes" in error_of(tell("growth", "submit"), 403)["message"]
    assert tell(None, "predict").is_success

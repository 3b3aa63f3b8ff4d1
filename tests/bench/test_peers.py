"""Every peer is pinned and can be told what to do; baselines read any table."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.peers import PEERS, PINS, REFERENCE, ROOT, Peer
from bench.peers.baselines import encoder, hist_gradient_boosting
from bench.peers.job import Job, Meta, median_ms


def test_baselines_read_text_dates_and_levels_they_have_not_seen() -> None:
    dates = pd.date_range("2026-01-01", periods=300, unit="us")
    frame = pd.DataFrame({"few": ["a", "b", None] * 100, "many": [f"id{i:03}" for i in range(300)], "at": dates})
    read = encoder(frame, max_levels=255)(pd.DataFrame({"few": ["b", "z"], "many": ["id007", "new"], "at": dates[:2]}))
    assert read["few"].cat.codes.tolist() == [1, -1]
    assert read["many"].tolist() == [7.0, pytest.approx(np.nan, nan_ok=True)]
    assert read["at"].diff().iloc[1] == 24 * 3600
    predict = hist_gradient_boosting(frame, pd.Series(np.arange(300.0)), regression=True, seed=0)
    assert list(predict(frame).columns) == ["prediction"]


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_peer_has_a_runner_and_exact_pins(peer: Peer) -> None:
    assert find_spec(f"bench.peers.{peer.runner}") is not None
    pins = (PINS / f"{peer.environment}.txt").read_text().splitlines()
    assert pins
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_peer_is_documented_as_it_is_run(peer: Peer) -> None:
    assert f"| {peer.name} | {peer.about} |" in (ROOT / "docs" / "benchmark.md").read_text()


def test_a_job_and_its_answer_survive_the_way(tmp_path: Path) -> None:
    job = Job("train", "test", "y", "binary", "AUC", 60, 0, 2, REFERENCE)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    meta = Meta(fit_s=1.5, latency_ms=0.2, timing_s=0.1, versions={"pandas": "2.3.3"})
    meta.write(tmp_path / "meta.json")
    assert Meta.read(tmp_path / "meta.json") == meta


def test_the_first_rows_are_not_timed() -> None:
    seen: list[int] = []
    assert median_ms(seen.append, list(range(10))) >= 0
    assert seen == list(range(10))

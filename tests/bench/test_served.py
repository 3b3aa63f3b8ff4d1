"""What load generators print, and the charts that are drawn of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import serving_chart
from bench.served import read_wrk

WRK = """Running 5s test @ http://127.0.0.1:1/
  2 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    16.87ms    4.00ms  98.38ms   91.00%
    Req/Sec   440.00     30.00   500.00     70.00%
  Latency Distribution
     50%   16.87ms
     75%   18.00ms
     90%   20.00ms
     99%    1.50s
  4420 requests in 5.00s, 1.20MB read
  Non-2xx or 3xx responses: 20
Requests/sec:    884.00
Transfer/sec:    240.00KB
"""


def test_wrk_is_read() -> None:
    load = read_wrk(WRK)
    assert (load.a_second, load.good_a_second, load.failed) == (884.0, 880.0, 20)
    assert (load.p50_ms, load.p99_ms, load.worst_ms) == (16.87, 1500.0, 98.38)


def row(system: str, clients: int, **more: Any) -> dict[str, Any]:
    return {"system": system, "clients": clients, "good_a_second": 900.0, "p50_ms": 1.1, "p99_ms": 3.0, **more}


def test_charts_are_drawn_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LOAD", "PEERS", "NAMES", "FAULTS"):
        monkeypatch.setattr(serving_chart, name, tmp_path / f"{name.lower()}.svg")
    serving_chart.draw_load([row("nothing", n) for n in (1, 64)] + [row("predictor", n) for n in (1, 16, 64)])
    assert "predictor, 16 clients: 900 answers a second" in (tmp_path / "load.svg").read_text()
    rows = [row(s, n, model=m) for m in ("lightgbm", "linear") for s in ("factory", "mlflow") for n in (1, 16)]
    serving_chart.draw_peers(rows, ours="factory")
    assert "lightgbm, mlflow, 16 clients" in (tmp_path / "peers.svg").read_text()
    minutes = [
        row("predictor", 4, cache_mb=size, minute=minute, hit_rate="99.70%")
        for size in (2_048, 300)
        for minute in ("first", "second")
    ]
    serving_chart.draw_names(minutes, most_p99_ms=50)
    assert "300 MB, second minute: median 1.1 ms" in (tmp_path / "names.svg").read_text()
    kill = {"part": "a replica", "times": 5, "most_after": 1, "outage_s": 0.01, "outage_worst_s": 0.03}
    serving_chart.draw_faults([kill, kill | {"part": "its proxy"}])
    assert "a replica, killed 5 times: at most 1 calls failed" in (tmp_path / "faults.svg").read_text()

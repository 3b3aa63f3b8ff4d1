"""A worker and then the driver killed in the midst of many segments: all are made, and none of them twice.

There are twelve segments; FACTORY_TEST_FULL=1 makes it 54.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import RequestState

from .conftest import processes_of, runs, start, submit, wait_until

FULL = "FACTORY_TEST_FULL" in os.environ
N_SEGMENTS, TIME_S = (54, 240) if FULL else (12, 75)
"""Segments, and the budget in which all of them have their turn, also on a slow machine."""
ROWS_EACH = 150
MADE_BEFORE = N_SEGMENTS // 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(8 * TIME_S)]


def write_request(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    store = np.repeat([f"store-{k:02d}" for k in range(N_SEGMENTS)], ROWS_EACH)
    price, size = generator.uniform(1, 5, len(store)), generator.normal(size=len(store))
    slope = np.repeat(generator.normal(size=N_SEGMENTS), ROWS_EACH)
    sold = 20 + slope * price + size + 0.3 * generator.normal(size=len(store))
    pd.DataFrame({"store": store, "price": price, "size": size, "sold": sold}).to_csv(folder / "sold.csv", index=False)
    request = {
        "team": "retail",
        "name": "sold",
        "recipe": "tabular-fast",
        "dataset": {"path": str(folder / "sold.csv"), "target": "sold"},
        "families": ["constant", "linear", "lightgbm"],
        "segments": {"by": "store", "min_rows": 60},
        "budget": {"time_s": TIME_S},
    }
    path = folder / "request.yaml"
    path.write_text(yaml.safe_dump(request))
    return path


def test_killed_in_the_midst_of_segments(home: Path, tmp_path: Path) -> None:
    request_id = submit(home, write_request(tmp_path))

    with Ledger.open(Settings(home=home).ledger) as ledger:

        def made() -> dict[str, int]:
            return {v.segment: v.version for v in ledger.variants(request_id=request_id) if v.segment}

        def at_work() -> list[int]:
            return [p.pid for p in processes_of(home) if runs(p, "_attempt")]

        def in_the_midst() -> bool:
            assert driver.poll() is None, driver.communicate()
            return len(made()) >= MADE_BEFORE and bool(at_work())

        driver = start(home, "run", request_id)
        wait_until(lambda: bool(made()) and bool(at_work()), within_s=2 * TIME_S, what="the first segment")
        victim = next(p for p in processes_of(home) if p.pid in at_work())
        victim.kill()
        wait_until(in_the_midst, within_s=15 + TIME_S, what="more segments after a worker's death")
        driver.send_signal(signal.SIGKILL)
        driver.communicate(timeout=30)
        before = made()
        assert MADE_BEFORE <= len(before) < N_SEGMENTS
        wait_until(lambda: not processes_of(home), within_s=30, what="the end of Ray's processes")

        again = start(home, "run", request_id, "--json")
        output, errors = again.communicate(timeout=4 * TIME_S)
        assert again.returncode == 0, errors
        assert ledger.request(request_id).state is RequestState.REGISTERED
        assert not processes_of(home)

        # A slow machine leaves no time for some; the pooled variant serves those.
        shown = json.loads(output)
        everyone = {f"store-{k:02d}" for k in range(N_SEGMENTS)}
        assert made().keys() | set(shown["pooled_segments"]) == everyone
        assert made().keys().isdisjoint(shown["pooled_segments"])
        assert set(made().values()) == {1}, "each once"
        names = Counter(v.name for v in ledger.variants(request_id=request_id))
        assert max(names.values()) == 1
        assert before.items() <= made().items()
        assert {v["segment"] for v in shown["variants"]} == {"", *made()}

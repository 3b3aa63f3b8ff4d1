"""A driver killed in mid-search: nothing of Ray stays, nothing finished runs again, the request ends registered."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import RequestState, Trial, TrialState

from .conftest import processes_of, runs, start, submit, wait_until

pytestmark = pytest.mark.slow
N_TRIALS = 18
"""Enough that some are left when Ray's workers have taken over from the inline thread."""
N_ROWS = 20_000
"""Enough that a trial lasts, so that Ray's workers are up before the inline thread has done them all."""
FINISHED_BEFORE = 3


def write_request(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    columns = {f"x{i}": generator.normal(size=N_ROWS) for i in range(8)}
    signal_ = columns["x0"] + columns["x1"] * columns["x2"] + generator.normal(size=N_ROWS)
    frame = pd.DataFrame(columns | {"bought": np.where(signal_ > 0.5, "yes", "no")})
    frame.to_csv(folder / "customers.csv", index=False)
    request = {
        "team": "growth",
        "name": "bought",
        "recipe": "tabular-fast",
        "dataset": {"path": str(folder / "customers.csv"), "target": "bought"},
        "families": ["constant", "lightgbm", "xgboost"],
        "spaces": {name: {"learning_rate": [0.05, 0.3]} for name in ("lightgbm", "xgboost")},
        "budget": {"time_s": 600, "trials": N_TRIALS},
    }
    path = folder / "request.yaml"
    path.write_text(yaml.safe_dump(request))
    return path


def configurations(trials: list[Trial]) -> list[tuple[str, str]]:
    return [(t.family, json.dumps(t.parameters, sort_keys=True)) for t in trials]


def fixed(trial: Trial) -> tuple[object, ...]:
    """Return what a finished trial keeps."""
    return trial.number, trial.family, trial.parameters, trial.seed, trial.state, trial.origin, trial.reason


def fold_scores(trial: Trial) -> dict[int, float]:
    return dict(zip(trial.folds, trial.fold_scores, strict=True))


def test_a_killed_driver_is_followed_by_one_that_goes_on(home: Path, tmp_path: Path) -> None:
    request_id = submit(home, write_request(tmp_path))

    with Ledger.open(Settings(home=home).ledger) as ledger:

        def finished() -> list[Trial]:
            return [t for t in ledger.trials(request_id) if t.finished]

        def in_mid_search_on_ray() -> bool:
            assert driver.poll() is None, driver.communicate()
            return len(finished()) >= FINISHED_BEFORE and any(runs(p, "Trainable.train") for p in processes_of(home))

        driver = start(home, "run", request_id)
        wait_until(in_mid_search_on_ray, within_s=120, what="mid-search")
        assert {"raylet", "gcs_server"} <= {p.name() for p in processes_of(home)}
        driver.send_signal(signal.SIGKILL)
        driver.communicate(timeout=30)
        before = finished()
        assert FINISHED_BEFORE <= len(before) < N_TRIALS
        assert ledger.request(request_id).state is RequestState.SEARCHING
        wait_until(lambda: not processes_of(home), within_s=30, what="the end of Ray's processes")

        again = start(home, "run", request_id, "--json")
        output, errors = again.communicate(timeout=300)
        assert again.returncode == 0, errors
        assert json.loads(output)["state"] == "registered"
        assert ledger.request(request_id).state is RequestState.REGISTERED
        assert ledger.request(request_id).attempt == 2
        assert not processes_of(home)

        after = ledger.trials(request_id)
        for known, now in zip(before, [t for t in after if t.number in {b.number for b in before}], strict=True):
            assert fixed(now) == fixed(known), "what had finished is as it was"
            assert fold_scores(known).items() <= fold_scores(now).items(), "or has gained folds"
        killed = [t for t in after if t.state is TrialState.KILLED]
        assert {t.reason for t in killed} <= {"Its driver was interrupted."}
        ran = [t for t in after if t.state is not TrialState.KILLED]
        assert len(ran) == N_TRIALS
        assert len(set(configurations(ran))) == N_TRIALS, "no configuration was run twice"
        (variant,) = ledger.variants("growth.bought")
        assert variant.request_id == request_id
        assert ledger.alias("growth.bought", "champion") == variant.version

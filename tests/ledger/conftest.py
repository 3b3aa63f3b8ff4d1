"""A ledger in a fresh folder, and documents to put into it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factory.ledger import Ledger
from factory.spec import Trial, TrialState, Variant, VariantRequest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'home' / 'ledger.db'}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger.open(url) as opened:
        yield opened


@pytest.fixture
def order() -> VariantRequest:
    return make_order()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in a process of its own; what is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", code, *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def make_order(*, team: str = "growth", name: str = "churn", recipe: str = "tabular-auto") -> VariantRequest:
    return VariantRequest.model_validate(
        {
            "team": team,
            "name": name,
            "recipe": recipe,
            "dataset": {"path": "customers.parquet", "target": "churned"},
            "spaces": {"lightgbm": {"num_leaves": [15, 63]}},
            "deployment": {"as": "canary", "percent": 10},
        }
    )


def make_trial(number: int = 0, *, segment: str = "", state: TrialState = TrialState.SUCCEEDED) -> Trial:
    return Trial(
        number=number,
        family="lightgbm",
        parameters={"num_leaves": 31, "learning_rate": 0.1, "extra_trees": True, "max_bin": None},
        state=state,
        score=0.84 if state is TrialState.SUCCEEDED else None,
        folds=(0, 1) if state is TrialState.SUCCEEDED else (),
        fold_scores=(0.83, 0.85) if state is TrialState.SUCCEEDED else (),
        segment=segment,
    )


def make_variant(request_id: str, version: int = 1, *, name: str = "growth.churn") -> Variant:
    return Variant(
        name=name,
        version=version,
        request_id=request_id,
        task="binary",
        metric="roc_auc",
        score=0.84,
        score_low=0.82,
        score_high=0.86,
        recipe="tabular-auto",
        recipe_digest="a" * 64,
        dataset_digest="b" * 64,
        bundle_digest="c" * 64,
    )

"""What is handed over with a judged variant: its model card, the files of its evidence, predictions of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from factory.data.dataset import FeatureLineage
from factory.data.findings import Finding
from factory.data.profile import DatasetProfile
from factory.data.tables import read_table
from factory.search.engine import SearchResult
from factory.search.plan import Plan
from factory.spec import ColumnType, Trial, Variant
from factory.variants.appraisal import Appraisal, Baseline
from factory.variants.bundle import Bundle
from factory.variants.report import Card, example_row, leaderboard, learning_curves, render


def model_card(
    variant: Variant,
    appraisal: Appraisal,
    result: SearchResult,
    *,
    plan: Plan,
    baseline: Baseline,
    findings: tuple[Finding, ...],
    profile: DatasetProfile,
    features: FeatureLineage | None,
    example: pd.DataFrame,
    tested: Mapping[int, float],
) -> Card:
    """Return everything that the variant's model card shows; ``tested`` are scores of single trials on unseen rows."""
    return Card(
        variant=variant,
        baseline=baseline.name,
        verdict=appraisal.verdict,
        comparison=appraisal.comparison,
        evaluation=appraisal.evaluation,
        importance=appraisal.importance,
        leaderboard=leaderboard(result.trials, weights=appraisal.weights, tested=tested),
        curves=learning_curves(result.trials, weights=appraisal.weights),
        frontier=appraisal.frontier,
        calibration=appraisal.bundle.calibration,
        findings=findings,
        slices=appraisal.slices,
        watch=appraisal.watch,
        profile=profile,
        features=features,
        example=example_row(example),
        budget_s=plan.budget.time_s,
    )


def evidence_files(card: Card, trials: Sequence[Trial]) -> dict[str, str]:
    """Return the texts that are kept with a version: its card, the study, the frontier, the verdict, the data's."""
    tested = {row.number: row.test_score for row in card.leaderboard}
    study = [
        {**trial.model_dump(mode="json", exclude={"curve"}), "test_score": tested.get(trial.number)} for trial in trials
    ]
    return {
        "card.html": render(card),
        "trials.json": json.dumps(study),
        "frontier.json": card.frontier.model_dump_json(indent=2) if card.frontier else "{}",
        "verdict.json": card.verdict.model_dump_json(indent=2),
        "screening.json": json.dumps([finding.model_dump(mode="json") for finding in card.findings]),
        "profile.json": card.profile.model_dump_json(),
    }


LEAST_PART = 500
"""Rows that are worth a thread of their own."""


def predict_table(bundle: Bundle, path: str, *, max_rows: int, threads: int = 1) -> pd.DataFrame:
    """Read rows from a file and return their predictions in the form that files of predictions have.

    Classification: one probability column per class, named by the class; regression: a column ``prediction``; rows in
    the order of the file. Parts of the rows are predicted side by side by so many threads; the numbers are the same.

    Raises:
        InvalidData: the file cannot be read, or columns are missing or of the wrong type; all of them are named.
    """
    labels = [c.name for c in bundle.columns if c.type in (ColumnType.CATEGORICAL, ColumnType.TEXT)]
    frame = read_table(path, max_rows=max_rows, text_columns=labels)
    rows = bundle.require(frame, rows=f"The rows of {path!r}")
    n_parts = min(threads, max(1, len(rows) // LEAST_PART))
    bounds = np.linspace(0, len(rows), n_parts + 1).astype(int)
    with ThreadPoolExecutor(n_parts) as pool:
        raw = np.concatenate([*pool.map(lambda a, b: bundle.predict_raw(rows.iloc[a:b]), bounds[:-1], bounds[1:])])
    return pd.DataFrame(raw, columns=list(bundle.classes)) if bundle.classes else pd.DataFrame({"prediction": raw})

"""From a finished search to a judged variant: bundle, scores on unseen rows, verdict.

The rows used here were set aside before the search; neither a trial nor the
blend was chosen on them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from factory.data.dataset import Dataset, FeatureLineage
from factory.data.preparation import Preparation
from factory.data.profile import DatasetProfile
from factory.data.screening import Finding
from factory.data.tables import read_table
from factory.search.engine import Part, SearchResult
from factory.search.metric import Metric
from factory.search.plan import Plan, family
from factory.search.trial import TrialData, preparation_folder
from factory.spec import ColumnType, Task, Variant
from factory.variants.background import Background
from factory.variants.bundle import Bundle, Member, folder_size_mb
from factory.variants.evaluation import (
    Evaluation,
    Importance,
    evaluate,
    one_row_latency_ms,
    permutation_importance,
)
from factory.variants.gates import Evidence, Verdict, judge
from factory.variants.inputs import input_columns
from factory.variants.report import Card, example_row, leaderboard, learning_curves, render
from factory.variants.resampling import Comparison, paired_bootstrap

NEGLIGIBLE = 0.04
"""A trial with less weight than this is left out of the bundle: one addition of the greedy 25 is noise."""

Predictor = Callable[[Dataset], np.ndarray]


@dataclass(frozen=True)
class Baseline:
    """What a variant has to beat: a name for people and its predictions of the unseen rows."""

    name: str
    prediction: np.ndarray


@dataclass(frozen=True)
class Appraisal:
    """A variant's worth.

    Attributes:
        bundle: The variant in memory.
        folder: The variant on disk.
        digest: Of the folder.
        weights: Share of each trial, by its number.
        evaluation: Scores on the unseen rows.
        comparison: Against the baseline.
        importance: Of the columns, most important first.
        latency_ms: Median prediction of one row, in process.
        size_mb: Size of the folder.
        verdict: What the gate says.
    """

    bundle: Bundle
    folder: Path
    digest: str
    weights: dict[int, float]
    evaluation: Evaluation
    comparison: Comparison
    importance: tuple[Importance, ...]
    latency_ms: float
    size_mb: float
    verdict: Verdict


def constant_baseline(dataset: Dataset, unseen: Dataset) -> Baseline:
    """Return what predicting the mean, or the class frequencies, of the training rows would give."""
    if dataset.task is Task.REGRESSION:
        return Baseline("a constant", np.full(len(unseen.y), dataset.y.mean()))
    shares = np.bincount(dataset.y, minlength=len(dataset.classes)) / len(dataset.y)
    return Baseline("a constant", np.tile(shares, (len(unseen.y), 1)))


def appraise(
    result: SearchResult,
    *,
    plan: Plan,
    data: TrialData,
    unseen: Dataset,
    baseline: Baseline,
    findings: Sequence[Finding],
    ignored: tuple[str, ...],
    metadata: dict[str, str],
    folder: Path,
) -> Appraisal:
    """Build the variant's bundle in ``folder``, score it on the unseen rows and let the gate judge it.

    Args:
        result: What the search found.
        plan: Gates and ceilings.
        data: The search's rows and workspace.
        unseen: Rows that the search did not have.
        baseline: What is to be beaten.
        findings: Of the screening.
        ignored: Columns a caller may send although the variant does not use them.
        metadata: Lineage that travels with the bundle.
        folder: Where the bundle goes; replaced if it exists.
    """
    bundle, weights = _under_latency(result, plan, data, unseen)
    background = Background.of(data.dataset.frame, bundle.columns, seed=data.seed)
    bundle = replace(bundle, ignored=ignored, metadata=metadata, background=background)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    digest = bundle.save(folder)
    prediction = bundle.predict_raw(unseen.frame)
    metric: Metric = plan.metric
    seed = plan.request.seed
    comparison = paired_bootstrap(
        metric, unseen.y, prediction, baseline.prediction, seed=seed, margin=plan.gates.min_improvement
    )
    latency_ms = one_row_latency_ms(bundle, unseen.frame)
    size_mb = folder_size_mb(folder)
    evidence = Evidence(
        metric=metric,
        comparison=comparison,
        baseline=baseline.name,
        latency_ms=latency_ms,
        size_mb=size_mb,
        findings=findings,
    )
    return Appraisal(
        bundle=bundle,
        folder=folder,
        digest=digest,
        weights=weights,
        evaluation=evaluate(metric, unseen.y, prediction, classes=unseen.classes, seed=seed),
        comparison=comparison,
        importance=permutation_importance(bundle, unseen.frame, unseen.y, metric=metric, seed=seed, max_rows=500),
        latency_ms=latency_ms,
        size_mb=size_mb,
        verdict=judge(plan.gates, plan.ceilings, evidence),
    )


def appraised(lineage: Variant, appraisal: Appraisal) -> Variant:
    """Return the variant with what its appraisal found."""
    score = appraisal.evaluation.score
    return lineage.model_copy(
        update={
            "state": "registered" if appraisal.verdict.passed else "rejected",
            "score": score.value,
            "score_low": score.low,
            "score_high": score.high,
            "bundle_digest": appraisal.digest,
            "size_mb": round(appraisal.size_mb, 3),
            "latency_ms": round(appraisal.latency_ms, 3),
        }
    )


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
) -> Card:
    """Return everything that the variant's model card shows."""
    return Card(
        variant=variant,
        baseline=baseline.name,
        verdict=appraisal.verdict,
        comparison=appraisal.comparison,
        evaluation=appraisal.evaluation,
        importance=appraisal.importance,
        leaderboard=leaderboard(result.trials, weights=appraisal.weights),
        curves=learning_curves(result.trials, weights=appraisal.weights),
        findings=findings,
        profile=profile,
        features=features,
        example=example_row(example),
        budget_s=plan.budget.time_s,
    )


def evidence_files(card: Card, result: SearchResult) -> dict[str, str]:
    """Return the texts that are kept with a version: its card, the study, the verdict, the screening, the profile."""
    return {
        "card.html": render(card),
        "trials.json": json.dumps([trial.model_dump(mode="json", exclude={"curve"}) for trial in result.trials]),
        "verdict.json": card.verdict.model_dump_json(indent=2),
        "screening.json": json.dumps([finding.model_dump(mode="json") for finding in card.findings]),
        "profile.json": card.profile.model_dump_json(),
    }


def predict_table(bundle: Bundle, path: str, *, max_rows: int) -> pd.DataFrame:
    """Read rows from a file and return their predictions in the form that files of predictions have.

    Classification: one probability column per class, named by the class; regression: a column ``prediction``; rows in
    the order of the file.

    Raises:
        InvalidData: the file cannot be read, or columns are missing or of the wrong type; all of them are named.
    """
    labels = [c.name for c in bundle.columns if c.type in (ColumnType.CATEGORICAL, ColumnType.TEXT)]
    frame = read_table(path, max_rows=max_rows, text_columns=labels)
    raw = bundle.predict_raw(bundle.require(frame, rows=f"The rows of {path!r}"))
    return pd.DataFrame(raw, columns=list(bundle.classes)) if bundle.classes else pd.DataFrame({"prediction": raw})


def _under_latency(
    result: SearchResult, plan: Plan, data: TrialData, unseen: Dataset
) -> tuple[Bundle, dict[int, float]]:
    """Assemble the blend; under a latency ceiling, leave out the lightest trial until it is kept or one is left."""
    weights = {n: w for n, w in result.blend.weights.items() if w > NEGLIGIBLE} or dict(result.blend.weights)
    while True:
        bundle = _assemble(result.parts, weights, data)
        ceiling = plan.ceilings.latency_ms
        if ceiling is None or len(weights) == 1 or one_row_latency_ms(bundle, unseen.frame) <= ceiling:
            total = sum(weights.values())
            return bundle, {n: w / total for n, w in weights.items()}
        del weights[min(weights, key=lambda n: (weights[n], -n))]


def _assemble(parts: Sequence[Part], weights: dict[int, float], data: TrialData) -> Bundle:
    chosen = [part for part in parts if part.trial.number in weights]
    total = sum(part.weight for part in chosen)
    folds = sorted({part.fold for part in chosen}, key=lambda fold: -1 if fold is None else fold)
    return Bundle(
        task=data.dataset.task,
        classes=data.dataset.classes,
        columns=input_columns(data.dataset.frame, data.dataset.types),
        preparations=tuple(Preparation.load(preparation_folder(data, fold)) for fold in folds),
        members=tuple(
            Member(
                family=part.trial.family,
                model=family(part.trial.family).load(part.folder),
                preparation=folds.index(part.fold),
                weight=part.weight / total,
            )
            for part in chosen
        ),
    )

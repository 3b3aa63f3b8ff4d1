"""From a search to a judged variant, ready to be registered; the same in the driver and in a worker of the cluster.

Everything that it takes goes in as an :class:`Order` and everything that the
ledger and MLflow need comes out as a :class:`Made`, so that segments can be
made anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from factory.data.dataset import Dataset, FeatureLineage
from factory.data.findings import Finding
from factory.data.profile import DatasetProfile
from factory.families.base import Deadline
from factory.search.engine import SearchResult
from factory.search.jobs import TrialData, first_fold_score
from factory.search.metric import Metric
from factory.search.plan import Plan
from factory.search.transfer import trials_to_parity
from factory.spec import CurvePoint, Gates, Trial, Variant
from factory.variants.appraisal import Baseline, Memory, appraise, appraised, constant_baseline
from factory.variants.delivery import evidence_files, model_card
from factory.variants.frontier import Chosen
from factory.variants.gates import Verdict, improvement
from factory.variants.material import Material, Unit
from factory.variants.origin import Origin
from factory.variants.report import Card
from factory.variants.resampling import Comparison
from factory.variants.singles import unseen_scores


@dataclass(frozen=True)
class Order:
    """One variant to be made.

    Attributes:
        lineage: The variant as far as it is known before its search.
        plan: What is searched, with the gates that judge it.
        data: What the search works on.
        unseen: Rows for the gate.
        champion: What is to be beaten; None for a constant.
        findings: Of the screening.
        ignored: Columns that a caller may send although the variant does not use them.
        profile: Of the request's data.
        features: Where the features come from; None for a plain table.
        memory: Rows of the parent, where its models were trained on.
        target: First-fold score that the search seeded by siblings is to reach; None where there is none.
        sure: Confidence that the improvement has to reach, of one variant among many; that of the gates if None.
    """

    lineage: Variant
    plan: Plan
    data: TrialData
    unseen: Dataset
    champion: Baseline | None
    findings: tuple[Finding, ...]
    ignored: tuple[str, ...]
    profile: DatasetProfile
    features: FeatureLineage | None
    memory: Memory | None = None
    target: float | None = None
    sure: float | None = None


@dataclass(frozen=True)
class Made:
    """A variant that was made and judged, not registered yet.

    Attributes:
        variant: With its score, digest and verdict's state.
        verdict: What the gate says.
        comparison: Against the baseline.
        card: All that its model card shows.
        trials: Of its search.
        weights: Share of each trial, by its number.
        trade: What the latency bound cost, for a person.
        skipped: Family → why it was left out.
        folder: The bundle.
        judge: What was judged in its place; None where that was the bundle itself.
        example: Rows to show how it is called.
        registration: Metrics, parameters, curves and files for MLflow.
    """

    variant: Variant
    verdict: Verdict
    comparison: Comparison
    card: Card
    trials: tuple[Trial, ...]
    weights: dict[int, float]
    trade: str
    skipped: dict[str, str]
    folder: Path
    judge: Path | None
    example: pd.DataFrame
    registration: Registration


@dataclass(frozen=True)
class Registration:
    """What MLflow keeps beside the model."""

    metrics: dict[str, float]
    parameters: dict[str, Any]
    curves: dict[str, tuple[CurvePoint, ...]]
    files: dict[str, str]


def order_of(
    request_id: str, unit: Unit, *, plan: Plan, material: Material, origin: Origin, champion: Baseline | None
) -> Order:
    """Return everything that the making of a variant needs.

    Args:
        request_id: The request.
        unit: Its rows.
        plan: What is searched, with the gates that judge it.
        material: The request's data.
        origin: What it starts from.
        champion: What is to be beaten; None for a constant.
    """
    used = set(unit.data.dataset.frame.columns)
    others = dict.fromkeys(c for c in (*material.ignored, *material.dataset.frame.columns) if c not in used)
    return Order(
        lineage=_lineage(request_id, unit, plan=plan, material=material, origin=origin),
        plan=plan,
        data=unit.data,
        unseen=unit.unseen,
        champion=champion,
        findings=material.findings,
        ignored=tuple(others),
        profile=material.profile,
        features=material.dataset.features,
        memory=origin.memory,
        target=origin.transfer.target,
    )


def _lineage(request_id: str, unit: Unit, *, plan: Plan, material: Material, origin: Origin) -> Variant:
    """Return the variant before it was scored: where it comes from."""
    request, features = plan.request, material.dataset.features
    parent = f"{origin.parent.name}/{origin.parent.version}" if origin.parent else request.parent
    return Variant(
        name=unit.name,
        version=0,
        request_id=request_id,
        segment=unit.segment,
        kind=origin.kind,
        task=plan.task,
        metric=plan.metric.name,
        score=0.0,
        score_low=0.0,
        score_high=0.0,
        recipe=plan.recipe.name,
        recipe_digest=plan.recipe.digest,
        dataset_digest=material.dataset.digest,
        bundle_digest="",
        feature_service=features.service if features else None,
        feature_service_digest=features.digest if features else None,
        parent=request.variant if unit.segment else parent,
        seeded_by=origin.transfer.seeded_by,
        seed=request.seed,
        approval=plan.recipe.approval,
        online=plan.recipe.online,
    )


def finish(order: Order, result: SearchResult, *, deadline: Deadline, chosen: Chosen | None = None) -> Made:
    """Assemble, score and judge what a search found, and write its bundle and model card into the workspace.

    Args:
        order: The variant.
        result: Of its search.
        deadline: When it should be there; what has to be done is done all the same.
        chosen: The blend, where it was chosen before.
    """
    plan, data, unseen = order.plan, order.data, order.unseen
    baseline = order.champion or constant_baseline(data.searched, unseen, data.metric)
    cost_s = round(sum(t.cost_s for t in result.trials), 2)
    lineage = order.lineage.model_copy(update={"cost_s": cost_s, "trials_to_parity": _parity(order, result)})
    appraisal = appraise(
        result,
        plan=plan,
        data=data,
        unseen=unseen,
        baseline=baseline,
        findings=order.findings,
        ignored=order.ignored,
        metadata={
            "variant": lineage.name,
            "request": lineage.request_id,
            "recipe": plan.recipe.name,
            "labels": "numbers" if data.dataset.numbered else "text",
        },
        folder=data.workspace / "bundle",
        deadline=deadline,
        memory=order.memory,
        sure=order.sure,
        chosen=chosen,
    )
    variant = appraised(lineage, appraisal)
    card = model_card(
        variant,
        appraisal,
        result,
        plan=plan,
        baseline=baseline,
        findings=order.findings,
        profile=order.profile,
        features=order.features,
        example=unseen.frame,
        tested=unseen_scores(result, data=data, unseen=unseen, weights=appraisal.weights, deadline=deadline),
    )
    files = _told(card, result.trials, workspace=data.workspace)
    cost = {"latency_ms": appraisal.latency_ms, "size_mb": appraisal.size_mb}
    return Made(
        variant=variant,
        verdict=appraisal.verdict,
        comparison=appraisal.comparison,
        card=card,
        trials=result.trials,
        weights=appraisal.weights,
        trade=appraisal.frontier.sentence,
        skipped=result.skipped,
        folder=appraisal.folder,
        judge=appraisal.judge,
        example=unseen.frame.head(3),
        registration=Registration(
            metrics={**appraisal.evaluation.scores, **cost},
            parameters={"families": ",".join(plan.families), "validation": plan.validation.kind, "seed": variant.seed},
            curves={f"{t.number}-{t.family}": t.curve for t in result.trials if t.number in appraisal.weights},
            files=files,
        ),
    )


def judged_again(made: Made, gates: Gates, *, sure: float) -> Made:
    """Return a variant whose improvement is judged with another confidence; the card and the evidence say so too."""
    metric = Metric(made.variant.metric, made.variant.task)
    check = improvement(gates, metric, made.comparison, baseline=made.card.baseline, sure=sure)
    verdict = made.verdict.with_check(check)
    variant = made.variant.model_copy(update={"state": "registered" if verdict.passed else "rejected"})
    card = made.card.model_copy(update={"verdict": verdict, "variant": variant})
    registration = replace(made.registration, files=_told(card, made.trials, workspace=made.folder.parent))
    return replace(made, verdict=verdict, variant=variant, card=card, registration=registration)


def _told(card: Card, trials: Sequence[Trial], *, workspace: Path) -> dict[str, str]:
    """Return the texts that are kept with a version, and let the card in the workspace say the same."""
    files = evidence_files(card, trials)
    (workspace / "card.html").write_text(files["card.html"], encoding="utf-8")
    return files


def _parity(order: Order, result: SearchResult) -> int | None:
    if order.target is None:
        return None
    tried = [first_fold_score(trial) for trial in result.trials if trial.family != "constant"]
    return trials_to_parity(tried, order.target, metric=order.data.metric)

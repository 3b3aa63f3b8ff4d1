"""From a finished search to a judged variant: bundle, scores on unseen rows, verdict.

The rows used here were set aside before the search; neither a trial nor the
blend was chosen on them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factory.data.dataset import Dataset
from factory.data.findings import Finding
from factory.families.base import Deadline
from factory.search.blueprint import Blueprint, MemberPlan, refit_shares
from factory.search.engine import SearchResult
from factory.search.jobs import TrialData
from factory.search.metric import Metric
from factory.search.plan import Plan
from factory.search.samples import representation
from factory.search.transfer import fitted_parameters
from factory.spec import TimeSplit, Validation, Variant
from factory.variants.assembly import assemble
from factory.variants.background import Background
from factory.variants.bundle import Bundle
from factory.variants.contents import folder_size_mb
from factory.variants.evaluation import (
    Evaluation,
    Importance,
    evaluate,
    one_row_latency_ms,
    permutation_importance,
)
from factory.variants.frontier import Chosen, Frontier, choose
from factory.variants.gates import Evidence, Verdict
from factory.variants.gates import judge as verdict_of
from factory.variants.resampling import Comparison, Dependence, paired_bootstrap, ranks
from factory.variants.settled import LENT_FROM, of_parent
from factory.variants.slices import Slice, slice_columns, slices
from factory.variants.watch import Watch, watch_blend, watch_curves, watch_trials
from factory.variants.windows import Stretch, TimeOrder

JUDGED = "One model of each member was judged, which had not learned from them; the others have."
CHOICE_SHARE, CHOICE_LEAST_S = 0.5, 1.0
"""Part of the time left that the choice of the blend may take: scores, verdict and card take as much again."""


@dataclass(frozen=True)
class Baseline:
    """What a variant has to beat: a name for people and its predictions of the unseen rows."""

    name: str
    prediction: np.ndarray


@dataclass(frozen=True)
class Memory:
    """What a variant that was trained on must not forget.

    Attributes:
        rows: Like those that its parent learned from, with their targets.
        parent: The parent's predictions of them, as the metric judges them.
        source: What these rows are, for people.
    """

    rows: Dataset
    parent: np.ndarray
    source: str


@dataclass(frozen=True)
class Appraisal:
    """A variant's worth.

    Attributes:
        bundle: The variant in memory.
        folder: The variant on disk.
        digest: Of the folder.
        judge: What was judged in its place, on disk; None where that was the variant itself.
        judge_digest: Of that folder; empty where there is none.
        weights: Share of each trial, by its number.
        frontier: What other blends cost and score.
        evaluation: Scores on the unseen rows.
        slices: Scores on parts of them.
        watch: Of overfitting.
        comparison: Against the baseline.
        importance: Of the columns, most important first.
        latency_ms: Median prediction of one row, in process.
        size_mb: Size of the folder.
        verdict: What the gate says.
    """

    bundle: Bundle
    folder: Path
    digest: str
    judge: Path | None
    judge_digest: str
    weights: dict[int, float]
    frontier: Frontier
    evaluation: Evaluation
    slices: tuple[Slice, ...]
    watch: tuple[Watch, ...]
    comparison: Comparison
    importance: tuple[Importance, ...]
    latency_ms: float
    size_mb: float
    verdict: Verdict


def constant_baseline(dataset: Dataset, unseen: Dataset, metric: Metric) -> Baseline:
    """Return what predicting the class frequencies, or the mean or median, of the training rows would give."""
    return Baseline("a constant", dataset.constant(len(unseen), median=metric.loss == "absolute"))


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
    deadline: Deadline,
    memory: Memory | None = None,
    sure: float | None = None,
    chosen: Chosen | None = None,
) -> Appraisal:
    """Build the variant's bundle in ``folder``, score it on the unseen rows and let the gate judge it.

    A variant whose models have learned from the unseen rows is judged by its models of the first fold, which have not:
    the same members with the same weights and calibration, one model each. They are kept in ``judge`` beside it.

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
        deadline: When all of this should be there; bounds the choice of the blend.
        memory: Rows of the parent, for a variant that was trained on.
        sure: Confidence that the improvement has to reach; that of the gates if None.
        chosen: The blend, where it was chosen before.
    """
    chosen = chosen or chosen_blend(result, plan=plan, data=data, unseen=unseen, deadline=deadline)
    background = Background.of(data.dataset.frame, chosen.bundle.columns, seed=data.seed)
    metadata = {**metadata, "trade": chosen.frontier.sentence}
    bundle = replace(chosen.bundle, ignored=ignored, metadata=metadata, background=background)
    bundle = replace(bundle, blueprint=blueprint(bundle, chosen.weights, result, data))
    digest = _saved(bundle, folder)
    judge, judge_folder = _judge(bundle, chosen.weights, result, data), folder.with_name("judge")
    judge_digest = "" if judge is bundle else _saved(judge, judge_folder)
    if judge_digest == digest:  # one model of each member is all that callers get as well
        judge, judge_digest = bundle, ""
    metric: Metric = plan.metric
    prediction = judge.predict_raw(unseen.frame)
    seed, weight = plan.request.seed, unseen.weight()
    order = time_order(plan.validation, result, chosen.weights, bundle=bundle, data=data, unseen=unseen)
    dependence = Dependence.of(unseen, plan.validation)
    comparison = paired_bootstrap(
        metric,
        unseen.y,
        bundle.judged(prediction, metric),
        baseline.prediction,
        seed=seed,
        weight=weight,
        dependence=dependence,
        margin=plan.gates.min_improvement,
        asked=sure or plan.gates.confidence,
    )
    latency_ms = one_row_latency_ms(bundle, unseen.frame)
    size_mb = folder_size_mb(folder)
    importance = permutation_importance(
        judge, unseen.frame, unseen.y, metric=metric, seed=seed, weight=weight, max_rows=500
    )
    parts = slices(
        metric,
        unseen.y,
        bundle.judged(prediction, metric),
        baseline=baseline.prediction,
        columns=slice_columns(unseen, plan.gates.slices, ranked=[one.column for one in importance]),
        seed=seed,
        weight=weight,
        dependence=dependence,
        max_loss=plan.gates.slice_max_loss,
    )
    evaluation = evaluate(
        metric,
        unseen.y,
        prediction,
        classes=unseen.classes,
        seed=seed,
        weight=weight,
        threshold=bundle.calibration.threshold,
        order=order,
        dependence=dependence,
    )
    evidence = Evidence(
        metric=metric,
        comparison=comparison,
        baseline=baseline.name,
        latency_ms=latency_ms,
        size_mb=size_mb,
        findings=findings,
        slices=parts,
        memory=_remembered(memory, bundle, plan),
        memory_of=memory.source if memory else "",
        promise=evaluation.next_window.sentence if evaluation.next_window else "",
        by=JUDGED if judge is not bundle else "",
    )
    # Scores of trials that were lent to a segment are those of all segments' rows.
    own = [trial for trial in result.trials if trial.number < LENT_FROM]
    watched = (
        ()
        if not result.folds
        else watch_blend(
            result.candidates,
            chosen.weights,
            bundle,
            learned=data.searched,
            judged=evaluation.score,
            n_judged=len(unseen),
            seed=seed,
            trials=own,
        )
    )
    return Appraisal(
        bundle=bundle,
        folder=folder,
        digest=digest,
        judge=None if judge is bundle else judge_folder,
        judge_digest=judge_digest,
        weights=chosen.weights,
        frontier=chosen.frontier,
        evaluation=evaluation,
        slices=parts,
        watch=(
            *watched,
            *watch_trials(metric, own, weights=chosen.weights),
            *watch_curves(result.trials, weights=chosen.weights),
        ),
        comparison=comparison,
        importance=importance,
        latency_ms=latency_ms,
        size_mb=size_mb,
        verdict=verdict_of(plan.gates, plan.ceilings, evidence, sure=sure),
    )


def chosen_blend(result: SearchResult, *, plan: Plan, data: TrialData, unseen: Dataset, deadline: Deadline) -> Chosen:
    """Return the best blend of a search, or what is left of one that was made again, under the plan's ceilings.

    Args:
        result: What the search found.
        plan: With the ceilings.
        data: The search's rows and workspace.
        unseen: Rows to time predictions with.
        deadline: When the variant should be there; a part of what is left bounds the choice.
    """
    until = Deadline.after(max(CHOICE_SHARE * deadline.left_s, CHOICE_LEAST_S))
    if (known := result.calibration) is not None:
        return of_parent(
            result, data=data, calibration=known, ceilings=plan.ceilings, rows=unseen.frame, deadline=until
        )
    return choose(result, data=data, ceilings=plan.ceilings, rows=unseen.frame, deadline=until)


def _saved(bundle: Bundle, folder: Path) -> str:
    """Write a bundle in place of what is in a folder, and return its digest."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return bundle.save(folder)


def _judge(bundle: Bundle, weights: Mapping[int, float], result: SearchResult, data: TrialData) -> Bundle:
    """Return what is judged in place of a variant: itself, unless a model of it has learned from the gate's rows."""
    judges = {number: (result.judges[number],) for number in weights if number in result.judges}
    if not judges or all(part.fold == 0 for number in weights for part in result.parts[number]):
        return bundle
    judge = assemble(weights, judges, data=data, calibration=bundle.calibration)
    judge = replace(judge, ignored=bundle.ignored, metadata=bundle.metadata, background=bundle.background)
    return replace(judge, blueprint=blueprint(judge, weights, result, data))


def time_order(
    validation: Validation,
    result: SearchResult,
    weights: Mapping[int, float],
    *,
    bundle: Bundle,
    data: TrialData,
    unseen: Dataset,
) -> TimeOrder | None:
    """Return the order in time of the rows that judge, with the validation rows before them; None where there is none.

    Args:
        validation: Of the plan.
        result: Of the search; one that was made without a search has no validation rows.
        weights: Share of each trial in the variant.
        bundle: The variant; its calibration is applied to the validation rows' predictions as well.
        data: The search's rows and folds.
        unseen: Rows that the search did not have.
    """
    if not isinstance(validation, TimeSplit):
        return None
    before = None
    if result.folds:
        rows = data.splits[result.folds[0]].validation
        predicted = bundle.calibration.apply(result.candidates.blended(weights)[0])
        times = data.dataset.column(validation.column).iloc[rows]
        before = Stretch(ranks(times), data.dataset.y[rows], predicted, data.dataset.weight(rows))
    return TimeOrder.of(unseen.column(validation.column), before=before)


def blueprint(bundle: Bundle, weights: Mapping[int, float], result: SearchResult, data: TrialData) -> Blueprint:
    """Return what it takes to make a variant again on other rows.

    Args:
        bundle: As it was assembled.
        weights: Share of each trial, by number.
        result: Of the search.
        data: Of the search.
    """
    by_number = {trial.number: trial for trial in result.trials}
    shares = refit_shares(result.candidates, result.trials, weights)
    refitted = None if shares == dict(weights) else shares
    heaviest = sorted(weights, key=lambda n: (-weights[n], n))
    chosen = representation(data)
    return Blueprint(
        members=tuple(
            MemberPlan(
                number=n,
                family=by_number[n].family,
                parameters=fitted_parameters(by_number[n]),
                weight=weights[n],
                rounds=by_number[n].rounds,
                n_rows=by_number[n].n_rows,
                seed=by_number[n].seed,
                refit_weight=None if refitted is None else refitted.get(n, 0.0),
            )
            for n in heaviest
        ),
        models=tuple(member.bag for member in bundle.members if member.bag is not None),
        target_scale=chosen.target_scale,
        crosses=chosen.crosses,
        omitted=chosen.omitted,
    )


def _remembered(memory: Memory | None, bundle: Bundle, plan: Plan) -> Comparison | None:
    if memory is None:
        return None
    rows, metric = memory.rows, plan.metric
    return paired_bootstrap(
        metric,
        rows.y,
        bundle.judged(bundle.predict_raw(rows.frame), metric),
        memory.parent,
        seed=plan.request.seed,
        weight=rows.weight(),
        dependence=Dependence.of(rows, plan.validation),
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
            "judge_digest": appraisal.judge_digest,
            "blend": appraisal.weights,
            "size_mb": round(appraisal.size_mb, 3),
            "latency_ms": round(appraisal.latency_ms, 3),
        }
    )

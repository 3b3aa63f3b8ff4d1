"""The model card: one HTML file that explains a variant to people, without a network.

Everything a card shows comes in as one frozen :class:`Card`.  The page holds
its style and its charts, no script and no link to anything that would be
fetched; a content security policy says so to the browser.  Names of columns,
classes and recipes are strangers' text: Jinja escapes all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import Field

from factory.data.dataset import FeatureLineage
from factory.data.findings import LEAKS, Finding
from factory.data.profile import DatasetProfile
from factory.search.calibration import Calibration
from factory.search.metric import Metric
from factory.search.plan import family
from factory.spec import CurvePoint, Document, Task, Trial, TrialState, Variant, duration
from factory.variants import charts
from factory.variants.evaluation import Confusion, Evaluation, Importance
from factory.variants.frontier import Frontier
from factory.variants.gates import Verdict
from factory.variants.resampling import Comparison, Interval
from factory.variants.slices import Slice, blamed
from factory.variants.watch import Watch

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "card.html.j2"
OVERFIT_GAP = 0.1
"""Relative difference of training and validation score from which on a person should look."""
FEW_CLASSES = 4
"""Classes of a confusion matrix that has room beside the calibration."""
MOST_CLASSES = 12
"""Classes of a confusion matrix that is still a table; above, its most frequent mistakes are listed."""
MOST_TRIALS = 20
SLICE_CONFIDENCE = 0.95
"""Joint confidence from which on a slice that is worse than the baseline is marked, gated or not."""
MOST_COLUMNS = 25
Scalar = str | int | float | bool | None


class LeaderboardRow(Document):
    """A trial as the leaderboard shows it.

    Attributes:
        score: Mean over the folds that it was fitted on; scores of different folds cannot be compared.
        folds: How many these are.
        train_score: On rows that it learned from.
        test_score: On the rows that were set aside for the gate; None where it was not asked.
        overfits: Whether the training score is far above the validation score.
        weight: Share in the blend that was delivered.
    """

    number: int
    family: str
    framework: str
    state: TrialState
    score: float | None = None
    folds: int = 0
    train_score: float | None = None
    test_score: float | None = None
    overfits: bool = False
    cost_s: float = 0.0
    weight: float = 0.0
    origin: str = ""
    reason: str = ""


class LearningCurve(Document):
    """Losses of one member, round by round."""

    name: str
    points: tuple[CurvePoint, ...]


class Card(Document):
    """Everything that a model card shows.

    Attributes:
        variant: The variant with its lineage; version 0 where it is not registered yet.
        baseline: What it was compared with.
        verdict: Of the gate.
        comparison: With the baseline, on the held-out rows.
        evaluation: On the held-out rows.
        importance: Of the columns, the most important first.
        leaderboard: Of the search, by rank.
        curves: Of the members that have one.
        findings: Of the screening.
        profile: Of the dataset.
        features: Where joined features came from.
        example: One row of input, to show how the variant is called.
        budget_s: Wall seconds that the request had.
        frontier: What other blends of this search cost and score.
        calibration: Of the variant's probabilities, with its decision threshold.
        slices: Scores on parts of the held-out rows.
        watch: Of overfitting: what was looked at.
    """

    variant: Variant
    baseline: str
    verdict: Verdict
    comparison: Comparison
    evaluation: Evaluation
    importance: tuple[Importance, ...] = ()
    leaderboard: tuple[LeaderboardRow, ...] = ()
    curves: tuple[LearningCurve, ...] = ()
    findings: tuple[Finding, ...] = ()
    profile: DatasetProfile
    features: FeatureLineage | None = None
    example: dict[str, Scalar] = Field(default_factory=dict)
    budget_s: float | None = None
    frontier: Frontier | None = None
    calibration: Calibration = Calibration()
    slices: tuple[Slice, ...] = ()
    watch: tuple[Watch, ...] = ()


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials by rank: those with the most folds first, among equals the better score, last those without one."""
    return sorted(trials, key=lambda t: (t.score is None, -len(t.folds), -(t.score or 0), t.number))


def leaderboard(
    trials: Sequence[Trial], *, weights: Mapping[int, float], tested: Mapping[int, float] | None = None
) -> tuple[LeaderboardRow, ...]:
    """Return the rows of a leaderboard, as :func:`ranked` orders them.

    Args:
        trials: Of one search.
        weights: Share of each member in the blend, by trial number.
        tested: Scores on rows that the search did not have, by trial number.
    """
    return tuple(
        LeaderboardRow(
            number=trial.number,
            family=trial.family,
            framework=family(trial.family).framework,
            state=trial.state,
            score=trial.score,
            folds=len(trial.folds),
            train_score=trial.train_score,
            test_score=(tested or {}).get(trial.number),
            overfits=overfits(trial),
            cost_s=trial.cost_s,
            weight=weights.get(trial.number, 0.0),
            origin=trial.origin,
            reason=trial.reason,
        )
        for trial in ranked(trials)
    )


def overfits(trial: Trial) -> bool:
    """Whether a trial's training score is so far above its validation score that a person should look."""
    if trial.score is None or trial.train_score is None:
        return False
    return trial.train_score - trial.score > OVERFIT_GAP * max(abs(trial.score), 1e-9)


def learning_curves(trials: Sequence[Trial], *, weights: Mapping[int, float]) -> tuple[LearningCurve, ...]:
    """Return the curves of a blend's members, the heaviest first."""
    members = sorted((t for t in trials if t.number in weights and t.curve), key=lambda t: -weights[t.number])
    return tuple(LearningCurve(name=f"{trial.family} (trial {trial.number})", points=trial.curve) for trial in members)


def example_row(frame: pd.DataFrame) -> dict[str, Scalar]:
    """Return the first row with the fewest missing values as plain JSON values."""
    if frame.empty:
        return {}
    row = frame.iloc[int(frame.isna().sum(axis=1).to_numpy().argmin())]
    return {str(name): _plain(value) for name, value in row.items()}


def render(card: Card) -> str:
    """Return the card as one HTML page that needs nothing else."""
    metric = Metric(card.variant.metric, card.variant.task)
    scored = [row for row in card.leaderboard if row.score is not None]
    shown = [row for i, row in enumerate(card.leaderboard) if i < MOST_TRIALS or row.weight]
    return _template().render(
        card=card,
        metric=metric,
        title=card.variant.name + (f" version {card.variant.version}" if card.variant.version else ""),
        interval=_ends(card.evaluation.score),
        resampled=_ends(card.evaluation.next_window.resampled if card.evaluation.next_window else None),
        scores=[
            (Metric(name, card.variant.task), value, _ends(card.evaluation.intervals.get(name)))
            for name, value in card.evaluation.scores.items()
        ],
        slices=[
            (column, [one for one in card.slices if one.column == column])
            for column in dict.fromkeys(one.column for one in card.slices)
        ],
        blamed={(one.column, one.value) for one in blamed(card.slices, confidence=SLICE_CONFIDENCE)},
        matters={one.column: one.drop for one in card.importance},
        leaks=LEAKS,
        shown=shown,
        others=[row for row in card.leaderboard if row not in shown],
        members=[row for row in card.leaderboard if row.weight],
        frameworks=sorted({row.framework for row in scored}),
        difference=charts.difference_chart(
            card.comparison.low, card.comparison.difference, card.comparison.high, margin=card.comparison.margin
        ),
        calibration=_calibration(card),
        residuals=_residuals(card),
        mistakes=_mistakes(card.evaluation.confusion),
        widest=max((abs(one.drop) for one in card.importance), default=0) or 1.0,
        curves=[(curve.name, _curve(curve)) for curve in card.curves],
        frontier=_frontier(card),
        chosen_by=Metric(card.frontier.metric, card.variant.task) if card.frontier else metric,
        call=_call(card),
        duration=duration,
        few_classes=FEW_CLASSES,
        most_classes=MOST_CLASSES,
        most_columns=MOST_COLUMNS,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, duration=duration, count=lambda n: f"{n:,}", share=lambda x: f"{x:.1%}")
    environment.tests["regression"] = lambda task: task is Task.REGRESSION
    return environment.get_template(TEMPLATE)


def _frontier(card: Card) -> str:
    """Draw the curve where there is more than one point to choose from."""
    if card.frontier is None or len(card.frontier.points) < 2:
        return ""
    metric = Metric(card.frontier.metric, card.variant.task)
    losses = metric.name.startswith("neg_")
    points = [
        (
            point.latency_ms,
            -point.score if losses else point.score,
            point.chosen,
            f"{point.latency_ms:.3g} ms, {metric.label} {metric.display(point.score)}, {len(point.trials)} trials, "
            f"{point.models} models, {point.size_mb:.3g} MB",
        )
        for point in card.frontier.points
    ]
    limit_ms = card.frontier.ceiling_ms or card.frontier.bound_ms
    return charts.frontier_chart(points, limit_ms=limit_ms)


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    """Return the ends of an interval as people read them: of a loss, the smaller one first."""
    if interval is None:
        return None
    low, high = sorted((interval.low, interval.high), key=abs)
    return low, high


def _calibration(card: Card) -> str:
    bins = [(one.predicted, one.observed, one.n_rows) for one in card.evaluation.calibration]
    return charts.calibration_chart(bins) if bins else ""


def _residuals(card: Card) -> str:
    if card.evaluation.residuals is None:
        return ""
    return charts.scatter_chart(card.evaluation.residuals.points, target=card.profile.target)


def _curve(curve: LearningCurve) -> str:
    return charts.curve_chart([(p.step, p.train, p.validation) for p in curve.points], name=curve.name)


def _mistakes(confusion: Confusion | None) -> list[tuple[str, str, int, float]]:
    """Return the most frequent confusions as true class, predicted class, rows, share of the true class's rows."""
    if confusion is None:
        return []
    counts = np.asarray(confusion.counts)
    wrong = counts - np.diag(np.diag(counts))
    flat = np.argsort(-wrong, axis=None, kind="stable")[:15]
    pairs = zip(*np.unravel_index(flat, wrong.shape), strict=True)
    return [
        (confusion.labels[i], confusion.labels[j], int(wrong[i, j]), float(wrong[i, j] / counts[i].sum()))
        for i, j in pairs
        if wrong[i, j]
    ]


def _call(card: Card) -> dict[str, str]:
    """Return how the variant is called by command line, HTTP and Python."""
    name = card.variant.name
    body = json.dumps({"dataframe_records": [card.example]}, ensure_ascii=False)
    quoted = body.replace("'", "'\\''")
    return {
        "command line": f"factory predict {name} --data rows.parquet",
        "HTTP": (
            f"curl -X POST $PREDICTOR/variants/{name}/invocations \\\n"
            '  -H "Authorization: Bearer $FACTORY_TOKEN" \\\n'
            f"  -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
        ),
        "Python": (
            "import mlflow.pyfunc\n"
            f'model = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
            "model.predict(frame)  # a pandas DataFrame of the columns above"
        ),
    }


def _plain(value: object) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value if isinstance(value, bool | int | float | str) else str(value)


def _number(value: float) -> str:
    """Return a number for people: four significant digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"

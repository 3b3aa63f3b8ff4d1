"""Overfit watch: what a search believed, what the gate saw, and where a training went past its best.

The rows of the gate chose nothing: neither a trial's rounds, nor the blend, nor
its calibration.  So their score is the honest one (nested evaluation; Cawley
and Talbot, 2010, "On over-fitting in model selection"), and its distance from
the score that the search chose by tells how much of that was luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from factory.data.dataset import Dataset
from factory.search.ensemble import Candidates
from factory.search.jobs import first_fold_score
from factory.search.metric import Metric
from factory.spec import CurvePoint, Document, Trial
from factory.variants.bundle import Bundle
from factory.variants.resampling import Interval, best_score

Z = 1.96
"""Two-sided 95 %."""
_LEARNED_ROWS = 1000
"""Rows of the training that are predicted again: tenths of a second."""
_LEAST_POINTS = 12
_LEAST_TRIALS, _LUCK = 6, 0.01
"""Trials of a family whose scores are ranked, and how seldom luck may order them so."""
_NOISES = 3.0
"""Rise of a validation loss, in deviations of its steps, that is no noise any more."""
_LEAST_RISE = 0.02
"""The same as a share of what the training had gained before."""


class Watch(Document):
    """One thing that was looked at.

    Attributes:
        kind: ``selection``: the search's score against the gate's; ``gap``: training rows against others, of the blend
            and over the trials of a family without curves; ``curve``: a member's learning curve.
        flagged: Whether a person should look.
        sentence: What was seen, with its numbers.
    """

    kind: Literal["selection", "gap", "curve"]
    flagged: bool
    sentence: str


def watch_selection(metric: Metric, chosen: float, judged: Interval, *, n_chosen: int, n_judged: int) -> Watch:
    """Compare the score by which the search chose its blend with the score on the gate's rows.

    Args:
        metric: What was optimized.
        chosen: Score of the blend on the rows that it was chosen on.
        judged: Score on the gate's rows, with its 95 % interval.
        n_chosen: Rows behind ``chosen``.
        n_judged: Rows behind ``judged``.
    """
    spread = _spread(judged, n_chosen=n_chosen, n_judged=n_judged)
    ends = sorted((chosen - spread, min(chosen + spread, max(best_score(metric), chosen))), key=abs)
    outside = abs(judged.value - chosen) > spread
    numbers = (
        f"The blend was chosen by {metric.label} {metric.display(chosen)} on {n_chosen:,} validation rows; on the "
        f"{n_judged:,} rows that chose nothing it is {metric.display(judged.value)}. Between "
        f"{metric.display(ends[0])} and {metric.display(ends[1])} would be chance"
    )
    if not outside:
        verdict = ", so both agree."
    elif judged.value < chosen:
        verdict = ": the search's score was too good, by its choosing among many or since these rows differ."
    else:
        verdict = ": these rows are easier than those of the search."
    return Watch(kind="selection", flagged=outside, sentence=numbers + verdict)


class Member(NamedTuple):
    """A member of a blend on its own: its scores on rows that it learned from, and on the blend's validation rows."""

    family: str
    trained: float
    chosen: float


def watch_gap(
    metric: Metric, trained: float, chosen: float, judged: Interval, *, best: Member | None = None, spread: float = 0.0
) -> Watch:
    """Tell the blend's scores on the rows it learned from, on validation rows and on the gate's rows.

    A gap alone is no harm: forests and neighbours know their training rows nearly by heart. It is flagged where
    blending has made it grow: the training score is above that of the best member on its own, and the score on the
    gate's rows is below what that member reached on validation rows, by more than chance.

    Args:
        metric: What was optimized.
        trained: Score on rows that the blend learned from.
        chosen: Score on the rows that it was chosen on.
        judged: Score on the gate's rows.
        best: The member that is best on the validation rows; None of a blend of one.
        spread: Difference between validation and gate rows that chance makes.
    """
    sentence = (
        f"The variant reaches {metric.label} {metric.display(trained)} on rows that it learned from, "
        f"{metric.display(chosen)} on validation rows and {metric.display(judged.value)} on the gate's rows."
    )
    grows = best is not None and trained > best.trained and judged.value < best.chosen - spread
    if best is not None and grows:
        sentence += (
            f" The gap grew by blending: {best.family} alone reaches {metric.display(best.trained)} on rows that it "
            f"learned from, and {metric.display(best.chosen)} on validation rows."
        )
    return Watch(kind="gap", flagged=grows, sentence=sentence)


def _spread(judged: Interval, *, n_chosen: int, n_judged: int) -> float:
    """Return the difference between validation and gate rows that chance makes, at 95 %."""
    return (judged.high - judged.low) / 2 * float(np.sqrt(1 + n_judged / max(n_chosen, 1)))


def watch_trials(metric: Metric, trials: Sequence[Trial], *, weights: Mapping[int, float]) -> tuple[Watch, ...]:
    """Return the members' families whose validation score falls over their trials while the training score rises.

    Forests and neighbours have no curve: what grows from one trial to the next is how closely they follow their rows.
    The rank correlation of both scores over a family's trials has to be surely negative (Spearman, 1904).

    Args:
        metric: What was optimized.
        trials: Of the search.
        weights: Share of each trial in the variant.
    """
    members = sorted((t for t in trials if weights.get(t.number)), key=lambda t: -weights[t.number])
    found = []
    for name in dict.fromkeys(t.family for t in members):
        own = [t for t in trials if t.family == name]
        pairs = [
            (t.train_score, first, t.number)
            for t in own
            if t.train_score is not None and (first := first_fold_score(t)) is not None
        ]
        if any(t.curve for t in own) or not _falls([p[0] for p in pairs], [p[1] for p in pairs]):
            continue
        closest, best = max(pairs), max(pairs, key=lambda pair: pair[1])
        found.append(
            Watch(
                kind="gap",
                flagged=True,
                sentence=(
                    f"The closer {name} followed its training rows, the worse it was on others, over {len(pairs)} "
                    f"trials: from trial {best[2]} to trial {closest[2]} {metric.label} went from "
                    f"{metric.display(best[0])} to {metric.display(closest[0])} on training rows, and from "
                    f"{metric.display(best[1])} to {metric.display(closest[1])} on validation rows. The variant takes "
                    "its trials by their validation rows."
                ),
            )
        )
    return tuple(found)


def _falls(train: Sequence[float], held: Sequence[float]) -> bool:
    """Whether one score surely falls while the other one rises."""
    if len(train) < _LEAST_TRIALS or min(len(set(train)), len(set(held))) < _LEAST_TRIALS // 2:
        return False
    from scipy.stats import spearmanr

    return bool(spearmanr(train, held, alternative="less").pvalue < _LUCK)


def watch_blend(
    candidates: Candidates,
    weights: Mapping[int, float],
    bundle: Bundle,
    *,
    learned: Dataset,
    judged: Interval,
    n_judged: int,
    seed: int,
    trials: Sequence[Trial] = (),
) -> tuple[Watch, Watch]:
    """Compare a variant's scores on the rows it learned from, on those it was chosen on, and on the gate's.

    Args:
        candidates: Out-of-fold predictions of the search.
        weights: Share of each trial in the variant.
        bundle: The variant.
        learned: The search's rows; a sample is predicted.
        judged: Score on the gate's rows.
        n_judged: How many these are.
        seed: Of the sample.
        trials: Of the search, with their training scores.
    """
    metric, apply = candidates.metric, bundle.calibration.apply
    judged_as = [bundle.judged(apply(p), metric) for p in candidates.blended(weights)]
    chosen = candidates.score(judged_as, metric)
    n_chosen = sum(len(y) for y in candidates.targets)
    rows = learned.take(np.sort(np.random.default_rng(seed).permutation(len(learned))[:_LEARNED_ROWS]))
    trained = metric.score(rows.y, bundle.judged(bundle.predict_raw(rows.frame), metric), weight=rows.weight())
    alone = [
        Member(t.family, t.train_score, candidates.score([bundle.judged(apply(p), metric) for p in predicted], metric))
        for t in trials
        if t.number in weights and t.train_score is not None and (predicted := candidates.predictions.get(t.number))
    ]
    best = max(alone, key=lambda member: member.chosen, default=None) if len(weights) > 1 else None
    spread = _spread(judged, n_chosen=n_chosen, n_judged=n_judged)
    return (
        watch_selection(metric, chosen, judged, n_chosen=n_chosen, n_judged=n_judged),
        watch_gap(metric, trained, chosen, judged, best=best, spread=spread),
    )


def watch_curves(trials: Sequence[Trial], *, weights: Mapping[int, float]) -> tuple[Watch, ...]:
    """Return the members whose validation loss rose again while the training loss fell, the heaviest first."""
    members = sorted((t for t in trials if weights.get(t.number)), key=lambda t: -weights[t.number])
    found = []
    for trial in members:
        if (turn := turning_point(trial.curve)) is not None:
            best, last = turn
            found.append(
                Watch(
                    kind="curve",
                    flagged=True,
                    sentence=(
                        f"{trial.family} (trial {trial.number}) learned by heart after step {best.step}: until step "
                        f"{last.step} its training loss fell from {best.train:.4g} to {last.train:.4g}, while its "
                        f"validation loss rose from {best.validation:.4g} to {last.validation:.4g}. The variant uses "
                        "the model of the lowest validation loss."
                    ),
                )
            )
    return tuple(found)


def turning_point(curve: Sequence[CurvePoint]) -> tuple[CurvePoint, CurvePoint] | None:
    """Return the best and the last point of a curve whose gap grew beyond noise after its best, else None.

    Both losses have to say so: the training loss fell on, the validation loss rose by more than the noise of its own
    steps. A gap that grows while the validation loss stays level is what boosting does, and no harm.
    """
    known = [p for p in curve if p.train is not None and p.validation is not None]
    if len(known) < _LEAST_POINTS:
        return None
    held = np.array([p.validation for p in known], dtype=np.float64)
    best, end = int(held.argmin()), max(3, len(known) // 10)
    after = held[best + 1 :]
    if len(after) < end or not np.isfinite(held).all():
        return None
    steps = np.diff(held[max(0, best - len(after)) :])
    noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps))))
    rise = float(after[-end:].mean()) - held[best]
    gained = held[0] - held[best]
    first, last = known[best], known[-1]
    fell = (last.train or 0.0) < (first.train or 0.0)
    return (first, last) if fell and rise > max(_NOISES * noise, _LEAST_RISE * gained) else None

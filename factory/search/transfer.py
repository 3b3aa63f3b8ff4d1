"""What a search takes over from those before it: what to try first, what Optuna is told, when it has caught up.

A configuration that served a sibling is the best bet there is (Feurer,
Springenberg and Hutter 2015, "Initializing Bayesian hyperparameter
optimization via meta-learning").  Scores of two datasets cannot be compared,
ranks within each can: a trial counts by its place among those of its own
search, and the more the nearer its data are (:func:`factory.data.traits.distance`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from factory.data.traits import distance, traits_of
from factory.ledger import PastSearch
from factory.search.jobs import TrialData, first_fold_score
from factory.search.metric import Metric
from factory.search.race import relative_loss
from factory.search.study import Configuration, Prior, PriorTrial, key_of
from factory.space import Parameters, Space, clip
from factory.spec import Traits, Trial

NEAR = 0.35
"""Distance up to which another search is a sibling's. Half of a distance is the columns': a sibling shares most."""
UNKNOWN = 0.25
"""Distance of a parent whose data nobody profiled: whoever names it says that it is a sibling."""
MOST_SEEDS, MOST_OF_FAMILY = 8, 3
"""Configurations to try first, and of one family."""
MOST_PRIOR = 40
"""Trials of others that Optuna is told at most; it slows down with their number, and own ones shall decide."""
PARITY = 0.005
"""Part of the loss by which a search may be worse than the one it is held against, and be as good."""


@dataclass(frozen=True)
class Sibling:
    """An earlier search, and how far its data are from those of the new one."""

    search: PastSearch
    distance: float

    @property
    def near(self) -> bool:
        """Whether it is worth learning from."""
        return self.distance <= NEAR


@dataclass(frozen=True)
class Transfer:
    """What a search starts with.

    Attributes:
        seeds: Configurations to try first, the best bet first.
        prior: What Optuna is told of other searches; None where there is nothing.
        seeded_by: Requests that it comes from, the nearest first.
    """

    seeds: tuple[Configuration, ...] = ()
    prior: Prior | None = None
    seeded_by: tuple[str, ...] = ()

    @property
    def target(self) -> float | None:
        """First-fold score of the new data that is as good as what the nearest search reached on its own."""
        return None if self.prior is None else self.prior.target


def described(data: TrialData) -> Traits:
    """Return the traits of a search's data, with what a constant scores on the first fold: a landmark for ratios."""
    score = constant_score(data)
    known = {"metric": data.metric.name, "constant_score": score if np.isfinite(score) else None}
    return traits_of(data.dataset).model_copy(update=known)


def constant_score(data: TrialData) -> float:
    """Return what the mean, or the classes' shares, of the first fold's training rows score on its validation rows."""
    split, rows = data.splits[0], data.dataset
    constant = rows.constant(len(split.validation), of=split.train, median=data.metric.loss == "absolute")
    return data.metric.score(rows.y[split.validation], constant, weight=rows.weight(split.validation))


def siblings(mine: Traits, searches: Sequence[PastSearch], *, parent: PastSearch | None = None) -> tuple[Sibling, ...]:
    """Return the searches worth learning from: the parent's first, then near ones, the nearest and newest first.

    Args:
        mine: Traits of the new data.
        searches: Earlier ones, the newest first.
        parent: The search that made the parent, near or not.
    """
    near = [Sibling(s, distance(mine, s.traits)) for s in searches if s.traits is not None and s.trials]
    others = sorted((s for s in near if s.near), key=lambda s: s.distance)
    if parent is None or not parent.trials:
        return tuple(others)
    first = Sibling(parent, UNKNOWN if parent.traits is None else distance(mine, parent.traits))
    return (first, *(s for s in others if s.search.request_id != parent.request_id))


def transfer(
    relatives: Sequence[Sibling],
    *,
    mine: Traits,
    metric: Metric,
    families: Collection[str],
    spaces: Mapping[str, Space],
) -> Transfer:
    """Return what siblings teach a search.

    Args:
        relatives: The earlier searches, as :func:`siblings` orders them.
        mine: Traits of the new data, with the constant's score.
        metric: What the new search optimizes.
        families: That it may fit.
        spaces: Where its configurations may lie; seeds are moved to the nearest point.
    """
    found = seeds(relatives, families=families, spaces=spaces)
    told = prior_trials(relatives, families=families)
    if not found and not told:
        return Transfer()
    prior = Prior(told, target=target_score(relatives[0].search, mine=mine, metric=metric))
    return Transfer(found, prior, seeded_by=tuple(s.search.request_id for s in relatives))


def seeds(
    relatives: Sequence[Sibling], *, families: Collection[str], spaces: Mapping[str, Space]
) -> tuple[Configuration, ...]:
    """Return the configurations of other searches to try first, the best bet first, none twice.

    A member of a variant counts 1 plus its share, any other trial its place on the first fold, from 0 to 1; both are
    multiplied by 1 minus the distance. The best of each family comes in before a family's second.
    """
    worth: dict[object, tuple[float, Configuration]] = {}
    for sibling in relatives:
        places = _places(sibling.search.trials)
        for trial in sibling.search.trials:
            share = sibling.search.blend.get(trial.number, 0.0)
            quality = 1 + share if share else places.get(trial.number, 0.0)
            value = quality * (1 - sibling.distance)
            if trial.family not in families or trial.family == "constant" or not value:
                continue
            configuration = _configuration(trial, spaces)
            known = worth.get(key_of(*configuration))
            if known is None or known[0] < value:
                worth[key_of(*configuration)] = (value, configuration)
    ordered = [c for _, c in sorted(worth.values(), key=lambda entry: -entry[0])]
    taken: list[tuple[int, Configuration]] = []
    count: dict[str, int] = {}
    for configuration in ordered:
        nth = count.get(configuration[0], 0)
        if nth < MOST_OF_FAMILY:
            count[configuration[0]] = nth + 1
            taken.append((nth, configuration))
    firsts = [c for nth, c in taken if nth == 0]
    kept = {key_of(*c) for c in [*firsts, *(c for nth, c in taken if nth)][:MOST_SEEDS]}
    return tuple(c for c in ordered if key_of(*c) in kept)


def prior_trials(relatives: Sequence[Sibling], *, families: Collection[str]) -> tuple[PriorTrial, ...]:
    """Return what Optuna is told of other searches: places on their first folds, pulled to the middle by distance.

    The nearest searches go first; of each, as many as its nearness is worth, spread over its places.
    """
    told: list[PriorTrial] = []
    for sibling in relatives:
        places = _places(sibling.search.trials)
        ordered = sorted((t for t in sibling.search.trials if t.number in places), key=lambda t: -places[t.number])
        usable = [t for t in ordered if t.family in families]
        most = min(round(MOST_PRIOR * (1 - sibling.distance)), MOST_PRIOR - len(told), len(usable))
        for at in np.unique(np.linspace(0, len(usable) - 1, max(most, 0)).round().astype(int)):
            trial = usable[at]
            place = 0.5 + (places[trial.number] - 0.5) * (1 - sibling.distance)
            told.append(PriorTrial(trial.family, fitted_parameters(trial), place))
    return tuple(told)


def _configuration(trial: Trial, spaces: Mapping[str, Space]) -> Configuration:
    """Return a trial's configuration, moved to the nearest point that may be searched."""
    return trial.family, clip(spaces[trial.family], fitted_parameters(trial))


def fitted_parameters(trial: Trial) -> Parameters:
    """Return a trial's parameters, with the learning rate that a near deadline had raised it to."""
    raised = {} if trial.raised_rate is None else {"learning_rate": trial.raised_rate}
    return {**trial.parameters, **raised}


def target_score(reached: PastSearch, *, mine: Traits, metric: Metric) -> float | None:
    """Return the first-fold score on the new data that is as good as what an earlier search reached on its own.

    Scores of two datasets do not compare; what is left of a constant's loss does. An earlier search that came down to
    a third of its constant's loss is reached by a third of the constant's loss on the new first fold.

    Args:
        reached: The earlier search.
        mine: Traits of the new data, by the new metric.
        metric: Of the new search; another one than the earlier search's has no target.
    """
    traits, scores = reached.traits, [s for s in map(first_fold_score, reached.trials) if s is not None]
    if traits is None or not scores or traits.metric != metric.name:
        return None
    if traits.constant_score is None or mine.constant_score is None:
        return None
    theirs, own = relative_loss(metric, traits.constant_score), relative_loss(metric, mine.constant_score)
    ratio = relative_loss(metric, max(scores)) / theirs if theirs > 0 else np.nan
    loss = ratio * own
    if not np.isfinite(loss):
        return None
    return float(-loss if metric.name.startswith("neg_") else 1 - loss)


def trials_to_parity(scores: Sequence[float | None], target: float, *, metric: Metric) -> int | None:
    """Return how many trials a search took until one was as good as the target, within :data:`PARITY` of its loss.

    Args:
        scores: Of each trial on the first fold, in the order in which they were tried; None where it has none.
        target: Score to be reached.
        metric: Greater is better.

    >>> trials_to_parity([0.70, None, 0.8995, 0.95], 0.9, metric=Metric("roc_auc", Task.BINARY))
    3
    >>> trials_to_parity([-2.0, -1.5], -1.0, metric=Metric("neg_log_loss", Task.BINARY)) is None
    True
    """
    allowed = relative_loss(metric, target) * (1 + PARITY)
    for count, score in enumerate(scores, start=1):
        if score is not None and relative_loss(metric, score) <= allowed:
            return count
    return None


def _places(trials: Sequence[Trial]) -> dict[int, float]:
    """Return of each trial the share of its search's trials that are not better on the first fold, in (0, 1]."""
    scores = {t.number: s for t in trials if (s := first_fold_score(t)) is not None and np.isfinite(s)}
    ordered = np.sort(list(scores.values()))
    return {n: float(np.searchsorted(ordered, s, side="right") / len(ordered)) for n, s in scores.items()}

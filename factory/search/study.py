"""Which configurations there are to try: the portfolio's bets, then what Optuna proposes.

One Optuna study (ask and tell, define-by-run, family-dependent spaces).  What
happened before enters by ``study.add_trial``: resuming after a crash, yielding
and warm starting are the same act, seeding the study with history.  A trial's
value is its score on the first fold, which every trial has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from factory.families.base import Shape
from factory.search.jobs import TrialData
from factory.search.plan import LOSS, LOSSES, Plan, family
from factory.search.samples import representation
from factory.space import ChoiceDimension, Dimension, FloatDimension, Parameters, Value, clip
from factory.spec import ColumnType, Trial, TrialState

STARTUP_TRIALS = 8
"""Random proposals before Optuna's sampler models anything; portfolio entries count."""
MOST_REPEATS = 20
"""A family is used up when so many proposals in a row were configurations that have been tried."""

LEAST_OWN = 3
"""Own scores from which a place among those of another search means anything here."""

Configuration = tuple[str, Parameters]
Key = tuple[str, tuple[tuple[str, object], ...]]
"""What tells a configuration from all others."""


@dataclass(frozen=True)
class PriorTrial:
    """A trial of another search: its place among that search's scores, from 0 for the worst to 1 for the best."""

    family: str
    parameters: Parameters
    place: float


@dataclass(frozen=True)
class Prior:
    """What other searches found.

    Attributes:
        trials: What the sampler is told.
        target: First-fold score that is as good as what that sibling reached; None where that cannot be told.
    """

    trials: tuple[PriorTrial, ...] = ()
    target: float | None = None


class Study:
    """Configurations, none of them twice.

    Args:
        plan: What may be tried.
        families: Of the plan's, those that this search can afford.
        shape: Of the data, for the portfolios.
        seeds: Configurations to try before the portfolio: those that served a sibling.
        history: Finished trials of this search (a resumed one).
        prior: Of other searches. The sampler (TPE; Bergstra et al. 2011) looks at nothing but the order of values, and
            values of two datasets have none in common. So these trials wait for the first proposal: by then the bets
            have been tried, and each enters with that quantile of the own scores which is its place among its own.
        firsts_only: Leave the portfolio one bet of each family, to measure what the others bring.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        families: Sequence[str],
        shape: Shape,
        seeds: Sequence[Configuration] = (),
        history: Sequence[Trial] = (),
        prior: Prior | None = None,
        firsts_only: bool = False,
    ) -> None:
        self._plan = plan
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=plan.request.seed + len(history), n_startup_trials=STARTUP_TRIALS)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, optuna.trial.Trial] = {}
        # A killed trial says nothing about its configuration, so that is tried again.
        self._seen = {key_of(t.family, t.parameters) for t in history if t.state is not TrialState.KILLED}
        self._used_up: set[str] = set()
        self._prior = prior.trials if prior is not None else ()
        served = _by_pool([(n, clip(plan.spaces[n], p)) for n, p in seeds if n in families], families)
        bets = portfolio(plan, families, shape=shape)
        if firsts_only:
            bets = _firsts(bets)
        self._seeds = {key_of(*seed) for seed in served}
        fresh = {key_of(*bet): bet for bet in [*served, *bets] if key_of(*bet) not in self._seen}
        self._bets = deque(fresh.values())
        self._repeated: set[Key] = set()

    @property
    def bets_left(self) -> bool:
        """Whether the portfolio has entries that were not tried."""
        return bool(self._bets)

    def next_bet(self, *, quick: bool = False) -> Configuration | None:
        """Return the next seed, or the portfolio's next entry; None where none is left.

        Args:
            quick: Whether it has to be one whose fit takes no more than a second or two.
        """
        bet = next((bet for bet in self._bets if family(bet[0]).quick or not quick), None)
        if bet is not None:
            self._bets.remove(bet)
            self._seen.add(key_of(*bet))
        return bet

    def again(self, bet: Configuration) -> None:
        """Let a bet that came to nothing by no fault of its own come next once more, and not a third time."""
        if (key := key_of(*bet)) not in self._repeated:
            self._repeated.add(key)
            self._bets.appendleft(bet)

    def bet_next(self, bet: Configuration) -> None:
        """Let a configuration that was not tried be the next bet."""
        if (key := key_of(*bet)) not in self._seen:
            self._bets = deque([bet, *(other for other in self._bets if key_of(*other) != key)])

    def is_seed(self, bet: Configuration) -> bool:
        """Whether a configuration is one of the seeds."""
        return key_of(*bet) in self._seeds

    def searchable(self, name: str) -> bool:
        """Whether a family has a dimension to search and configurations that were not tried."""
        space = self._plan.spaces.get(name, {})
        return name not in self._used_up and any(_free(dimension) for dimension in space.values())

    def ask(self, name: str, *, number: int) -> Parameters | None:
        """Return parameters that Optuna proposes for a family; None, and never again, where it finds no new ones.

        Args:
            name: The family.
            number: Of the trial that they are for, which :meth:`tell` is to name.
        """
        self._take_prior()
        for _ in range(MOST_REPEATS):
            self._study.enqueue_trial({"family": name})
            asked = self._study.ask()
            asked.suggest_categorical("family", list(self._plan.families))
            parameters = {p: _suggest(asked, f"{name}.{p}", d) for p, d in self._plan.spaces[name].items()}
            if key_of(name, parameters) not in self._seen:
                self._seen.add(key_of(name, parameters))
                self._asked[number] = asked
                return parameters
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        self._used_up.add(name)
        return None

    def tell(self, trial: Trial, value: float | None) -> None:
        """Take a trial's value, None where it has none; a trial that was not asked for is added as history."""
        asked = self._asked.pop(trial.number, None)
        if asked is not None:
            state = optuna.trial.TrialState.FAIL if value is None else None
            self._study.tell(asked, value, state=state)
        elif value is not None and trial.family in self._plan.spaces:
            self._add(trial.family, trial.parameters, value)

    def _take_prior(self) -> None:
        """Add what other searches found, on the scale of the own scores."""
        complete = (optuna.trial.TrialState.COMPLETE,)
        own = [trial.value for trial in self._study.get_trials(deepcopy=False, states=complete)]
        if not self._prior or len(own) < LEAST_OWN:
            return
        for trial in self._prior:
            if trial.family in self._plan.spaces:
                self._add(trial.family, trial.parameters, float(np.quantile(own, trial.place)))
        self._prior = ()

    def _add(self, name: str, parameters: Mapping[str, Value], value: float) -> None:
        """Add a trial from elsewhere, as far as its parameters lie within the space of today."""
        space = self._plan.spaces[name]
        inside = {p: v for p, v in parameters.items() if p in space and clip({p: space[p]}, {p: v})[p] == v}
        self._study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params={"family": name, **{f"{name}.{p}": v for p, v in inside.items()}},
                distributions={
                    "family": optuna.distributions.CategoricalDistribution(list(self._plan.families)),
                    **{f"{name}.{p}": _distribution(space[p]) for p in inside},
                },
            )
        )


def shape_of(data: TrialData) -> Shape:
    """Return what the portfolios may know of the data."""
    categorical = [name for name, kind in data.dataset.types.items() if kind is ColumnType.CATEGORICAL]
    frame, found = data.dataset.frame, representation(data)
    return Shape(
        n_rows=len(data.splits[0].train),
        n_columns=frame.shape[1],
        n_categorical=len(categorical),
        most_levels=max((int(frame[name].nunique()) for name in categorical), default=0),
        n_classes=data.n_classes,
        n_crosses=len(found.crosses),
        loss=found.loss,
    )


def portfolio(plan: Plan, families: Sequence[str], *, shape: Shape) -> list[Configuration]:
    """Return the bets of some families by rank, ties in the recipe's order; pools one after the other.

    Where the loss is a choice, all are made with the one that quick fits prefer, and each family's first with the other
    one as well: which is better differs by family, and a blend of both is often better than either.
    """
    ordered: list[Configuration] = []
    for pool in dict.fromkeys(family(name).pool for name in families):
        members = [name for name in families if family(name).pool == pool]
        bets = [
            (bet.rank, name, {**bet.parameters, LOSS: loss})
            for name in members
            for k, bet in enumerate(family(name).portfolio(plan.task, shape=shape))
            for loss in sorted(LOSSES, key=lambda loss: loss != shape.loss)[: 2 if k == 0 else 1]
        ]
        for _, name, parameters in sorted(bets, key=lambda entry: entry[0]):
            configuration = (name, clip(plan.spaces[name], parameters))
            if configuration not in ordered:
                ordered.append(configuration)
    return ordered


def _by_pool(bets: Sequence[Configuration], families: Sequence[str]) -> list[Configuration]:
    """Return bets pool by pool in the order of the families, so that frameworks are not started in turn."""
    pools = list(dict.fromkeys(family(name).pool for name in families))
    return sorted(bets, key=lambda bet: pools.index(family(bet[0]).pool))


def _firsts(bets: Sequence[Configuration]) -> list[Configuration]:
    """Return the first bet of each family."""
    first = {name: (name, parameters) for name, parameters in reversed(bets)}
    return [bet for bet in bets if first[bet[0]] == bet]


def key_of(name: str, parameters: Parameters) -> Key:
    """Return a configuration's key."""
    return name, tuple(sorted(parameters.items()))


def _free(dimension: Dimension) -> bool:
    if isinstance(dimension, ChoiceDimension):
        return len(dimension.choices) > 1
    return dimension.low < dimension.high


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    if isinstance(dimension, ChoiceDimension):
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    if isinstance(dimension, FloatDimension):
        return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return optuna.distributions.IntDistribution(dimension.low, dimension.high, log=dimension.log)


def _suggest(asked: optuna.trial.Trial, name: str, dimension: Dimension) -> Value:
    value: Value
    if isinstance(dimension, ChoiceDimension):
        value = asked.suggest_categorical(name, dimension.choices)
    elif isinstance(dimension, FloatDimension):
        value = asked.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    else:
        value = asked.suggest_int(name, dimension.low, dimension.high, log=dimension.log)
    return value

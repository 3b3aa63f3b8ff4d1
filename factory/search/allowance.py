"""What a fit may take of a search's time, and when there is time for one more of a kind."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from factory.families.base import Deadline
from factory.search.jobs import TrialData
from factory.search.plan import Plan, family

FIT_SHARE_FEW_ROWS, FIT_SHARE, FEW_ROWS = 0.1, 0.16, 6_000
"""Part of the time that the fit of a first fold may take, and up to how many rows it is the smaller one."""
LONG_S = 60.0
"""A fit's part grows with the time up to here, beyond with the time's root: the rest goes to more bets and folds."""
CUT_SHORT = 2.0
"""How much longer a family may take whose fit does not get better round by round: a forest that is cut to a few trees
looks hopeless, where a booster is only a little worse."""
DISTRIBUTED_FIT_SHARE = 0.5
"""The same where a trial trains on several workers: their start alone takes 20 to 40 s."""
SHORTEST_TRIAL_S, SHORTEST_SHARE = 3.0, 0.1
"""No new configuration is tried when less time is left: seconds, or of a very short search a part of it."""
LATER_FOLD, LATER_FOLD_S = 1.25, 0.3
"""A later fold costs at most so much more than the first (90 % of the measured ones), and what starting it costs."""
POOL_START_S = {"trees": 0.0, "torch": 8.0, "tensorflow": 20.0}
"""Seconds until a worker of that pool has imported its framework, measured on two cores (docs/decisions/workers.md)."""
POOL_START_SHARE = 0.08
"""A pool is used when its start takes no more than this part of the search's time."""


@dataclass(frozen=True)
class Allowance:
    """The time of one search, and what of it a fit may take.

    Attributes:
        plan: What is searched.
        n_rows: Training rows of a fold.
        n_folds: How many there are.
        deadline: When the search has to be over.
        began: When it began, in seconds since 1970.
    """

    plan: Plan
    n_rows: int
    n_folds: int
    deadline: Deadline
    began: float

    @classmethod
    def of(cls, plan: Plan, data: TrialData, *, deadline: Deadline) -> Allowance:
        """Return that of a search which begins now."""
        return cls(plan, len(data.splits[0].train), len(data.splits), deadline, time.time())

    @property
    def whole_s(self) -> float:
        """Seconds of the whole search."""
        return max(self.deadline.at - self.began, 0.0)

    @property
    def shortest_s(self) -> float:
        """Seconds below which no new configuration is tried."""
        return min(SHORTEST_TRIAL_S, SHORTEST_SHARE * self.whole_s)

    @property
    def is_long(self) -> bool:
        """Whether there is time for more than the first bets, and the clock decides."""
        return self.whole_s > LONG_S and not self.plan.repeatable and self._alone

    def families(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the plan's families but those whose framework takes too much of the time to start, and why not these.

        None is left out where nothing else would be left.
        """
        left_s = self.deadline.left_s
        names, skipped = [], {}
        for name in self.plan.families:
            start_s = POOL_START_S.get(family(name).pool, 0.0)
            if self.plan.repeatable or start_s <= POOL_START_SHARE * left_s:
                names.append(name)
            else:
                skipped[name] = f"its framework takes about {start_s:.0f} s of the {left_s:.0f} s to start"
        if all(name == "constant" for name in names):
            return self.plan.families, {}
        return tuple(names), skipped

    def first_s(self, name: str, *, n_counted: int, parallel: int) -> float:
        """Return what the fit of a first fold may take; counted trials share what is left, two thirds for the folds.

        Args:
            name: Its family.
            n_counted: Trials so far.
            parallel: Jobs that run at once.
        """
        left_s = self.deadline.left_s
        if self.plan.repeatable and self.plan.budget.trials is not None:
            jobs = max(1, self.plan.budget.trials - n_counted + 1) + 2 * (self.n_folds > 1)
            return max(SHORTEST_TRIAL_S, left_s * parallel / jobs)
        if not self._alone:
            return max(SHORTEST_TRIAL_S, DISTRIBUTED_FIT_SHARE * left_s)
        return self._share_s(name)

    def later_s(self, name: str, expected_s: float) -> float:
        """Return what the fit of a further fold may take: no more than that of the first, which may have been cut.

        A fit that is cut short uses whatever it may: each fold would take longer than those before.

        Args:
            name: Its family.
            expected_s: What it should take at most, by the folds before.
        """
        if self.plan.repeatable:
            return float("inf")
        limit_s = LATER_FOLD * expected_s
        return min(limit_s, self._share_s(name)) if self._alone else limit_s

    def _share_s(self, name: str) -> float:
        share = FIT_SHARE_FEW_ROWS if self.n_rows <= FEW_ROWS else FIT_SHARE
        if not family(name).iterative:
            share *= CUT_SHORT
        return max(self.shortest_s, share * min(self.whole_s, math.sqrt(LONG_S * self.whole_s)))

    @property
    def _alone(self) -> bool:
        """Whether a trial trains on one worker."""
        return self.plan.request.resources.workers == 1

"""What it takes to make a variant again: its members, their rounds, and how columns and target are represented.

A variant's bundle carries its :class:`Blueprint`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from factory.data.crosses import Cross
from factory.errors import UntrustedBundle
from factory.search.ensemble import Arena, Candidates
from factory.search.plan import family
from factory.space import Parameters
from factory.spec import Document, Trial

BLUEPRINT = "blueprint.json"
_FORMAT = 1
REFIT_SHARE, MORE_COST = 0.08, 1.3
"""Part of the seconds of a search's fits that a refit's may take: a tenth, with room for further rows; and what a fit
on all rows costs in fits on a fold's: an eighth more rows, and as many more rounds."""
WITHOUT = 4
"""Choices of members for a refit: among all, without the dearest one, the two dearest, and the three."""


class MemberPlan(Document):
    """A member of a blend, as far as it can be told in words.

    Attributes:
        number: Of the trial that found it.
        family: Its family.
        parameters: With the learning rate that it was trained with.
        weight: Its share in the blend.
        rounds: That early stopping found; 0 where the family has none.
        n_rows: Training rows that these rounds were found on; 0 where it is not known.
        seed: Of its trial.
        refit_weight: Its share in a refit, where fitting all members would be dear; 0 where a refit leaves it out.
    """

    number: int
    family: str
    parameters: Parameters
    weight: float
    rounds: int = 0
    n_rows: int = 0
    seed: int = 0
    refit_weight: float | None = None

    def rounds_for(self, n_rows: int) -> int:
        """Return the rounds of a fit on so many rows: they grow with the rows where the family's do.

        At least one where there were some, since none would leave them to the family.
        """
        grows = self.rounds and self.n_rows and family(self.family).rounds_grow
        return max(1, round(self.rounds * n_rows / self.n_rows)) if grows else self.rounds


class Blueprint(Document):
    """What it takes to make a variant again on other rows.

    Attributes:
        members: Of the blend, the heaviest first.
        models: Of each model of the bundle, the number of the member that it belongs to.
        target_scale: On which a regression target is learned.
        crosses: Products and ratios among the prepared columns.
        omitted: Calendar parts that are not among them.
    """

    members: tuple[MemberPlan, ...]
    models: tuple[int, ...] = ()
    target_scale: Literal["raw", "sqrt", "log"] = "raw"
    crosses: tuple[Cross, ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def refitted(self) -> tuple[tuple[MemberPlan, float], ...]:
        """The members that a refit fits, the heaviest first, with their shares."""
        shares = [(m, m.weight if m.refit_weight is None else m.refit_weight) for m in self.members]
        return tuple(sorted(((m, w) for m, w in shares if w > 0), key=lambda pair: -pair[1]))

    def save(self, folder: Path) -> None:
        """Write ``blueprint.json`` into an existing folder."""
        document = {"format": _FORMAT, **self.model_dump(mode="json")}
        (folder / BLUEPRINT).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Blueprint | None:
        """Read what :meth:`save` wrote; None where a bundle has no such file.

        Raises:
            UntrustedBundle: the file is damaged or of an unknown format.
        """
        path = folder / BLUEPRINT
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("format") != _FORMAT:
                raise ValueError("an unknown format")
            return cls.model_validate(document)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UntrustedBundle(
                f"{BLUEPRINT} of the bundle cannot be read: {error}.", hint="Make the variant again by a search."
            ) from error

    def of_model(self, position: int) -> MemberPlan:
        """Return the member that a model of the bundle belongs to."""
        return next(member for member in self.members if member.number == self.models[position])


def refit_shares(candidates: Candidates, trials: Sequence[Trial], weights: Mapping[int, float]) -> dict[int, float]:
    """Return the best shares of those members that a refit fits within a tenth of what their search has cost.

    Args:
        candidates: Of the search, with out-of-fold predictions.
        trials: Of the search.
        weights: Share of each member in the variant; they stay where all of them can be afforded.
    """
    by_number = {trial.number: trial for trial in trials}
    costs = {n: MORE_COST * by_number[n].cost_s / max(len(by_number[n].folds), 1) for n in weights}
    limit_s = REFIT_SHARE * sum(trial.cost_s for trial in trials)
    if sum(costs.values()) <= limit_s or any(n not in candidates.predictions for n in weights):
        return dict(weights)
    shown = {n: candidates.predictions[n] for n in weights}
    arena = Arena(candidates.metric.chooser, candidates.targets, shown, weights=candidates.weights)
    cheapest_first = sorted(costs, key=lambda n: (costs[n], n))
    # What is best alone may leave no time for others that are better together.
    found = [
        arena.greedy(among=cheapest_first[:n], affords=lambda members: sum(costs[n] for n in members) <= limit_s)
        for n in range(len(costs), max(len(costs) - WITHOUT, 0), -1)
    ]
    return max(found, key=lambda blend: blend.score).weights or {cheapest_first[0]: 1.0}

"""Which members of a blend are explained exactly, and what each input column added to these.

Contributions to a weighted sum are the weighted sums of the contributions.  So
a member whose answer is itself a sum (trees or a linear model of a number,
forests, the constant) is explained exactly (:mod:`factory.families._terms`),
and the others are left to walks.  A booster's probability is not a sum: its
log-odds are, which is the ``margin`` of a variant of one model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from factory.data.preparation import Table
from factory.errors import Conflict, Detail
from factory.families._terms import Comparison, Link, Terms
from factory.variants.bundle import Bundle, Member

Method = Literal["tree_shap", "linear", "constant", "sampled"]
Scale = Literal["prediction", "margin"]
CELLS_A_SECOND = 5e7
"""Leaves times rows times background rows that one core takes in a second (measured: 3e7 to 5e7)."""
CLOSE = 1e-5
"""Part of the largest prediction by which exact contributions may miss a model's answer, which may be in single
precision; a model that is further off is not what it was taken for, and is left to walks."""


@dataclass(frozen=True)
class Share:
    """How a member of the blend was explained.

    Attributes:
        family: Its family.
        weight: Its share in the blend.
        method: ``tree_shap``, ``linear`` and ``constant`` are exact.
    """

    family: str
    weight: float
    method: Method


@dataclass(frozen=True, eq=False)
class Exact:
    """What is known exactly of a weighted sum of members.

    Attributes:
        base: Mean of the background, float64 (n_outputs,).
        contributions: float64 (n_rows, n_columns, n_outputs).
        shares: Of all members.
        rest: Members that are left to walks.
    """

    base: np.ndarray
    contributions: np.ndarray
    shares: tuple[Share, ...]
    rest: tuple[Member, ...]


class Scene:
    """Rows and background of an explanation, prepared as the members want them.

    Args:
        bundle: The variant.
        values: Rows, canonical, by column (n_rows,).
        background: Rows to compare with, by the same columns.
    """

    def __init__(self, bundle: Bundle, values: Mapping[str, np.ndarray], background: Mapping[str, np.ndarray]) -> None:
        self._bundle, self._values, self._background = bundle, values, background
        self._names = tuple(background)
        self._n_background = len(next(iter(background.values())))
        self.n_rows = len(next(iter(values.values())))
        self._comparisons: dict[int, Comparison] = {}

    def comparison(self, preparation: int) -> Comparison:
        """Return both as one of the bundle's preparations has them."""
        if preparation not in self._comparisons:
            prepare = self._bundle.preparations[preparation]
            place = {name: i for i, name in enumerate(self._names)}

            def mixed(row: int, sets: Sequence[frozenset[int]]) -> Table:
                columns = {}
                for i, name in enumerate(self._names):
                    own, theirs = self._values[name][row : row + 1], self._background[name]
                    parts = [np.repeat(own, self._n_background) if i in chosen else theirs for chosen in sets]
                    columns[name] = np.concatenate(parts)
                return prepare.transform(columns)

            self._comparisons[preparation] = Comparison(
                rows=prepare.transform(dict(self._values)),
                background=prepare.transform(dict(self._background)),
                owners=tuple(frozenset(place[name] for name in source) for source in prepare.sources),
                n_inputs=len(self._names),
                mixed=mixed,
            )
        return self._comparisons[preparation]


@dataclass(frozen=True)
class Allowance:
    """Time of an explanation, as moments of the monotonic clock.

    Attributes:
        ends: A member that by its size would take longer goes to the walks.
        until: What takes longer all the same is given up.
    """

    ends: float
    until: float = float("inf")

    @property
    def cells(self) -> float:
        """Leaves times rows times background rows that one core takes in what is left now."""
        return (self.ends - time.monotonic()) * CELLS_A_SECOND


def exact(bundle: Bundle, scene: Scene, *, allowance: Allowance) -> Exact:
    """Return what is known exactly of a bundle's predictions.

    Args:
        bundle: The variant.
        scene: Rows and background.
        allowance: Time that it may take; a member too large for what the others have left goes to the walks.

    Raises:
        TimeoutError: it was given up.
    """
    n_outputs = max(len(bundle.classes), 1)
    base, added = np.zeros(n_outputs), np.zeros((scene.n_rows, scene.comparison(0).n_inputs, n_outputs))
    shares, rest = [], []
    calibration = bundle.calibration
    for member in bundle.members:
        # A probability that is calibrated, or made of log-odds, or a number that is raised is not the sum of anything.
        is_sum = calibration.method == "none" and calibration.floor is None and member.model.link == "identity"
        terms = member.model.terms() if is_sum else None
        found = None
        if terms is not None:
            found = _divided(member, terms, scene.comparison(member.preparation), allowance)
        if terms is None or found is None:
            rest.append(member)
            shares.append(Share(member.family, member.weight, "sampled"))
            continue
        base += member.weight * found[0]
        added += member.weight * found[1]
        shares.append(Share(member.family, member.weight, terms.method))
    return Exact(base, added, tuple(shares), tuple(rest))


def _divided(
    member: Member, terms: Terms, comparison: Comparison, allowance: Allowance
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a member's base and contributions on the scale of its sum; None where it has to be left to walks."""
    added = terms.shapley(comparison, most_cells=allowance.cells, until=allowance.until)
    if added is None:
        return None
    base = terms.margins(comparison.background).mean(axis=0)
    told = two_dimensional(member.model.predict(comparison.rows))
    known = terms.answers(base + added.sum(axis=1))
    return (base, added) if np.allclose(known, told, rtol=0, atol=CLOSE * np.abs(told).max(initial=1.0)) else None


class Margin:
    """The one sum whose link is a variant's prediction: log-odds, scores of classes, a number on its learned scale.

    Args:
        bundle: The variant.

    Raises:
        Conflict: its predictions are not the link of one sum.
    """

    def __init__(self, bundle: Bundle) -> None:
        method, members = bundle.calibration.method, bundle.members
        terms = members[0].model.terms() if len(members) == 1 else None
        floor = bundle.calibration.floor
        # What a link bends is 0 at least.
        raised = terms is not None and floor is not None and (terms.link == "identity" or floor > 0)
        curved = terms is not None and (method == "isotonic" or (method == "temperature" and terms.link == "identity"))
        if terms is None or raised or curved:
            why = f"it blends {len(members)} models" if len(members) > 1 else f"it is of the family {members[0].family}"
            why = "its probabilities follow a curve" if curved else why
            why = f"its predictions are raised to {floor:.6g} where they are lower" if raised else why
            message = f"This variant has no margin: {why}."
            raise Conflict(
                message,
                hint="Ask for the scale 'prediction', which every variant has.",
                details=[Detail("scale", message)],
            )
        self._bundle, self._terms = bundle, terms
        self._factor = 1 / bundle.calibration.temperature if method == "temperature" else 1.0
        self.link: Link = terms.link

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the sums: ``prediction``, the second of two classes, or each class."""
        classes = self._bundle.classes
        if not classes:
            return ("prediction",)
        return classes[1:] if self.link == "logistic" else classes

    def predict(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the sums, float64 (n_rows, n_outputs)."""
        table = self._bundle.preparations[self._bundle.members[0].preparation].transform(dict(columns))
        return self._factor * self._terms.margins(table)

    def exact(self, scene: Scene, *, allowance: Allowance) -> Exact:
        """Return what each column added to the sums; nothing, and the member, where it is too large.

        Raises:
            TimeoutError: it was given up.
        """
        (member,) = self._bundle.members
        comparison = scene.comparison(member.preparation)
        found = _divided(member, self._terms, comparison, allowance)
        n_outputs = len(self.outputs)
        if found is None:
            nothing = np.zeros((scene.n_rows, comparison.n_inputs, n_outputs))
            return Exact(np.zeros(n_outputs), nothing, (Share(member.family, 1.0, "sampled"),), (member,))
        base, added = found
        return Exact(self._factor * base, self._factor * added, (Share(member.family, 1.0, self._terms.method),), ())


def blended(bundle: Bundle, members: Sequence[Member], columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the weighted sum of some members' answers, float64 (n_rows, n_outputs)."""
    tables: dict[int, Table] = {}
    total: np.ndarray = np.zeros(())
    for member in members:
        if member.preparation not in tables:
            tables[member.preparation] = bundle.preparations[member.preparation].transform(dict(columns))
        total = total + member.weight * two_dimensional(member.model.predict(tables[member.preparation]))
    return total


def two_dimensional(predictions: np.ndarray) -> np.ndarray:
    """Return predictions as (n_rows, n_outputs)."""
    return predictions if predictions.ndim == 2 else predictions[:, np.newaxis]

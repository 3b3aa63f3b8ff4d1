"""What the models that a search left would cost a caller, one row through each native path, and bundles of them.

Every model and preparation is loaded, timed and merged once, however many
blends are weighed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from factory.data.preparation import Preparation, Table
from factory.families.base import Deadline, Model
from factory.search.calibration import Calibration
from factory.search.engine import Part, SearchResult
from factory.search.jobs import TrialData
from factory.spec import Task
from factory.variants.assembly import assemble, learned_calibration, load_model, load_preparation, merge_by_family
from factory.variants.bundle import Bundle
from factory.variants.contents import folder_size_mb

REFIT_AS = 2.6
"""One model of all rows is worth a bag of about so many: 75 to 80 % of what five folds gain."""
RUNS, REPEATS, WARM_UP = 11, 3, 4
"""Timed predictions in each median, medians of which the lowest counts, and rows before them. Each row is predicted
once where there are enough: the nodes of a tree that a row has just come by are in the cache, those that a caller's
next row will come by are not (a forest on wine_quality took 4 ms by rows that came again, 6 by new ones)."""
STAND_IN = Calibration(method="temperature", temperature=1.5)
"""Timed in place of the calibration of classes, which takes up to seconds to learn and the same to apply."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Cost:
    """Of one model of a trial."""

    row_ms: float
    size_mb: float


@dataclass(frozen=True)
class Prices:
    """What models and preparations were found to cost, for blends of the same ones that are chosen elsewhere.

    Attributes:
        costs: Trial → one of its models.
        digests: Folder of a preparation → its digest.
        preparation_ms: Digest → one row's time.
        preparation_mb: Digest → size of its files.
        further: Family → part of the first one's time that a further merged model takes.
        merges: Whether the models of a bag are merged where their family can.
        ratio: What a whole bundle took, by what its parts say.
    """

    costs: dict[int, _Cost]
    digests: dict[Path, str]
    preparation_ms: dict[str, float]
    preparation_mb: dict[str, float]
    further: dict[str, float]
    merges: bool
    ratio: float

    def renumbered(self, numbers: Mapping[int, int]) -> Prices:
        """Return them for trials that have other numbers elsewhere.

        Args:
            numbers: Trial → its other number; what the others cost is left out.
        """
        return replace(self, costs={other: self.costs[n] for n, other in numbers.items() if n in self.costs})


@dataclass(frozen=True)
class Offer:
    """A blend that could be delivered: weights, models of a bag at most, estimated cost, charged score."""

    weights: dict[int, float]
    bag: int
    latency_ms: float
    size_mb: float
    score: float


class Shop:
    """What the parts cost, and bundles made of them; each part is loaded, measured and merged once.

    Args:
        result: Trials with their parts.
        data: Of the search.
        rows: To time predictions with, (n_rows, n_columns).
        deadline: When nothing is merged any more to see what that saves.
        known: What was measured elsewhere, which is not measured again.

    Attributes:
        merges: Whether the models of a bag are merged where their family can.
    """

    def __init__(
        self,
        result: SearchResult,
        data: TrialData,
        rows: pd.DataFrame,
        deadline: Deadline | None = None,
        known: Prices | None = None,
    ) -> None:
        known = known or Prices({}, {}, {}, {}, {}, merges=False, ratio=1.0)
        self.merges = known.merges
        self._deadline = deadline or Deadline()
        self._result, self._data = result, data
        self._loaded: dict[Path, Model] = {}
        self._costs = dict(known.costs)
        self._further = dict(known.further)
        self._merged: dict[tuple[int, ...], Model | None] = {}
        self._preparations: dict[Path, Preparation] = {}
        self._digests = dict(known.digests)
        self._preparation_ms = dict(known.preparation_ms)
        self._preparation_mb = dict(known.preparation_mb)
        arrays = {str(name): rows[name].to_numpy() for name in rows.columns}
        n_rows = min(len(rows), WARM_UP + REPEATS * RUNS)
        self._rows = [{name: a[i : i + 1] for name, a in arrays.items()} for i in range(n_rows)]

    def parts(self, number: int, bag: int) -> tuple[Part, ...]:
        """Return at most so many of a trial's parts, the lowest folds first, so that members share preparations."""
        ordered = sorted(self._result.parts[number], key=lambda part: -1 if part.fold is None else part.fold)
        return tuple(ordered[:bag])

    def models(self, offer: Offer) -> int:
        """Return the number of fitted models behind an offer."""
        return sum(len(self.parts(n, offer.bag)) for n in offer.weights)

    def effective_bag(self, number: int, bag: int) -> float:
        """Return how many models a trial's bag is worth."""
        parts = self.parts(number, bag)
        return REFIT_AS if parts[0].fold is None else len(parts)

    def latency_ms(self, members: frozenset[int], bag: int) -> float:
        """Estimate one row's time: each distinct preparation once, then every model."""
        total = 0.0
        digests: set[str] = set()
        for number in members:
            cost = self.cost(number)
            groups: dict[str, int] = {}
            for part in self.parts(number, bag):
                digest = self._digest(part)
                groups[digest] = groups.get(digest, 0) + 1
            digests |= groups.keys()
            further = self._further_share(self.parts(number, 1)[0].trial.family) if self.merges and bag > 1 else 1.0
            total += sum(cost.row_ms * (1 + (n - 1) * further) for n in groups.values())
        return total + sum(self._preparation_ms[d] for d in digests)

    def size_mb(self, members: frozenset[int], bag: int) -> float:
        """Return the size of the models and of each distinct preparation."""
        digests = {self._digest(p) for n in members for p in self.parts(n, bag)}
        models = sum(len(self.parts(n, bag)) * self.cost(n).size_mb for n in members)
        return models + sum(self._preparation_mb[d] for d in digests)

    def cost(self, number: int) -> _Cost:
        """Return what one of a trial's models costs, measured on its first part."""
        if number not in self._costs:
            part = self.parts(number, 1)[0]
            row_ms = _call_ms(self._model(part).predict, self._tables(part))
            self._costs[number] = _Cost(row_ms, folder_size_mb(part.folder))
        return self._costs[number]

    def _further_share(self, name: str) -> float:
        """Return what a further merged model takes of the first one's time, measured on the family's smallest pair."""
        if name not in self._further:
            named = [n for n, parts in self._result.parts.items() if parts[0].trial.family == name]
            pairs = {n: pair for n in named if self._share_tables(pair := self.parts(n, 2))}
            self._further[name] = 1.0
            # A merge takes up to seconds; without time for it, merging is taken to gain nothing.
            if pairs and not self._deadline.passed:
                number, pair = min(pairs.items(), key=lambda item: folder_size_mb(item[1][0].folder))
                both = self._merge(name, [self._model(part) for part in pair])
                if both is not None:
                    alone_ms = self.cost(number).row_ms
                    self._further[name] = max(_call_ms(both.predict, self._tables(pair[0])) / alone_ms - 1, 0.1)
        return self._further[name]

    def _share_tables(self, parts: Sequence[Part]) -> bool:
        """Whether parts, or some of them, see the same table, without which nothing is merged."""
        return len({self._digest(part) for part in parts}) < len(parts)

    def _merge(self, name: str, models: Sequence[Model]) -> Model | None:
        """Merge once; models are kept for as long as the shop is, so that their ids tell them apart."""
        key = tuple(map(id, models))
        if key not in self._merged:
            self._merged[key] = merge_by_family(name, models) if self.merges else None
        return self._merged[key]

    def preparation(self, part: Part) -> Preparation:
        """Return the preparation that a part needs; its cost is measured when it is first asked for."""
        folder = part.preparation
        if folder not in self._preparations:
            loaded = load_preparation(part)
            self._preparations[folder] = loaded
            self._digests[folder] = loaded.digest
            if loaded.digest not in self._preparation_ms:
                self._preparation_ms[loaded.digest] = _call_ms(lambda row: loaded.transform(row).matrix, self._rows)
                self._preparation_mb[loaded.digest] = folder_size_mb(folder)
        return self._preparations[folder]

    def _digest(self, part: Part) -> str:
        """Return what tells a part's preparation from others, which is loaded only where that is not known."""
        known = self._digests.get(part.preparation)
        return self.preparation(part).digest if known is None else known

    def prices(self, *, ratio: float) -> Prices:
        """Return what was measured so far, for others.

        Args:
            ratio: What a whole bundle took, by what its parts say.
        """
        return Prices(
            dict(self._costs),
            dict(self._digests),
            dict(self._preparation_ms),
            dict(self._preparation_mb),
            dict(self._further),
            merges=self.merges,
            ratio=ratio,
        )

    def bundle(self, offer: Offer) -> Bundle:
        """Assemble what would be served, with a calibration that stands in for the one to be learned."""
        return assemble(
            offer.weights,
            self.parts_of(offer),
            data=self._data,
            calibration=Calibration() if self._data.dataset.task is Task.REGRESSION else STAND_IN,
            model=self._model,
            preparation=self.preparation,
            merge=self._merge,
        )

    def calibrated(self, bundle: Bundle, offer: Offer) -> Bundle:
        """Return an offer's bundle with the calibration that its out-of-fold predictions teach."""
        learned = learned_calibration(offer.weights, self.parts_of(offer), self._result.candidates)
        return replace(bundle, calibration=learned)

    def parts_of(self, offer: Offer) -> dict[int, tuple[Part, ...]]:
        """Return the models of an offer, by trial."""
        return {number: self.parts(number, offer.bag) for number in offer.weights}

    def row_ms(self, bundle: Bundle) -> float:
        """Return the processor time that one row takes a whole bundle."""
        return _call_ms(bundle.predict_raw, self._rows)

    def _model(self, part: Part) -> Model:
        if part.folder not in self._loaded:
            self._loaded[part.folder] = load_model(part)
        return self._loaded[part.folder]

    def _tables(self, part: Part) -> list[Table]:
        """Return one-row tables whose shared arrays are made already: their cost is the preparation's."""
        tables = [self.preparation(part).transform(row) for row in self._rows]
        for table in tables:
            _ = table.matrix
        return tables


def _call_ms(call: Callable[[T], object], rows: Sequence[T]) -> float:
    """Return the time of one call after some to warm up: the lowest of several medians.

    Of this thread's processor time: models predict a row in the calling thread, and what else the machine does while
    a variant is made is not the variant's cost.
    """
    turns = itertools.cycle(rows)
    for row in itertools.islice(turns, WARM_UP):
        call(row)
    medians = []
    for _ in range(REPEATS):
        moments = [time.thread_time()]
        for row in itertools.islice(turns, RUNS):
            call(row)
            moments.append(time.thread_time())
        medians.append(np.median([after - before for before, after in itertools.pairwise(moments)]))
    return float(min(medians)) * 1e3

"""How the trials of a search stand after their first fold: which get the others, and which may."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from factory.search.ensemble import MOST_CANDIDATES
from factory.search.jobs import TrialData, first_fold_score
from factory.search.race import choose, contenders
from factory.spec import Trial


class Standing:
    """Keeps the predictions of the first fold, and what follows from them until another trial has some."""

    def __init__(self, data: TrialData) -> None:
        self._data = data
        rows = data.splits[0].validation
        self._y, self._weight = data.dataset.y[rows], data.dataset.weight(rows)
        self._shown: dict[int, np.ndarray] = {}
        self._chosen: tuple[frozenset[int], dict[int, float]] = (frozenset(), {})
        self._near: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())

    def ready(self, trials: Mapping[int, Trial]) -> frozenset[int]:
        """Return the trials whose predictions are there: the best ones, as many as a blend looks at."""
        scores = {n: v for n, trial in trials.items() if (v := first_fold_score(trial)) is not None}
        kept: dict[int, np.ndarray] = {}
        for number in sorted(scores, key=lambda n: (-scores[n], n)):
            if len(kept) == MOST_CANDIDATES:
                break
            path = self._data.out_of_fold(number, 0)
            if number in self._shown:
                kept[number] = self._shown[number]
            elif path.is_file():
                kept[number] = np.load(path, allow_pickle=False)
        self._shown = dict(sorted(kept.items()))
        return frozenset(kept)

    def chosen(self, trials: Mapping[int, Trial]) -> dict[int, float]:
        """Return the trials that are worth further folds with their weights in the blend, the heaviest first."""
        ready = self.ready(trials)
        if ready and self._chosen[0] != ready:
            self._chosen = (ready, choose(self._data.metric, self._y, self._shown, weight=self._weight))
        return self._chosen[1]

    def contenders(self, trials: Mapping[int, Trial]) -> frozenset[int]:
        """Return the trials that may be near the best one."""
        ready = self.ready(trials)
        if ready and self._near[0] != ready:
            self._near = (ready, contenders(self._data.metric, self._y, self._shown, weight=self._weight))
        return self._near[1]


def fold_s(trial: Trial) -> float:
    """Return what one fold of a trial has taken, in seconds."""
    return trial.cost_s / max(len(trial.folds), 1)

"""What single trials are worth on the rows that were set aside for the gate: told, and never chosen by.

A trial's validation score is the mean over single models, one a fold.  Its
test score is that of one of them, the first fold's (or the refit): all of them
are asked about the same rows, so that one says nearly what all would, for a
part of the time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from factory.data.dataset import Dataset
from factory.data.preparation import Table
from factory.families.base import Deadline
from factory.search.engine import Part, SearchResult
from factory.search.jobs import TrialData
from factory.search.plan import family
from factory.search.samples import preparation_folder
from factory.variants.assembly import load_model, load_preparation
from factory.variants.report import ranked

log = logging.getLogger(__name__)

MOST_S, SHARE = 2.0, 0.4
"""Seconds at most, and part of what is left of the request's time; 10 to 50 ms a trial (measured)."""
POOL = "trees"
"""Families that are scored whether the blend has a member of theirs or not; other frameworks take seconds to import."""


def unseen_scores(
    result: SearchResult, *, data: TrialData, unseen: Dataset, weights: Mapping[int, float], deadline: Deadline
) -> dict[int, float]:
    """Return the scores of single trials on rows that the search did not have, as far as the time goes.

    Args:
        result: The search; trials without a model on disk have no score.
        data: Of the search.
        unseen: Rows for the gate.
        weights: Share of each member of the blend; members are scored first, then the best others.
        deadline: Of the request; no trial is begun that may end later than a part of what is left.
    """
    until = Deadline.after(min(MOST_S, SHARE * deadline.left_s))
    tables: dict[Path, Table] = {}
    scores: dict[int, float] = {}
    longest_s = 0.0
    for part in _in_turn(result, data, weights):
        if until.left_s <= longest_s:
            break
        began = time.monotonic()
        try:
            table = tables.get(part.preparation)
            if table is None:
                table = tables[part.preparation] = load_preparation(part).transform(unseen.frame)
            score = data.metric.score(unseen.y, load_model(part).predict(table), weight=unseen.weight())
        except Exception:
            # One trial's surprise is no reason to lose the variant.
            log.warning("trial %d has no score on unseen rows", part.trial.number, exc_info=True)
            continue
        finally:
            longest_s = max(longest_s, time.monotonic() - began)
        if np.isfinite(score):
            scores[part.trial.number] = score
    return scores


def _in_turn(result: SearchResult, data: TrialData, weights: Mapping[int, float]) -> Iterator[Part]:
    """Yield one model of each trial that has one: of the members, the heaviest first, then of the others by rank."""
    by_number = {trial.number: trial for trial in result.trials}
    members = sorted(weights, key=lambda n: (-weights[n], n))
    pools = {POOL, *(family(by_number[n].family).pool for n in members)}
    for number in dict.fromkeys((*members, *(t.number for t in ranked(result.trials)))):
        trial = by_number[number]
        if (part := result.judges.get(number)) is not None:
            yield part
        elif not data.n_gate and (parts := result.parts.get(number)) is not None:
            yield parts[0]
        elif family(trial.family).pool in pools and (folder := data.model_folder(number, 0)).is_dir():
            yield Part(trial, folder, 0, preparation_folder(data, 0), 1.0)

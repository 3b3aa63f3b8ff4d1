"""From trials with weights to a bundle: models, the preparations they need, and the calibration of their blend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from factory.data.preparation import Preparation
from factory.families.base import Model
from factory.search.calibration import Calibration, calibrate
from factory.search.engine import Part
from factory.search.ensemble import Candidates
from factory.search.jobs import TrialData
from factory.search.plan import family
from factory.variants.bundle import Bundle, Merge, Piece, joined, merge_by_family
from factory.variants.inputs import input_columns


def assemble(
    weights: Mapping[int, float],
    parts: Mapping[int, Sequence[Part]],
    *,
    candidates: Candidates,
    data: TrialData,
    model: Callable[[Part], Model] | None = None,
    preparation: Callable[[Part], Preparation] | None = None,
    merge: Merge = merge_by_family,
    calibration: Calibration | None = None,
) -> Bundle:
    """Return the bundle of a blend, calibrated on its out-of-fold predictions.

    Args:
        weights: Share of each trial, by number.
        parts: The fitted models of each trial that go in; they share its weight equally.
        candidates: Of the search.
        data: Of the search.
        model: Loads a part; from its folder where not given.
        preparation: Loads the one that a part needs; from its folder where not given.
        merge: Makes one model of a bag's.
        calibration: To be used as it is; learned from the out-of-fold predictions where not given.
    """
    model = model or (lambda part: family(part.trial.family).load(part.folder))
    preparation = preparation or (lambda part: Preparation.load(part.preparation))
    pieces = [
        Piece(number, part.trial.family, model(part), preparation(part), weight / len(parts[number]))
        for number, weight in weights.items()
        for part in parts[number]
    ]
    preparations, members = joined(pieces, merge=merge)
    return Bundle(
        task=data.dataset.task,
        classes=data.dataset.classes,
        columns=input_columns(data.dataset.frame, data.dataset.types),
        preparations=preparations,
        members=members,
        calibration=calibration
        or calibrate(
            candidates.metric, candidates.targets, candidates.blended(weights), bagged=len(pieces) > len(weights)
        ),
    )

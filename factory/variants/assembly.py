"""From trials with weights to a bundle: models, the preparations they need, and the calibration of their blend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.data.preparation import Preparation
from factory.errors import StorageFault
from factory.families.base import Model
from factory.search.calibration import Calibration, calibrate
from factory.search.engine import Part
from factory.search.ensemble import Candidates
from factory.search.jobs import TrialData
from factory.search.plan import family
from factory.variants.bundle import Bundle, Member
from factory.variants.inputs import input_columns


@dataclass(frozen=True)
class Piece:
    """A fitted model on its way into a bundle.

    Attributes:
        bag: Pieces of one bag are models of one configuration, fitted on different rows.
        family: Name of its family.
        model: The fitted model.
        preparation: What its tables come from.
        weight: Its share in the blend, of any scale.
    """

    bag: int
    family: str
    model: Model
    preparation: Preparation
    weight: float


Merge = Callable[[str, Sequence[Model]], Model | None]
"""Makes one model of several of the named family; None where it cannot."""


def merge_by_family(name: str, models: Sequence[Model]) -> Model | None:
    """Merge as the family does."""
    return family(name).merge(models)


def joined(
    pieces: Sequence[Piece], *, merge: Merge = merge_by_family
) -> tuple[tuple[Preparation, ...], tuple[Member, ...]]:
    """Return distinct preparations and as few members as answer the same.

    Equal preparations run once.  Models of one bag that see the same table and weigh the same become one model
    where ``merge`` can make one.
    """
    preparations: dict[str, Preparation] = {}
    groups: dict[tuple[int, str, float], list[Piece]] = {}
    for piece in pieces:
        digest = piece.preparation.digest
        preparations.setdefault(digest, piece.preparation)
        groups.setdefault((piece.bag, digest, round(piece.weight, 12)), []).append(piece)
    places = {digest: i for i, digest in enumerate(preparations)}
    total = sum(piece.weight for piece in pieces)
    members = []
    for (bag, digest, _), group in groups.items():
        first = group[0]
        merged = merge(first.family, [p.model for p in group]) if len(group) > 1 else None
        models = [p.model for p in group] if merged is None else [merged]
        weight = sum(p.weight for p in group) / total / len(models)
        members += [Member(first.family, m, preparation=places[digest], weight=weight, bag=bag) for m in models]
    return tuple(preparations.values()), tuple(members)


def assemble(
    weights: Mapping[int, float],
    parts: Mapping[int, Sequence[Part]],
    *,
    data: TrialData,
    calibration: Calibration,
    model: Callable[[Part], Model] | None = None,
    preparation: Callable[[Part], Preparation] | None = None,
    merge: Merge = merge_by_family,
) -> Bundle:
    """Return the bundle of a blend.

    Args:
        weights: Share of each trial, by number.
        parts: The fitted models of each trial that go in; they share its weight equally.
        data: Of the search.
        calibration: Of the blend.
        model: Loads a part; from its folder where not given.
        preparation: Loads the one that a part needs; from its folder where not given.
        merge: Makes one model of a bag's.
    """
    model = model or load_model
    preparation = preparation or load_preparation
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
        calibration=calibration,
    )


def learned_calibration(
    weights: Mapping[int, float], parts: Mapping[int, Sequence[Part]], candidates: Candidates
) -> Calibration:
    """Return what a blend's out-of-fold predictions say of its probabilities; takes up to seconds.

    Args:
        weights: Share of each trial, by number.
        parts: The fitted models of each trial that go in.
        candidates: Of the search.
    """
    bagged = any(len(parts[number]) > 1 for number in weights)
    return calibrate(
        candidates.metric,
        candidates.targets,
        candidates.blended(weights),
        bagged=bagged,
        weights=candidates.weights,
    )


def load_model(part: Part) -> Model:
    """Load a fitted model of a trial.

    Raises:
        StorageFault: it is gone.
    """
    return family(part.trial.family).load(_there(part, part.folder))


def load_preparation(part: Part) -> Preparation:
    """Load the preparation whose tables a part takes.

    Raises:
        StorageFault: it is gone.
    """
    return Preparation.load(_there(part, part.preparation))


def _there(part: Part, folder: Path) -> Path:
    if not folder.is_dir():
        raise StorageFault(
            f"The files of trial {part.trial.number} ({part.trial.family}) are gone: {str(folder)!r} is no folder.",
            hint="Somebody cleared FACTORY_HOME while the request ran. `factory requests retry ID` searches again.",
        )
    return folder

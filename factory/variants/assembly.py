"""From trials with weights to a bundle: models, the preparations they need, and the calibration of their blend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from factory.variants.contents import folder_size_mb
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
        files: Folder in which the model is saved already; None where it is not.
    """

    bag: int
    family: str
    model: Model
    preparation: Preparation
    weight: float
    files: Path | None = None


Merge = Callable[[str, Sequence[Model]], Model | None]
"""Makes one model of several of the named family; None where it cannot."""


def merge_by_family(name: str, models: Sequence[Model]) -> Model | None:
    """Merge as the family does."""
    return family(name).merge(models)


def unmerged(_name: str, _models: Sequence[Model]) -> None:
    """Merge nothing."""


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
        models = [(p.model, p.files) for p in group] if merged is None else [(merged, None)]
        weight = sum(p.weight for p in group) / total / len(models)
        members += [
            Member(first.family, model, preparation=places[digest], weight=weight, bag=bag, files=files)
            for model, files in models
        ]
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
    shares = tuple((part.folder, weight) for number, weight in weights.items() for part in parts[number])
    key = merge is merge_by_family, shares
    shared = merge in (merge_by_family, unmerged) and all(folder in _kept for folder, _ in shares)
    known = _kept_blends.get(key) if shared else None
    if known is None:
        pieces = [
            Piece(number, part.trial.family, model(part), preparation(part), weight / len(parts[number]), part.folder)
            for number, weight in weights.items()
            for part in parts[number]
        ]
        known = joined(pieces, merge=merge)
        if shared:
            _kept_blends[key] = known
    preparations, members = known
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
    kept = _kept.get(part.folder)
    if kept is not None:
        return kept
    model = family(part.trial.family).load(_there(part, part.folder))
    if part.folder in _kept:
        _kept[part.folder] = model
    return model


def keep_loaded(parts: Iterable[Part]) -> None:
    """Keep these models once they are loaded, as far as there is room; others that were kept are forgotten.

    A worker that makes one segment after the other blends the same pooled models each time.
    """
    left_mb, keeping = MOST_KEPT_MB, dict[Path, Model | None]()
    for part in parts:
        left_mb -= folder_size_mb(part.folder) if part.folder.is_dir() else 0.0
        if left_mb >= 0:
            keeping[part.folder] = _kept.get(part.folder)
    if keeping.keys() != _kept.keys():
        _kept_blends.clear()
    _kept.clear()
    _kept.update(keeping)


MOST_KEPT_MB = 200.0
"""Of the files of models that are kept in memory, which take about as much there."""
_kept: dict[Path, Model | None] = {}
_kept_blends: dict[tuple[bool, tuple[tuple[Path, float], ...]], tuple[tuple[Preparation, ...], tuple[Member, ...]]] = {}
"""Of kept models, by whether they are merged as their families do, and by the folder and share of each."""


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

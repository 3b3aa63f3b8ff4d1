"""The prepared rows of each fold: made once, by whoever needs them first, and mapped from disk by all others.

A preparation is fitted on a fold's training rows only.  How columns and target
are best represented (:mod:`factory.search.probe`) is decided once for a search.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from factory.data.preparation import Preparation, Table
from factory.families.base import Deadline, Sample
from factory.search.jobs import TrialData
from factory.search.probe import Representation, represent
from factory.search.splits import group_of

KEPT = 3
"""Folds that a process keeps open; the pages of the others are the operating system's to drop."""
PROBE_S = 15.0
"""The probe's own bound, far above the 1 to 2 s that it takes, so that a busy machine finds what a quiet one does."""
_ARRAYS = ("numeric", "codes")
_DRAFT = re.compile(r"\..+-\d+-\d+(\.npy)?")
"""Name of what is being written: that of what it becomes, process and thread."""


class Samples:
    """Training and validation rows of the folds of one search."""

    def __init__(self, data: TrialData) -> None:
        self._data = data
        self._open: OrderedDict[int | None, tuple[Sample, Sample]] = OrderedDict()

    def of(self, fold: int | None) -> tuple[Sample, Sample]:
        """Return a fold's training and validation rows; None stands for all rows, and no validation rows."""
        if fold not in self._open:
            folder = _name(self._data.workspace / "prepared", fold)
            if not folder.is_dir():
                into_folder(folder, lambda draft: self._prepare(fold, draft))
            split = self._data.fold_of(fold)
            rows, group = self._data.dataset, self._group
            of_train = None if group is None else group[split.train]
            self._open[fold] = (
                Sample(_load(folder, "train"), rows.y[split.train], rows.weight(split.train), of_train),
                Sample(_load(folder, "validation"), rows.y[split.validation], rows.weight(split.validation)),
            )
            if len(self._open) > KEPT:
                self._open.popitem(last=False)
        self._open.move_to_end(fold)
        return self._open[fold]

    @cached_property
    def _group(self) -> np.ndarray | None:
        """Number of the group of each row, (n_rows,), where whole groups validate."""
        return None if self._data.group is None else group_of(self._data.dataset, self._data.group)[1]

    def _prepare(self, fold: int | None, folder: Path) -> None:
        split, frame = self._data.fold_of(fold), self._data.dataset.frame
        preparation = fit_preparation(self._data, fold)
        _save(preparation.transform(frame.iloc[split.train]), folder, "train")
        _save(preparation.transform(frame.iloc[split.validation]), folder, "validation")


def representation(data: TrialData) -> Representation:
    """Return how this search represents columns and target: read where it is known, else probed and written."""
    folder = (data.shared or data.workspace) / "representation"
    if not folder.is_dir():
        found = represent(
            data.dataset,
            data.splits[0],
            data.metric,
            seed=data.seed,
            deadline=Deadline.after(PROBE_S),
            judging=data.judging(),
        )
        into_folder(folder, found.save)
    return Representation.load(folder)


def preparation_folder(data: TrialData, fold: int | None) -> Path:
    """Return where a fold's preparation lies; None is the refit's.

    That of all rows where the shared search came to this fold, else this search's own: what some of the rows taught
    is not for other searches of the same workspace.
    """
    own = _name(data.workspace / "preparations", fold)
    if data.shared is None or own.is_dir():
        return own
    shared = _name(data.shared / "preparations", fold)
    return shared if shared.is_dir() else own


def fit_preparation(data: TrialData, fold: int | None) -> Preparation:
    """Return a fold's preparation: loaded where a process already made it, else fitted and saved."""
    folder = preparation_folder(data, fold)
    if not folder.is_dir():
        frame = data.dataset.frame.iloc[data.fold_of(fold).train]
        found = representation(data)
        fitted = Preparation.fit(
            frame, data.dataset.types, seed=data.seed, crosses=found.crosses, omitted=found.omitted
        )
        into_folder(folder, fitted.save)
    return Preparation.load(folder)


def into_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` fill a new folder that appears whole or not at all."""
    draft = folder.with_name(f".{folder.name}-{os.getpid()}-{threading.get_ident()}")
    draft.mkdir(parents=True)
    try:
        save(draft)
        with contextlib.suppress(OSError):  # another process was first; its content is the same
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def clear_drafts(workspace: Path) -> int:
    """Remove what killed processes have left half-written anywhere in a workspace, and return how many that were.

    For whoever alone works in it: a draft of a live process is taken away from it as well.
    """
    drafts = [path for path in workspace.rglob(".*") if _DRAFT.fullmatch(path.name)]
    for draft in drafts:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
    return len(drafts)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}.npy")
    try:
        np.save(draft, array, allow_pickle=False)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _name(folder: Path, fold: int | None) -> Path:
    return folder / ("all" if fold is None else f"fold-{fold}")


def _save(table: Table, folder: Path, part: str) -> None:
    for name in _ARRAYS:
        np.save(folder / f"{part}-{name}.npy", getattr(table, name), allow_pickle=False)
    shape = {
        "levels": table.levels,
        "numeric_names": table.numeric_names,
        "categorical_names": table.categorical_names,
        "n_crosses": table.n_crosses,
    }
    (folder / f"{part}.json").write_text(json.dumps(shape, ensure_ascii=False), encoding="utf-8")


def _load(folder: Path, part: str) -> Table:
    shape = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
    numeric, codes = (_mapped(folder / f"{part}-{name}.npy") for name in _ARRAYS)
    return Table(
        numeric,
        codes,
        tuple(shape["levels"]),
        tuple(shape["numeric_names"]),
        tuple(shape["categorical_names"]),
        n_crosses=shape["n_crosses"],
    )


def _mapped(path: Path) -> np.ndarray:
    """Return an array of a file, mapped where it is worth it; an empty one cannot be."""
    array: np.ndarray = np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None, allow_pickle=False)
    return np.asarray(array)

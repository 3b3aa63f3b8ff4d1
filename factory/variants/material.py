"""What variants are made of: a request's data, screened and split, and divided into the variants to make.

The rows for the gate are set aside here, before anything has been looked at
but the columns' types; a segment's rows are its part of both sides.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from factory.data.columns import as_text
from factory.data.dataset import Dataset
from factory.data.drift import Later
from factory.data.findings import Finding
from factory.data.loading import least_mb, load, rows_to_predict
from factory.data.profile import DatasetProfile, profile
from factory.data.screening import screen
from factory.errors import Detail, InvalidData, UserFault
from factory.search.cluster import require_room
from factory.search.jobs import TrialData
from factory.search.plan import Plan
from factory.search.splits import Split, check_defined, folds, grouping, independent, set_aside
from factory.settings import Settings
from factory.spec import REMADE, Segments, Task, Validation, VariantRequest

SLUG_LENGTH, DIGEST_LENGTH = 40, 8
"""Characters of a segment's value in a variant's name, and of the digest that tells it from values written alike."""


class Note(Protocol):
    """Called for every thing that a person should know."""

    def __call__(self, kind: str, message: str, payload: Mapping[str, object] | None = None, /) -> None:
        """Take a kind, a sentence, and what programs read of it."""


@dataclass(frozen=True)
class Material:
    """A request's data.

    Attributes:
        dataset: All rows with a target, without the columns that the screening dropped.
        findings: Of the screening, which looked at the search's rows only.
        profile: Of the data as they came.
        seen: Positions of the search's rows.
        unseen: Positions of the gate's rows.
        ignored: Columns that a caller may send although no variant uses them.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    profile: DatasetProfile
    seen: np.ndarray
    unseen: np.ndarray
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """One variant to be made: the pooled one, or that of one segment.

    Attributes:
        segment: Value of the segment; empty for the pooled one.
        name: Of the registered model.
        data: What its search works on.
        unseen: Rows for its gate.
        rows: Of a segment, its rows' positions in the pooled data, where its folds are parts of the pooled ones.
    """

    segment: str
    name: str
    data: TrialData
    unseen: Dataset
    rows: np.ndarray | None = None


def gather(
    request: VariantRequest,
    validation: Validation,
    *,
    settings: Settings,
    note: Note,
    memory_mb: float = float("inf"),
) -> Material:
    """Read a request's data, set the gate's rows aside, and screen the others.

    Args:
        request: Names the data.
        validation: How its rows are split.
        settings: Of this process.
        note: Told what a person should know.
        memory_mb: That all processes of the request may take; looked at before the table is read, and before it is
            copied.

    Raises:
        InvalidData: the data cannot be read or used, or their copies would not fit.
        InvalidRequest: the feature service or a column that the request names does not exist.
    """
    ref = request.dataset
    require_room(least_mb(ref, settings=settings), memory_mb)
    dataset = load(ref, settings=settings)
    require_room(dataset.memory_mb, memory_mb)
    if dataset.dropped_rows:
        note("data", f"{dataset.dropped_rows} rows without a target were left out.")
    if dataset.weights is not None:
        note("data", _weighed(dataset.weights, n_left_out=dataset.weightless_rows, column=ref.weights or ""))
    if dataset.features is not None:
        note("features", f"Features of {dataset.features.service!r} joined as of each row's moment.")
    rows = set_aside(dataset, validation)
    _check_classes(dataset, rows.train)
    later = [Later("the rows set aside for the gate", dataset.take(rows.validation).frame)]
    if (to_predict := rows_to_predict(ref, dataset, settings=settings)) is not None:
        later.append(Later("the rows to be predicted", to_predict, whole=True))
    seen = dataset.take(rows.train)
    findings = screen(
        seen,
        keep=ref.keep,
        drop=ref.drop,
        later=later,
        drift=ref.drift,
        seed=request.seed,
        whole=dataset,
        group=grouping(validation),
    )
    for finding in findings:
        note("screening", finding.message)
    screened = dataset.without([f.column for f in findings if f.action == "drop"])
    others = [*dataset.frame.columns, *dataset.context.columns, dataset.target]
    ignored = tuple(dict.fromkeys(c for c in others if c not in set(screened.frame.columns)))
    return Material(screened, findings, profile(dataset), rows.train, rows.validation, ignored)


def _weighed(weights: np.ndarray, *, n_left_out: int, column: str) -> str:
    """Say what weights do; of how many equal rows they are worth, by Kish (1965)."""
    worth = weights.sum() ** 2 / np.square(weights).sum()
    left_out = f"; {n_left_out:,} of weight 0 were left out" if n_left_out else ""
    return f"{len(weights):,} rows count by {column!r}, about as much as {worth:,.0f} equal ones{left_out}."


def _check_classes(dataset: Dataset, seen: np.ndarray) -> None:
    """Refuse two classes of which one is too rare to stand on both sides of a fold.

    Raises:
        InvalidData: names the class and its rows.
    """
    if dataset.task is not Task.BINARY:
        return
    for k, label in enumerate(dataset.classes):
        n_rows = int((dataset.y == k).sum())
        if (dataset.y[seen] == k).sum() < 2:
            raise InvalidData(
                f"Class {label!r} of the target {dataset.target!r} has {n_rows} rows, too few to train on, to validate "
                "with and to judge by.",
                hint="Bring at least 4 rows of each class; 50 or more make the score mean something.",
                details=[Detail("dataset.target", f"class {label!r} has {n_rows} rows")],
            )


def bounded(plan: Plan, material: Material, *, note: Note) -> Plan:
    """Return the plan with the floor that the targets give its metric, where that is defined above a bound only.

    Raises:
        InvalidData: the metric is not defined for some targets.
    """
    dataset = material.dataset
    metric = plan.metric.on(dataset.y, seen=material.seen, target=dataset.target)
    if metric.floor is not None:
        note("metric", f"Predictions below {metric.floor:.6g} are raised to it, as {metric.label} needs it.")
    return replace(plan, metric=metric)


def left_pooled(segment: str, reason: str) -> tuple[str, str, dict[str, object]]:
    """Return what is noted of a segment without a variant of its own; by its payload such segments are listed."""
    told = f"Segment {segment!r} is served by the pooled variant: {reason}"
    return "segment", told, {"segment": segment, "reason": reason}


def divide(material: Material, plan: Plan, *, workspace: Path, note: Note) -> tuple[Unit, list[Unit], tuple[str, ...]]:
    """Return the pooled variant to make, those of the segments, and the segments that stay with the pooled one.

    Args:
        material: The request's data.
        plan: What is searched; names the segments' column, whose values are compared as text (3.0 is 3).
        workspace: Folder of the request; each variant gets a folder in it.
        note: Told why a segment, or rows without a value, stay with the pooled variant.

    Raises:
        NotFound: a column that the plan names does not exist.
        InvalidData: the rows set aside for the gate do not define the metric.
    """
    for name in plan.gates.slices:
        material.dataset.column(name, field="gates.slices")  # refused now rather than after the search
    check_defined(plan.metric, material.dataset, material.unseen, what="rows set aside for the gate")
    # What is made again without a search has one model of each member, which the gate's rows have to be new to.
    learns = plan.request.making not in REMADE
    pooled = _unit(material, plan, material.seen, material.unseen, folder=workspace / "pooled", learns=learns)
    if (segments := plan.request.segments) is None:
        return pooled, [], ()
    values = as_text(material.dataset.column(segments.by, field="segments.by").to_numpy())
    if n_without := sum(value is None for value in values.tolist()):
        without = f"{n_without:,} of {len(values):,}"
        note("segment", f"The pooled variant serves rows without a value of {segments.by!r}: {without}.")
    units: list[Unit] = []
    thin: list[str] = []
    slugs = slugs_of(sorted({value for value in values.tolist() if value is not None}))
    for value, slug in slugs.items():
        rows = np.flatnonzero(values[material.seen] == value)
        seen, unseen = material.seen[rows], material.unseen[values[material.unseen] == value]
        if reason := _too_thin(segments, material.dataset, seen, unseen):
            thin.append(value)
            note(*left_pooled(value, reason))
            continue
        folder = workspace / f"segment-{slug}"
        name = f"{plan.request.variant}.{slug}"
        if learns:
            held = np.flatnonzero(values[material.unseen] == value)
            rows = np.concatenate([rows, len(material.seen) + held])
        part = pooled.data.part(rows, workspace=folder)
        if part is not None:
            units.append(Unit(value, name, part, material.dataset.take(unseen), rows))
            continue
        if independent(plan.validation):  # so few of a class that folds of its own would judge by luck
            thin.append(value)
            note(*left_pooled(value, f"in one of {len(pooled.data.splits)} folds its rows lack a class."))
            continue
        try:
            own = _unit(material, plan, seen, unseen, folder=folder, learns=learns)
        except UserFault as error:  # its rows alone cannot be split as the request says
            thin.append(value)
            note(*left_pooled(value, error.message))
            continue
        units.append(replace(own, segment=value, name=name))
    return pooled, units, tuple(thin)


def _too_thin(segments: Segments, dataset: Dataset, seen: np.ndarray, unseen: np.ndarray) -> str:
    n_rows = len(seen) + len(unseen)
    if n_rows < segments.min_rows:
        return f"it has {n_rows} rows, fewer than segments.min_rows {segments.min_rows}."
    if len(unseen) == 0:
        return "none of its rows are among those set aside for the gate."
    for k, label in enumerate(dataset.classes):
        if (dataset.y[seen] == k).sum() < 2 or not (dataset.y[unseen] == k).any():
            return f"it has too few rows of class {label!r}."
    return ""


def _unit(material: Material, plan: Plan, seen: np.ndarray, unseen: np.ndarray, *, folder: Path, learns: bool) -> Unit:
    """Return a variant to be made of some rows; ``learns`` says whether all folds but the first train on the gate's."""
    seed = plan.request.seed
    splits = folds(material.dataset.take(seen), plan.validation, seed=seed, metric=plan.metric)
    if learns:
        gate = len(seen) + np.arange(len(unseen))
        splits = (splits[0], *(Split(np.concatenate([s.train, gate]), s.validation) for s in splits[1:]))
    data = TrialData(
        dataset=material.dataset.take(np.concatenate([seen, unseen]) if learns else seen),
        splits=splits,
        metric=plan.metric,
        workspace=folder,
        seed=seed,
        n_gate=len(unseen) if learns else 0,
        independent=independent(plan.validation),
        group=grouping(plan.validation),
    )
    return Unit("", plan.request.variant, data, material.dataset.take(unseen))


def slugs_of(values: Collection[str]) -> dict[str, str]:
    """Return the part of a variant's name that stands for each value of the segments' column.

    Lower-case letters without accents, digits and dashes. A value of which that leaves nothing or too much, and values
    that would share it, get a digest, so that no two slugs are equal.

    >>> slugs_of(["New York", "Zürich", "north", "North"])
    {'New York': 'new-york', 'Zürich': 'zurich', 'north': 'north-dc365e79', 'North': 'north-43f853bb'}
    """
    plain = {value: _plain(value) for value in values}
    times = Counter(plain.values())
    return {
        value: slug if times[slug] == 1 and _is_own_slug(slug) else _with_digest(slug, value)
        for value, slug in plain.items()
    }


def _plain(value: str) -> str:
    letters = unicodedata.normalize("NFKD", value.lower())
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return re.sub(r"[^a-z0-9]+", "-", bare).strip("-")


def _is_own_slug(plain: str) -> bool:
    """Whether it is neither empty nor too long, nor could be another value's slug with its digest."""
    return 0 < len(plain) <= SLUG_LENGTH and not re.search(rf"(^|-)[0-9a-f]{{{DIGEST_LENGTH}}}$", plain)


def _with_digest(plain: str, value: str) -> str:
    digest = hashlib.sha256(value.encode()).hexdigest()[:DIGEST_LENGTH]
    return "-".join(part for part in (plain[:SLUG_LENGTH].strip("-"), digest) if part)

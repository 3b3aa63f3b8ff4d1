"""Where a variant starts from: nothing, what siblings found, or a parent that is made again.

Decides what ``making`` comes to for a request, and holds what that kind of
making needs; :func:`made_again` then makes a variant without a search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from factory.data.columns import as_text
from factory.data.dataset import Dataset
from factory.data.loading import load
from factory.errors import Detail, FactoryError, InvalidRequest, counted, listing
from factory.families.base import Deadline
from factory.ledger import Ledger, PastSearch
from factory.search.blueprint import Blueprint
from factory.search.cluster import local_cpus
from factory.search.domain import DOMAINS
from factory.search.engine import SearchResult
from factory.search.metric import Metric
from factory.search.plan import Plan, load_recipe
from factory.search.remake import Fitted, go_on, refit, represent_as
from factory.search.splits import folds, set_aside
from factory.search.transfer import Transfer, described, siblings, transfer
from factory.settings import Settings
from factory.spec import ColumnType, Trial, Variant
from factory.variants.appraisal import Memory
from factory.variants.bundle import Bundle
from factory.variants.material import Unit
from factory.variants.reference import resolve
from factory.variants.registry import Registry

THREADED_CELLS = 2_000_000
"""Of a table, from which on a fit has all CPUs: threads wait for each other at every split, and of a small one (14,000
rows, 8 columns) two of them took 2.4 times as long as one beside MLflow's import."""
MEMORY_ROWS = 5_000
"""Rows of the parent that a variant must not have forgotten, at most."""

Note = Callable[[str, str], None]


@dataclass(frozen=True)
class Origin:
    """What a variant starts from.

    Attributes:
        kind: How it is made.
        transfer: What its search takes over; empty where it starts from nothing or is not searched.
        parent: The variant that it comes from; None where there is none.
        bundle: The parent's, where it is made again.
        old: The rows that the parent was searched on, where it is trained on and they are still there.
        memory: What it must not forget, where it is trained on.
    """

    kind: Literal["cold", "warm_start", "refit", "incremental"]
    transfer: Transfer = field(default_factory=Transfer)
    parent: Variant | None = None
    bundle: Bundle | None = None
    old: Dataset | None = None
    memory: Memory | None = None

    @property
    def searched(self) -> bool:
        """Whether there is a search."""
        return self.bundle is None


def origin_of(
    request_id: str, unit: Unit, plan: Plan, *, ledger: Ledger, registry: Registry, settings: Settings, note: Note
) -> tuple[Origin, Unit]:
    """Return what a request's variant starts from, and its rows and their metric in the form that this needs.

    The traits of its data are stored, for those that come after it.

    Args:
        request_id: The request.
        unit: Its variant on all rows.
        plan: What is allowed.
        ledger: Knows the earlier searches.
        registry: Has the parent's bundle.
        settings: Of this process.
        note: Told what a person should know.

    Raises:
        InvalidRequest: the parent cannot be made again on these rows.
        NotFound: there is no such parent.
    """
    request = plan.request
    mine = described(unit.data)
    ledger.record_traits(request_id, mine)
    # Unless it names a parent, a request's result does not depend on what else was made before; and within a minute
    # what siblings found has brought nothing (docs/decisions/transfer.md).
    if request.making == "cold" or (request.making == "auto" and request.parent is None):
        return Origin("cold"), unit
    parent = resolve(request.parent, ledger=ledger) if request.parent is not None else None
    if parent is not None and parent.task is not plan.task:
        message = f"{request.parent} is a {parent.task} variant; these rows have a {plan.task} target."
        if request.making != "auto":
            raise _refused("parent", message, "Name another parent, or `dataset.task` if the target was misread.")
        note("transfer", f"{message} It seeds nothing.")
        parent = None
    if parent is not None and request.making in ("refit", "incremental"):
        return _again(parent, unit, plan, ledger=ledger, registry=registry, settings=settings, note=note)
    past = ledger.past_searches(team=request.team, recipe=plan.recipe.name, task=plan.task)
    past = [search for search in past if search.request_id != request_id]
    relatives = siblings(mine, past, parent=_search_of(parent, ledger))
    taken = transfer(relatives, mine=mine, metric=plan.metric, families=plan.families, spaces=plan.spaces)
    if not taken.seeded_by:
        if request.making == "warm_start":
            note("transfer", "No earlier search is near enough to start from: this one starts from nothing.")
        return Origin("cold", parent=parent), unit
    nearest = relatives[0]
    note(
        "transfer",
        f"Trying {counted(len(taken.seeds), 'configuration')} first, of "
        f"{counted(len(relatives), 'earlier search', 'earlier searches')}; the nearest is {nearest.search.variant} "
        f"({nearest.search.request_id}), at a distance of {nearest.distance:.2f}.",
    )
    return Origin("warm_start", transfer=taken, parent=parent), unit


def made_again(
    origin: Origin,
    unit: Unit,
    plan: Plan,
    *,
    settings: Settings,
    deadline: Deadline,
    record: Callable[[Trial], None],
    history: Sequence[Trial],
) -> SearchResult:
    """Make a variant of its parent's blueprint or models, in this process.

    Args:
        origin: With the parent's bundle.
        unit: As :func:`origin_of` returned it.
        plan: Of the request.
        settings: Of this process.
        deadline: When all has to be fitted.
        record: Called with each trial when it starts and when it ends.
        history: Trials of an interrupted attempt.

    Raises:
        TrainingFault: nothing could be fitted.
    """
    bundle, blueprint = origin.bundle, origin.bundle.blueprint if origin.bundle else None
    if bundle is None or blueprint is None:
        raise ValueError("this variant is searched, not made again")
    unit.data.workspace.mkdir(parents=True, exist_ok=True)
    cells = unit.data.dataset.frame.shape[0] * unit.data.dataset.frame.shape[1]
    threads = local_cpus(settings) if cells >= THREADED_CELLS else 1
    calibration = bundle.calibration.model_copy(update={"floor": unit.data.metric.floor})
    if origin.kind == "refit":
        limit_mb = min(plan.budget.memory_gb, settings.memory_gb or plan.budget.memory_gb) * 1000
        return refit(
            blueprint,
            unit.data,
            calibration=calibration,
            deadline=deadline,
            threads=threads,
            memory_limit_mb=limit_mb,
            record=record,
            history=history,
        )
    represent_as(blueprint, unit.data)  # the models keep what they were trained with, and so does the next blueprint
    models = [
        Fitted(blueprint.of_model(i), member.model, bundle.preparations[member.preparation], member.weight)
        for i, member in enumerate(bundle.members)
    ]
    return go_on(
        models,
        unit.data,
        calibration=calibration,
        old=origin.old,
        target_scale=blueprint.target_scale,
        deadline=deadline,
        threads=threads,
        record=record,
        history=history,
    )


def _again(
    parent: Variant,
    unit: Unit,
    plan: Plan,
    *,
    ledger: Ledger,
    registry: Registry,
    settings: Settings,
    note: Note,
) -> tuple[Origin, Unit]:
    if plan.request.making == "refit":
        bundle = Bundle.load(registry.bundle_folder(parent), digest=parent.bundle_digest)
    else:
        # Of models that go on, those that the gate's rows are new to: the table may hold rows of the parent's.
        bundle = registry.judge(parent)
    named = f"{parent.name}/{parent.version}"
    blueprint = _blueprint(bundle, named, plan)
    if plan.request.making == "refit":
        n_fitted, n_members = len(blueprint.refitted), len(blueprint.members)
        which = counted(n_members, "member") if n_fitted == n_members else f"{n_fitted} of {n_members} members"
        why = "" if n_fitted == n_members else ", the best that a tenth of its search's cost affords"
        note("transfer", f"Fitting {which} of {named} on all rows{why}; nothing is searched.")
        return Origin("refit", parent=parent, bundle=bundle), unit
    fitting = _fitting(unit, bundle, named, plan)
    seen, held = _rows_of(parent, bundle, ledger=ledger, settings=settings)
    if held is None:
        source, rows = "new rows that are most like those of the parent", _alike(fitting.unseen, bundle)
        note("transfer", f"The rows of {named} are gone; {len(rows):,} {source} say whether it forgets.")
    else:
        source, rows = "rows that were set aside when the parent was made", held
    rows = rows.take(np.sort(np.random.default_rng(plan.request.seed).permutation(len(rows))[:MEMORY_ROWS]))
    metric = lowered(plan.metric, bundle.calibration.floor)
    if metric.floor != plan.metric.floor:
        fitting = replace(fitting, data=replace(fitting.data, metric=metric))
        note("metric", f"Predictions are raised to {metric.floor:.6g} only, as those of {named} are.")
    known = bundle.judged(bundle.predict_raw(rows.frame), metric)
    note(
        "transfer",
        f"Training {counted(len(bundle.members), 'model')} of {named} on, "
        f"with {counted(len(fitting.data.dataset), 'row')}.",
    )
    memory = Memory(rows, known, source)
    return Origin("incremental", parent=parent, bundle=bundle, old=seen, memory=memory), fitting


def lowered(metric: Metric, floor: float | None) -> Metric:
    """Return a metric with a parent's floor where that is lower: what goes on has learned from its rows as well.

    Args:
        metric: With the floor of the new rows; None where it is defined for every number.
        floor: Of the parent; None where its metric was, and no matter where the metric is not defined for it.
    """
    if metric.floor is None or floor is None or floor <= DOMAINS[metric.name].bound:
        return metric
    return replace(metric, floor=min(metric.floor, floor))


def _blueprint(bundle: Bundle, named: str, plan: Plan) -> Blueprint:
    making = plan.request.making
    if bundle.blueprint is None:
        message = f"{named} was made before variants kept what it takes to make them again."
        raise _refused("making", message, "Ask for `making: warm_start`; the variant that comes of it can be made so.")
    foreign = sorted({m.family for m in bundle.blueprint.members} - set(plan.families))
    if foreign:
        message = f"{named} has members of {listing(foreign)}, which this request or its recipe does not allow."
        raise _refused("families", message, f"Allow them for `making: {making}`, or ask for `making: warm_start`.")
    return bundle.blueprint


def _fitting(unit: Unit, bundle: Bundle, named: str, plan: Plan) -> Unit:
    """Return a unit whose rows have the columns and classes of a parent, or say all that they lack."""
    needed = [column.name for column in bundle.columns if column.type is not ColumnType.IDENTIFIER]
    dataset = unit.data.dataset
    known = {*dataset.frame.columns, *dataset.context.columns}
    problems = [Detail(f"dataset.{name}", "This column is missing.") for name in needed if name not in known]
    if not problems:
        frame = _columns(dataset, bundle)
        problems = [Detail(f"dataset.{d.field}", d.message) for d in bundle.check_input(frame)]
    new = [label for label in dataset.classes if label not in bundle.classes]
    problems += [Detail("dataset.target", f"The class {label!r} is not among {list(bundle.classes)}.") for label in new]
    if problems:
        raise InvalidRequest(
            f"making: the models of {named} cannot be trained on with these rows. "
            + " ".join(f"{p.field}: {p.message}" for p in problems),
            hint="Bring rows with the parent's columns and classes, or ask for `making: refit` or `warm_start`.",
            details=problems,
        )
    rows = _like(dataset, bundle)
    split = folds(rows, plan.validation, seed=plan.request.seed, metric=plan.metric)
    return replace(unit, data=replace(unit.data, dataset=rows, splits=split), unseen=_like(unit.unseen, bundle))


def _like(dataset: Dataset, bundle: Bundle) -> Dataset:
    """Return rows with the columns of a bundle, in its order, and its classes; what it does not know is context."""
    frame = _columns(dataset, bundle)
    types = {c.name: c.type for c in bundle.columns if c.name in frame}
    aside = pd.concat([dataset.context, dataset.frame], axis=1)
    context = aside.drop(columns=[c for c in aside.columns if c in frame])
    y = dataset.y
    if dataset.classes != bundle.classes:
        y = np.array([bundle.classes.index(label) for label in dataset.classes], dtype=np.int64)[dataset.y]
    return replace(dataset, frame=frame, types=types, y=y, classes=bundle.classes, context=context)


def _columns(dataset: Dataset, bundle: Bundle) -> pd.DataFrame:
    names = [column.name for column in bundle.columns if column.type is not ColumnType.IDENTIFIER]
    frame = pd.DataFrame({name: dataset.column(name) for name in names})
    frame.attrs.update(dataset.frame.attrs)
    return frame


def _rows_of(
    parent: Variant, bundle: Bundle, *, ledger: Ledger, settings: Settings
) -> tuple[Dataset | None, Dataset | None]:
    """Return the rows that a parent was searched on and those set aside for its gate; None twice if they are gone."""
    request = ledger.request(parent.request_id).request
    try:
        dataset = load(request.dataset, settings=settings)
        if dataset.digest != parent.dataset_digest or dataset.classes != bundle.classes:
            return None, None
        recipe = load_recipe(request.recipe, settings=settings)
        split = set_aside(dataset, request.terms(recipe).validation)
        parts = [dataset.take(split.train), dataset.take(split.validation)]
        if parent.segment and request.segments is not None:
            parts = [rows.take(_in_segment(rows.column(request.segments.by), parent.segment)) for rows in parts]
        seen, held = (_like(rows, bundle) for rows in parts)
    except FactoryError:
        return None, None
    return (seen, held) if len(held) and len(seen) else (None, None)


def _in_segment(values: pd.Series, segment: str) -> np.ndarray:
    """Return which rows are of a segment, bool (n_rows,); older factories named some as pandas writes them, '3.0'."""
    named = as_text(values.to_numpy()) == segment
    return np.asarray(named if named.any() else values.astype(str).to_numpy() == segment)


def _alike(rows: Dataset, bundle: Bundle) -> Dataset:
    """Return the half of some rows that is nearest to the parent's background rows, as its preparation sees them."""
    if bundle.background is None or not len(bundle.background):
        return rows
    preparation = bundle.preparations[0]
    base = np.nan_to_num(preparation.transform(bundle.background.columns).matrix)
    seen = np.nan_to_num(preparation.transform(rows.frame).matrix)
    scale = base.std(axis=0)
    scale[scale == 0] = 1
    away = np.min([np.abs((seen - one) / scale).mean(axis=1) for one in base], axis=0)
    return rows.take(np.sort(np.argsort(away, kind="stable")[: max(len(rows) // 2, 1)]))


def _search_of(parent: Variant | None, ledger: Ledger) -> PastSearch | None:
    """Return the parent's search: of a segment's variant that of the pooled one, whose rows its request describes."""
    return ledger.past_search(parent.request_id) if parent is not None else None


def _refused(field: str, message: str, hint: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", hint=hint, details=[Detail(field, message)])

"""What can be told of a request's data and parent before it starts, all of it at once.

Only metadata are read: a missing file, a wrong column or too few rows would
fail the request seconds after a wait that may be hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from factory.data.dataset import MIN_ROWS
from factory.data.loading import uploaded
from factory.data.metadata import TableMetadata, read_metadata
from factory.errors import Detail, FactoryError, counted, listing, suggest
from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import (
    DatasetRef,
    EntityDataset,
    FileDataset,
    GroupSplit,
    Recipe,
    TimeSplit,
    UploadDataset,
    Variant,
    VariantRequest,
)
from factory.variants.reference import resolve


@dataclass(frozen=True)
class Looked:
    """What a look at a request's data and parent came to.

    Attributes:
        problems: Checks that it would fail.
        table: Its file; None where that is no local one, or cannot be read.
        parent: The variant that it names; None where it names none, or there is none.
        notes: What could not be looked at.
    """

    problems: tuple[Detail, ...] = ()
    table: TableMetadata | None = None
    parent: Variant | None = None
    notes: tuple[str, ...] = ()

    def features(self, request: VariantRequest) -> list[str]:
        """Return the columns that may become features."""
        ref = request.dataset
        left = {ref.target, ref.weights, *ref.drop}
        return [name for name in (self.table.columns if self.table else ()) if name not in left]


def look(request: VariantRequest, recipe: Recipe, *, ledger: Ledger, settings: Settings) -> Looked:
    """Look at a well-formed request's data and parent."""
    data = look_at_data(request.dataset, settings=settings)
    table = None if data.table is None else _counted_rows(request.dataset, data.table, ledger)
    problems = [*data.problems]
    if data.table is not None:
        problems += _unknown_columns(request, recipe, data.table)
    parent = None
    if request.parent is not None and request.making != "cold":
        try:
            parent = resolve(request.parent, ledger=ledger)
        except FactoryError as error:
            problems.append(Detail("parent", f"{error.message} {error.hint}".strip()))
    return Looked(tuple(problems), table, parent, data.notes)


def _counted_rows(ref: DatasetRef, table: TableMetadata, ledger: Ledger) -> TableMetadata:
    """Return what is known of a table, with its rows as they were counted where it was uploaded."""
    if table.exact or not isinstance(ref, UploadDataset) or not (teams := ledger.upload_teams(ref.upload)):
        return table
    n_rows = ledger.upload(ref.upload, teams[0]).rows
    return table if n_rows is None else replace(table, n_rows=n_rows, exact=True)


def look_at_data(ref: DatasetRef, *, settings: Settings) -> Looked:
    """Look at the files that a dataset names, and at their number of rows."""
    problems: list[Detail] = []
    notes: list[str] = []
    field, place = _place(ref)
    table = None
    try:
        path = uploaded(place, settings=settings) if isinstance(ref, UploadDataset) else _local(place)
        if path is None:
            notes.append(f"{place!r} is not on this machine: it was not looked at.")
        else:
            table = read_metadata(path)
            problems += _row_problems(table, field, settings)
    except FactoryError as error:
        problems.append(Detail(field, f"{error.message} {error.hint}".strip()))
    if not isinstance(ref, EntityDataset) and ref.scoring is not None and (path := _local(ref.scoring)) is not None:
        try:
            read_metadata(path)
        except FactoryError as error:
            problems.append(Detail("dataset.scoring", f"{error.message} {error.hint}".strip()))
    if ref.join is not None:
        notes.append(f"The feature service {ref.join.feature_service!r} was not looked at.")
    return Looked(tuple(problems), table, None, tuple(notes))


def _place(ref: DatasetRef) -> tuple[str, str]:
    """Return the field that names the data, and its value."""
    if isinstance(ref, EntityDataset):
        return "dataset.entities", ref.entities
    return ("dataset.path", ref.path) if isinstance(ref, FileDataset) else ("dataset.upload", ref.upload)


def _local(place: str) -> Path | None:
    return None if "://" in place else Path(place).expanduser()


def _row_problems(table: TableMetadata, field: str, settings: Settings) -> Iterator[Detail]:
    if not table.exact:
        return
    if table.n_rows < MIN_ROWS:
        yield Detail(field, f"The table has {counted(table.n_rows, 'row')}; at least {MIN_ROWS} are needed.")
    if table.n_rows > settings.max_rows:
        yield Detail(field, f"The table has {table.n_rows:,} rows; at most {settings.max_rows:,} are read.")


def _unknown_columns(request: VariantRequest, recipe: Recipe, table: TableMetadata) -> Iterator[Detail]:
    """Yield the columns that a request names and its table lacks; of an entity table, those that no join could add."""
    ref = request.dataset
    named: list[tuple[str, str]] = [("dataset.target", ref.target)]
    named += [("dataset.weights", ref.weights)] if ref.weights is not None else []
    if ref.join is not None:
        named += [("dataset.timestamp", ref.join.timestamp)]
    else:
        named += [(f"dataset.types.{name}", name) for name in ref.types]
        named += [("dataset.drop", name) for name in ref.drop] + [("dataset.keep", name) for name in ref.keep]
        named += _dividing(request, recipe)
    for field, name in named:
        if name not in table.columns:
            yield Detail(field, f"There is no column {name!r}.{suggest(name, table.columns)} {_columns(table.columns)}")
    if ref.target in ref.drop:
        yield Detail("dataset.drop", f"The target {ref.target!r} cannot be left out.")


def _dividing(request: VariantRequest, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the columns by which rows are divided, whatever else they are."""
    terms = request.terms(recipe)
    if isinstance(terms.validation, TimeSplit | GroupSplit):
        yield "validation.column", terms.validation.column
    if request.segments is not None:
        yield "segments.by", request.segments.by
    yield from (("gates.slices", name) for name in terms.gates.slices)


def _columns(names: Iterable[str]) -> str:
    return f"Columns: {listing(names)}."

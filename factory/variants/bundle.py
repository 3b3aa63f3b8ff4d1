"""What a variant is on disk: a folder of plain files that loads without unpickling anything.

::

    variant.json            format version, task, classes, columns, members, metadata
    preparations/<i>/       fitted preparations (JSON and npz)
    members/<i>/            models, each in its framework's own safe format
    background.json         a few training rows, for explanations
    blueprint.json          what it takes to make the variant again on other rows
    digests.txt             digests of all these files

A folder's digest is written in the ledger when the variant is made.  Before
anything of the folder is read by a framework, :meth:`Bundle.load` checks that
it holds plain files only, that its digest is the ledger's and that its format
is known; otherwise it raises :class:`~factory.errors.UntrustedBundle`.

MLflow loads the same folder through :func:`_load_pyfunc`
(``loader_module="factory.variants.bundle"``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from factory.data.preparation import Preparation
from factory.errors import Detail, InvalidData, UntrustedBundle
from factory.families.base import Model
from factory.search.blueprint import BLUEPRINT, Blueprint
from factory.search.calibration import Calibration
from factory.search.metric import Metric, centred
from factory.search.plan import family
from factory.spec import NUMBERS, ColumnType, Task
from factory.variants.background import BACKGROUND, Background
from factory.variants.contents import Contents, folder_size_mb
from factory.variants.inputs import BundleColumn, Columns, check_columns
from factory.variants.manifest import FORMAT_VERSION, MANIFEST, Manifest, MemberEntry, read_manifest
from factory.variants.shared import SharedParts

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """One model of the blend.

    Attributes:
        family: Name of its family, by which it is loaded again.
        model: The fitted model.
        preparation: Index of the preparation whose table it sees.
        weight: Its share in the blend; the weights of a bundle sum to 1.
        bag: The bag that it comes from, by the number of its trial; not known of a loaded bundle, whose blueprint
            says it.
        files: Folder in which the model is saved already, from which it is copied while it is there.
    """

    family: str
    model: Model
    preparation: int
    weight: float
    bag: int | None = None
    files: Path | None = None

    def save(self, folder: Path) -> None:
        """Write the model into an existing empty folder."""
        if self.files is not None and self.files.is_dir():
            shutil.copytree(self.files, folder, dirs_exist_ok=True)
        else:
            self.model.save(folder)


@dataclass(frozen=True)
class Bundle:
    """A variant in memory: fitted preparations and the models that blend over them.

    Attributes:
        task: What is predicted.
        classes: Class labels in the order of the probability columns; () for regression.
        columns: Input columns that are needed.
        calibration: What is done with the blend's probabilities, and from which one on the second class is said.
        ignored: Columns of the training data that are not used (target, identifiers, screened out); a caller who
            sends them along is not wrong.
        preparations: Fitted preparations; each transforms the input once, whatever the number of members.
        members: The models with their weights.
        metadata: Lineage, as text.
        background: Training rows that explanations compare with; None where an older factory kept none.
        blueprint: What it takes to make the variant again; None where an older factory kept none.
        parts: Size in MB of the files of each model and preparation, by what tells these from others; empty where the
            bundle was not loaded.
    """

    task: Task
    classes: tuple[str, ...]
    columns: tuple[BundleColumn, ...]
    preparations: tuple[Preparation, ...]
    members: tuple[Member, ...]
    ignored: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    background: Background | None = None
    calibration: Calibration = field(default_factory=Calibration)
    blueprint: Blueprint | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def numeric_names(self) -> tuple[str, ...]:
        """Names of the input columns that hold numbers or booleans."""
        return tuple(column.name for column in self.columns if column.type in NUMBERS)

    @cached_property
    def other_columns(self) -> tuple[BundleColumn, ...]:
        """The input columns that hold something else."""
        return tuple(column for column in self.columns if column.type not in NUMBERS)

    @property
    def rowwise(self) -> bool:
        """Whether each of few rows is predicted to the last bit as it is alone; few are :data:`~.columns.FEW`."""
        texts = any(column.type is ColumnType.TEXT for column in self.columns)
        return not texts and all(family(member.family).rowwise for member in self.members)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Column names of :meth:`predict`'s answer."""
        return ("prediction", *(f"probability_{label}" for label in self.classes))

    def predict_raw(self, columns: Columns) -> np.ndarray:
        """Return the blended and calibrated prediction; the hot path, which needs no data frame.

        Args:
            columns: Data frame, or arrays (n_rows,) by column name.

        Returns:
            Probabilities float64 (n_rows, n_classes), or predictions float64 (n_rows,).
        """
        if _is_empty(columns):
            return np.empty((0, len(self.classes)) if self.classes else 0)
        tables = [preparation.transform(columns) for preparation in self.preparations]
        first, *others = self.members
        blend = first.weight * first.model.predict(tables[first.preparation])
        for member in others:
            blend += member.weight * member.model.predict(tables[member.preparation])
        return self.calibration.apply(blend)

    def labels(self, raw: np.ndarray) -> np.ndarray:
        """Return the index of the class that is answered for each row of :meth:`predict_raw`, int64 (n_rows,)."""
        return self.calibration.labels(raw)

    def judged(self, raw: np.ndarray, metric: Metric) -> np.ndarray:
        """Return predictions as the metric is to see them: one that judges labels sees the bundle's decisions."""
        return centred(raw, self.calibration.threshold) if metric.by_label and len(self.classes) == 2 else raw

    def predict(self, frame: Columns) -> pd.DataFrame:
        """Return ``prediction``, and for classification a ``probability_<class>`` for each class.

        The index of a data frame is kept; ``prediction`` holds class labels as strings, or float64.
        """
        raw = self.predict_raw(frame)
        index = frame.index if isinstance(frame, pd.DataFrame) else None
        if not self.classes:
            return pd.DataFrame({"prediction": raw}, index=index)
        labels = np.asarray(self.classes, dtype=object)[self.labels(raw)]
        answer = dict(zip(self.output_names, (labels, *raw.T), strict=True))
        return pd.DataFrame(answer, index=index)

    def check_input(self, columns: Columns) -> list[Detail]:
        """Return every problem of an input, none if it can be predicted.

        Wrong are: a column that is not known, a needed column that is missing, a value that does not fit the
        column's type, and columns of unequal length. Missing values, NaN and unknown categories are fine: they are
        predicted as in training.
        """
        return check_columns(columns, self.columns, ignored=self.ignored)

    def require(self, frame: pd.DataFrame, *, rows: str = "These rows") -> pd.DataFrame:
        """Return the columns of a frame that the variant uses, checked; further columns are left out.

        Args:
            frame: Rows, (n_rows, n_columns).
            rows: What they are called in the error.

        Raises:
            InvalidData: with one detail for each problem.
        """
        names = {column.name for column in self.columns}
        known = frame[[name for name in frame.columns if name in names]]
        if problems := self.check_input(known):
            raise InvalidData(
                f"{rows} cannot be predicted: " + " ".join(f"{p.field}: {p.message}" for p in problems),
                hint="Bring the columns that the variant was trained on; `factory variants show NAME` lists them.",
                details=problems,
            )
        return known

    def save(self, folder: Path) -> str:
        """Write the bundle into a new or empty folder and return the folder's digest."""
        entries = []
        for i, preparation in enumerate(self.preparations):
            preparation.save(_created(folder / "preparations" / str(i)))
        for i, member in enumerate(self.members):
            member.save(_created(folder / "members" / str(i)))
            entry = MemberEntry(
                family=member.family, weight=member.weight, preparation=member.preparation, folder=f"members/{i}"
            )
            entries.append(entry)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            task=self.task,
            classes=self.classes,
            columns=self.columns,
            ignored=self.ignored,
            preparations=len(self.preparations),
            members=tuple(entries),
            calibration=self.calibration,
            metadata=dict(self.metadata),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
        if self.background is not None:
            self.background.save(folder)
        if self.blueprint is not None:
            self.blueprint.save(folder)
        contents = Contents.of(folder)
        contents.write_list()
        return contents.digest

    @classmethod
    def load(cls, folder: Path, *, digest: str | None = None, shared: SharedParts | None = None) -> Bundle:
        """Load a bundle after checking that it is what it is said to be.

        Args:
            folder: The bundle's folder.
            digest: What :meth:`save` returned, from the ledger; not checked if None.
            shared: Models and preparations that are in memory already, and are not loaded again.

        Raises:
            UntrustedBundle: the folder holds links or special files, its digest differs, or its format is not known.
        """
        contents = Contents.of(folder, digest=digest)
        if digest is not None and (found := contents.digest) != digest:
            raise UntrustedBundle(
                f"The bundle {folder.name!r} has the digest {found[:12]}…, but the ledger says {digest[:12]}….",
                hint="Somebody changed the stored files. Restore them, or make the variant again.",
            )
        manifest = read_manifest(contents.checked(only=(MANIFEST, BACKGROUND, BLUEPRINT)))
        shared = shared or SharedParts()
        sizes: dict[str, float] = {}

        def part(relative: str, kind: str, load: Callable[[Path], T]) -> T:
            found = contents.part(relative)
            key = f"{kind}:{found.digest}"
            loaded = shared.get(key, lambda: load(found.checked()), size_mb=lambda: folder_size_mb(found.folder))
            sizes[key] = shared.size_mb(key)
            return loaded

        preparations = tuple(
            part(f"preparations/{i}", "preparation", Preparation.load) for i in range(manifest.preparations)
        )
        members = tuple(
            Member(
                family=entry.family,
                model=part(entry.folder, entry.family, family(entry.family).load),
                preparation=entry.preparation,
                weight=entry.weight,
            )
            for entry in manifest.members
        )
        return cls(
            task=manifest.task,
            classes=manifest.classes,
            columns=manifest.columns,
            preparations=preparations,
            members=members,
            calibration=manifest.calibration,
            ignored=manifest.ignored,
            metadata=manifest.metadata,
            background=Background.load(folder, manifest.columns),
            blueprint=Blueprint.load(folder),
            parts=sizes,
        )


class PyfuncVariant:
    """What MLflow calls: a bundle behind MLflow's ``predict(model_input, params)``."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: object, params: dict[str, object] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """Return :meth:`Bundle.predict` of a data frame, a mapping, a list of records or a matrix.

        Args:
            model_input: A matrix (n_rows, n_columns) has its columns in the order of the signature.
            params: There are none; MLflow hands over what its own interface names.

        Raises:
            InvalidData: with one detail for each problem.
        """
        frame = self._frame(model_input)
        if problems := self.bundle.check_input(frame):
            raise InvalidData(
                "The input cannot be predicted: " + " ".join(f"{p.field}: {p.message}" for p in problems),
                hint="Send the columns of the model's signature.",
                details=problems,
            )
        return self.bundle.predict(frame)

    def _frame(self, model_input: object) -> pd.DataFrame:
        names = [column.name for column in self.bundle.columns]
        if isinstance(model_input, pd.DataFrame):
            return model_input
        if isinstance(model_input, Mapping):
            lone = all(np.ndim(value) == 0 for value in model_input.values())
            return pd.DataFrame([dict(model_input)] if lone else dict(model_input))
        rows = list(model_input) if isinstance(model_input, Iterable) else [model_input]
        if rows and isinstance(rows[0], Mapping):
            return pd.DataFrame(rows)
        matrix = np.atleast_2d(np.asarray(rows))
        if matrix.shape[1] != len(names):
            raise InvalidData(
                f"The input has {matrix.shape[1]} columns without names; the model has {len(names)}.",
                hint=f"Send {len(names)} columns in this order: {', '.join(names)}.",
            )
        return pd.DataFrame(matrix, columns=names)


def _load_pyfunc(data_path: str) -> PyfuncVariant:
    """Load the bundle for ``mlflow.pyfunc.load_model``."""
    return PyfuncVariant(Bundle.load(Path(data_path)))


def _created(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _is_empty(columns: Columns) -> bool:
    return not len(columns) if isinstance(columns, pd.DataFrame) else not any(map(len, columns.values()))

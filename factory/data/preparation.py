"""From typed columns to arrays, fitted on training rows only.

What every family sees is a :class:`Table`: numbers with NaN for missing, and
category codes with 0 for missing or never seen.  A :class:`Preparation` is
fitted inside each fold, so that nothing of the validation rows leaks in, and
is stored as JSON and npz: loading it runs no code of the file's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from factory.data.columns import FEW, FORMATS, as_datetime, as_numeric, factorize, text_of
from factory.data.crosses import Cross, CrossedColumns
from factory.data.dates import calendar, days_between, first_day, varying_parts
from factory.data.graph import DrawnTable, Graph
from factory.data.text import TextEncoder
from factory.errors import Detail, InvalidData, UntrustedBundle, listing, suggest
from factory.spec import NUMBERS, ColumnType

_MANY_LEVELS = 100
"""Above this cardinality a level seen once is noise and is folded into the unseen level."""
_MOST_LEVELS = 4096
"""Levels kept of one column, the most frequent ones; embeddings and one-vs-rest splits stay bounded."""
_PAIRED_DATES = 5
"""Date columns between which days are counted; ten pairs at most."""


@dataclass(frozen=True, eq=False)
class Table:
    """Prepared columns.

    Attributes:
        numeric: float32 (n_rows, n_numeric), NaN where missing.
        codes: int32 (n_rows, n_categorical); 0 for missing or unseen, 1..K for known levels.
        levels: K + 1 for each categorical column, so that every code is below it.
        numeric_names: Names of the numeric columns, (n_numeric,).
        categorical_names: Names of the categorical columns, (n_categorical,).
        n_crosses: The last so many numeric columns are products and ratios of others.
    """

    numeric: np.ndarray
    codes: np.ndarray
    levels: tuple[int, ...]
    numeric_names: tuple[str, ...]
    categorical_names: tuple[str, ...]
    n_crosses: int = 0

    def __len__(self) -> int:
        return len(self.numeric)

    @property
    def n_columns(self) -> int:
        """Number of prepared columns of both kinds."""
        return len(self.numeric_names) + len(self.categorical_names)

    def rows(self, index: np.ndarray) -> Table:
        """Return the rows at integer positions or of a boolean mask, in that order."""
        return replace(self, numeric=self.numeric[index], codes=self.codes[index])

    @cached_property
    def plain(self) -> Table:
        """The table without products and ratios, for models that make or need none."""
        if not self.n_crosses:
            return self
        n = len(self.numeric_names) - self.n_crosses
        return replace(self, numeric=self.numeric[:, :n], numeric_names=self.numeric_names[:n], n_crosses=0)

    @cached_property
    def matrix(self) -> np.ndarray:
        """Numeric columns, then codes, as float32 (n_rows, n_columns); NaN is missing, code 0 stays 0."""
        if not self.categorical_names:
            return np.ascontiguousarray(self.numeric)
        return np.concatenate([self.numeric, self.codes], axis=1, dtype=np.float32, casting="same_kind")


# --- one plan per input column ------------------------------------------------------


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    column: str


class _Numbers(_Plan):
    kind: Literal["numbers"] = "numbers"


class _Levels(_Plan):
    kind: Literal["levels"] = "levels"
    levels: tuple[str, ...]


class _Calendar(_Plan):
    kind: Literal["calendar"] = "calendar"
    parts: tuple[str, ...]
    reference: int
    """Day number since 1970 from which days are counted; the earliest training day."""
    text_format: str | None = None


class _Text(_Plan):
    kind: Literal["text"] = "text"
    columns: tuple[str, ...]


class _Gap(BaseModel):
    """Days from one date column to another."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: str
    earlier: str


_PLANS: dict[str, type[_Plan]] = {"numbers": _Numbers, "levels": _Levels, "calendar": _Calendar, "text": _Text}
_FORMAT = 3
_READABLE = (1, 2, 3)
"""Format 1 had neither days between dates nor crosses; format 2 read every text to the same length."""


class Preparation:
    """Turns raw columns into a :class:`Table`; fitted on training rows, then unchanging.

    Attributes:
        columns: Input columns that it needs, in the order of the training frame.
    """

    def __init__(
        self,
        plans: tuple[Any, ...],
        texts: Mapping[str, TextEncoder],
        *,
        gaps: tuple[_Gap, ...] = (),
        crosses: Sequence[Cross] = (),
    ) -> None:
        self._plans = plans
        self._texts = dict(texts)
        self._gaps = gaps
        self.columns: tuple[str, ...] = tuple(p.column for p in plans)
        self._lookups = {p.column: {t: i + 1 for i, t in enumerate(p.levels)} for p in plans if p.kind == "levels"}
        self._categorical = tuple(p for p in plans if p.kind == "levels")
        self._numeric = tuple(p for p in plans if p.kind != "levels")
        self._levels = tuple(len(p.levels) + 1 for p in self._categorical)
        plain = (*(name for p in self._numeric for name in _names(p)), *(f"{g.later}-{g.earlier}" for g in gaps))
        self._crosses = CrossedColumns(crosses, plain)
        self._numeric_names = (*plain, *self._crosses.names)
        self._categorical_names = tuple(p.column for p in self._categorical)

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        types: Mapping[str, ColumnType],
        *,
        seed: int = 0,
        crosses: Sequence[Cross] = (),
        omitted: Collection[str] = (),
    ) -> Preparation:
        """Learn levels, calendar parts and text encodings from training rows.

        Args:
            frame: Training rows, (n_rows, n_columns); columns that ``types`` lacks are left out.
            types: Type of each feature column; identifiers are left out.
            seed: Seed of the randomized decomposition of text columns.
            crosses: Products and ratios of prepared numeric columns to add as the last numeric columns; one whose
                columns do not come out of these rows is left out.
            omitted: Calendar parts that are left out of every date.
        """
        formats = frame.attrs.get(FORMATS, {})
        plans: list[_Plan] = []
        moments: dict[str, np.ndarray] = {}
        texts: dict[str, TextEncoder] = {}
        for column in frame.columns:
            kind = types.get(column)
            values = frame[column].to_numpy()
            if kind in NUMBERS:
                plans.append(_Numbers(column=column))
            elif kind is ColumnType.CATEGORICAL:
                plans.append(_Levels(column=column, levels=_fit_levels(values)))
            elif kind is ColumnType.DATETIME:
                text_format = formats.get(column)
                moments[column] = as_datetime(values, text_format=text_format)
                parts = tuple(part for part in varying_parts(moments[column]) if part not in omitted)
                reference = first_day(moments[column])
                plans.append(_Calendar(column=column, parts=parts, reference=reference, text_format=text_format))
            elif kind is ColumnType.TEXT:
                encoder = TextEncoder.fit(values, seed=seed)
                if encoder is not None:
                    texts[column] = encoder
                    plans.append(_Text(column=column, columns=encoder.names))
        return cls(tuple(plans), texts, gaps=_fit_gaps(moments), crosses=crosses)

    def transform(self, columns: pd.DataFrame | Mapping[str, np.ndarray]) -> Table:
        """Return the prepared columns.

        Args:
            columns: A frame, or one array (n_rows,) for each input column. Other columns are ignored. Infinite
                values and values of the wrong kind are treated as missing, unknown levels as unseen.

        Raises:
            InvalidData: a column that is needed is absent; all of them are named.
        """
        try:
            arrays = {name: np.asarray(columns[name]) for name in self.columns}
        except KeyError as error:
            raise self._absent(columns) from error
        n_rows = len(next(iter(arrays.values()))) if arrays else len(columns) if _is_frame(columns) else 0
        numeric = np.empty((n_rows, len(self._numeric_names)), dtype=np.float32)
        moments: dict[str, np.ndarray] = {}
        at = 0
        with np.errstate(over="ignore"):
            for plan in self._numeric:
                values = arrays[plan.column]
                if plan.kind == "numbers":
                    numeric[:, at] = values if values.dtype.kind in "fiub" else as_numeric(values)
                    at += 1
                    continue
                if plan.kind == "calendar":
                    moments[plan.column] = as_datetime(values, text_format=plan.text_format)
                    block = calendar(moments[plan.column], plan.parts, reference=plan.reference)
                else:
                    block = self._texts[plan.column].transform(values)
                numeric[:, at : at + block.shape[1]] = block
                at += block.shape[1]
        for gap in self._gaps:
            numeric[:, at] = days_between(moments[gap.later], moments[gap.earlier])
            at += 1
        plain = numeric[:, :at]
        finite = np.isfinite(plain)
        if not finite.all():
            plain[~finite] = np.nan
        if len(self._crosses):
            numeric[:, at:] = self._crosses.evaluate(plain)
        codes = np.empty((n_rows, len(self._categorical)), dtype=np.int32)
        for j, plan in enumerate(self._categorical):
            codes[:, j] = _look_up(self._lookups[plan.column], arrays[plan.column])
        return Table(
            numeric, codes, self._levels, self._numeric_names, self._categorical_names, n_crosses=len(self._crosses)
        )

    @cached_property
    def sources(self) -> tuple[frozenset[str], ...]:
        """Input columns that each prepared column comes from: of the numeric ones, then of the categorical ones."""
        numeric = [frozenset((p.column,)) for p in self._numeric for _ in _names(p)]
        numeric += [frozenset((gap.later, gap.earlier)) for gap in self._gaps]
        position = {name: i for i, name in enumerate(self._numeric_names[: len(numeric)])}
        crossed = [numeric[position[c.left]] | numeric[position[c.right]] for c in self._crosses.crosses]
        return (*numeric, *crossed, *(frozenset((name,)) for name in self._categorical_names))

    def draw(self, graph: Graph) -> DrawnTable:
        """Draw :meth:`transform` as a part of an ONNX graph.

        Raises:
            CannotDraw: there is a text column.
        """
        from factory.data.drawing import draw

        return draw(
            graph,
            numeric=self._numeric,
            categorical=self._categorical,
            gaps=[(gap.later, gap.earlier) for gap in self._gaps],
            crosses=self._crosses.crosses,
            names=self._numeric_names,
        )

    def _absent(self, columns: pd.DataFrame | Mapping[str, np.ndarray]) -> InvalidData:
        given = [str(c) for c in columns]
        absent = [name for name in self.columns if name not in columns]
        return InvalidData(
            f"Columns that the variant needs are absent: {listing(absent)}.",
            hint="Send every column that the variant was trained on; a value may be missing, a column may not.",
            details=[Detail(name, f"This column is required.{suggest(name, given)}") for name in absent],
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it learned; equal digests prepare every row equally."""
        digest = hashlib.sha256(self._document().encode())
        for name, array in self._arrays().items():
            digest.update(f"{name}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preparation) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def _document(self) -> str:
        document = {
            "format": _FORMAT,
            "plans": [p.model_dump(mode="json") for p in self._plans],
            "texts": {name: encoder.document() for name, encoder in self._texts.items()},
            "gaps": [g.model_dump(mode="json") for g in self._gaps],
            "crosses": [c.model_dump(mode="json") for c in self._crosses.crosses],
        }
        return json.dumps(document, ensure_ascii=False)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f"{i}.{key}": a for i, e in enumerate(self._texts.values()) for key, a in e.arrays().items()}

    def save(self, folder: Path) -> None:
        """Write ``preparation.json`` and, where text columns exist, ``preparation.npz`` into an existing folder."""
        (folder / "preparation.json").write_text(self._document(), encoding="utf-8")
        if arrays := self._arrays():
            np.savez(folder / "preparation.npz", allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> Preparation:
        """Read what :meth:`save` wrote.

        Raises:
            UntrustedBundle: the files are not a preparation of a known format.
        """
        try:
            document = json.loads((folder / "preparation.json").read_text(encoding="utf-8"))
            if document["format"] not in _READABLE:
                raise ValueError(f"format {document['format']!r}, known are {listing(map(str, _READABLE))}")
            plans = tuple(_PLANS[p["kind"]].model_validate(p) for p in document["plans"])
            gaps = tuple(_Gap.model_validate(g) for g in document.get("gaps", ()))
            crosses = tuple(Cross.model_validate(c) for c in document.get("crosses", ()))
            texts: dict[str, TextEncoder] = {}
            if document["texts"]:
                with np.load(folder / "preparation.npz", allow_pickle=False) as stored:
                    for i, (name, text) in enumerate(document["texts"].items()):
                        keys = [k for k in stored.files if k.startswith(f"{i}.")]
                        texts[name] = TextEncoder.restore(text, {k.split(".", 1)[1]: stored[k] for k in keys})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UntrustedBundle(
                f"The preparation in {str(folder)!r} cannot be read: {error}.",
                hint="The bundle is damaged or from a newer factory; register the variant again.",
            ) from error
        return cls(plans, texts, gaps=gaps, crosses=crosses)


def _is_frame(columns: object) -> bool:
    return isinstance(columns, pd.DataFrame)


def _names(plan: Any) -> tuple[str, ...]:
    if plan.kind == "numbers":
        return (plan.column,)
    parts = plan.parts if plan.kind == "calendar" else plan.columns
    return tuple(f"{plan.column}:{part}" for part in parts)


def _fit_levels(values: np.ndarray) -> tuple[str, ...]:
    codes, texts = factorize(values)
    counts = np.bincount(codes[codes >= 0], minlength=len(texts))
    if len(texts) > _MANY_LEVELS:
        keep = np.flatnonzero(counts >= 2)
        keep = keep[np.argsort(-counts[keep], kind="stable")[:_MOST_LEVELS]]
        texts = [texts[i] for i in keep]
    return tuple(sorted(texts))


def _look_up(lookup: dict[str, int], values: np.ndarray) -> Any:
    if len(values) <= FEW:
        get = lookup.get
        return [get(v, 0) if type(v) is str else get(text_of(v) or "", 0) for v in values.tolist()]
    raw, uniques = pd.factorize(values, use_na_sentinel=True)
    known = [lookup.get(text_of(v) or "", 0) for v in uniques.tolist()]
    return np.array([*known, 0], dtype=np.int32)[raw]


def _fit_gaps(moments: Mapping[str, np.ndarray]) -> tuple[_Gap, ...]:
    """Return the pairs of date columns whose distance varies, the later date first."""
    gaps = []
    for a, b in itertools.combinations(list(moments)[:_PAIRED_DATES], 2):
        days = days_between(moments[a], moments[b])
        known = days[~np.isnan(days)]
        if len(known) and np.ptp(known) > 0:
            later, earlier = (a, b) if np.median(known) >= 0 else (b, a)
            gaps.append(_Gap(later=later, earlier=earlier))
    return tuple(gaps)

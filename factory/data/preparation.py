"""From typed columns to arrays, fitted on training rows only.

What every family sees is a :class:`Table`: numbers with NaN for missing, and
category codes with 0 for missing or never seen.  A :class:`Preparation` is
fitted inside each fold, so that nothing of the validation rows leaks in, and
is stored as JSON and npz: loading it runs no code of the file's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from factory.data.columns import FORMATS, as_datetime, as_numeric, factorize, text_of
from factory.data.text import TextEncoder
from factory.errors import Detail, InvalidData, UntrustedBundle, listing, suggest
from factory.spec import ColumnType

_MANY_LEVELS = 100
"""Above this cardinality a level seen once is noise and is folded into the unseen level."""
_MOST_LEVELS = 4096
"""Levels kept of one column, the most frequent ones; embeddings and one-vs-rest splits stay bounded."""
_FEW = 64
"""Below this many rows a dictionary look-up per value is faster than factorizing."""


@dataclass(frozen=True, eq=False)
class Table:
    """Prepared columns.

    Attributes:
        numeric: float32 (n_rows, n_numeric), NaN where missing.
        codes: int32 (n_rows, n_categorical); 0 for missing or unseen, 1..K for known levels.
        levels: K + 1 for each categorical column, so that every code is below it.
        numeric_names: Names of the numeric columns, (n_numeric,).
        categorical_names: Names of the categorical columns, (n_categorical,).
    """

    numeric: np.ndarray
    codes: np.ndarray
    levels: tuple[int, ...]
    numeric_names: tuple[str, ...]
    categorical_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numeric)

    @property
    def n_columns(self) -> int:
        """Number of prepared columns of both kinds."""
        return len(self.numeric_names) + len(self.categorical_names)

    def rows(self, index: np.ndarray) -> Table:
        """Return the rows at integer positions or of a boolean mask, in that order."""
        return Table(self.numeric[index], self.codes[index], self.levels, self.numeric_names, self.categorical_names)


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


_PLANS: dict[str, type[_Plan]] = {"numbers": _Numbers, "levels": _Levels, "calendar": _Calendar, "text": _Text}
_FORMAT = 1


class Preparation:
    """Turns raw columns into a :class:`Table`; fitted on training rows, then unchanging.

    Attributes:
        columns: Input columns that it needs, in the order of the training frame.
    """

    def __init__(self, plans: tuple[Any, ...], texts: Mapping[str, TextEncoder]) -> None:
        self._plans = plans
        self._texts = dict(texts)
        self.columns: tuple[str, ...] = tuple(p.column for p in plans)
        self._lookups = {p.column: {t: i + 1 for i, t in enumerate(p.levels)} for p in plans if p.kind == "levels"}
        self._categorical = tuple(p for p in plans if p.kind == "levels")
        self._numeric = tuple(p for p in plans if p.kind != "levels")
        self._levels = tuple(len(p.levels) + 1 for p in self._categorical)
        self._numeric_names = tuple(name for p in self._numeric for name in _names(p))
        self._categorical_names = tuple(p.column for p in self._categorical)

    @classmethod
    def fit(cls, frame: pd.DataFrame, types: Mapping[str, ColumnType], *, seed: int = 0) -> Preparation:
        """Learn levels, calendar parts and text encodings from training rows.

        Args:
            frame: Training rows, (n_rows, n_columns); columns that ``types`` lacks are left out.
            types: Type of each feature column; identifiers are left out.
            seed: Seed of the randomized decomposition of text columns.
        """
        formats = frame.attrs.get(FORMATS, {})
        plans: list[_Plan] = []
        texts: dict[str, TextEncoder] = {}
        for column in frame.columns:
            kind = types.get(column)
            values = frame[column].to_numpy()
            if kind in (ColumnType.NUMERIC, ColumnType.BOOLEAN):
                plans.append(_Numbers(column=column))
            elif kind is ColumnType.CATEGORICAL:
                plans.append(_Levels(column=column, levels=_fit_levels(values)))
            elif kind is ColumnType.DATETIME:
                plans.append(_fit_calendar(column, values, formats.get(column)))
            elif kind is ColumnType.TEXT:
                encoder = TextEncoder.fit(values, seed=seed)
                if encoder is not None:
                    texts[column] = encoder
                    plans.append(_Text(column=column, columns=encoder.names))
        return cls(tuple(plans), texts)

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
        at = 0
        with np.errstate(over="ignore"):
            for plan in self._numeric:
                if plan.kind == "numbers":
                    values = arrays[plan.column]
                    numeric[:, at] = values if values.dtype.kind in "fiub" else as_numeric(values)
                    at += 1
                    continue
                block = self._block(plan, arrays[plan.column])
                numeric[:, at : at + block.shape[1]] = block
                at += block.shape[1]
        finite = np.isfinite(numeric)
        if not finite.all():
            numeric[~finite] = np.nan
        codes = np.empty((n_rows, len(self._categorical)), dtype=np.int32)
        for j, plan in enumerate(self._categorical):
            codes[:, j] = _look_up(self._lookups[plan.column], arrays[plan.column])
        return Table(numeric, codes, self._levels, self._numeric_names, self._categorical_names)

    def _block(self, plan: Any, values: np.ndarray) -> np.ndarray:
        if plan.kind == "text":
            return self._texts[plan.column].transform(values)
        return _calendar(as_datetime(values, text_format=plan.text_format), plan)

    def _absent(self, columns: pd.DataFrame | Mapping[str, np.ndarray]) -> InvalidData:
        given = [str(c) for c in columns]
        absent = [name for name in self.columns if name not in columns]
        return InvalidData(
            f"Columns that the variant needs are absent: {listing(absent)}.",
            hint="Send every column that the variant was trained on; a value may be missing, a column may not.",
            details=[Detail(name, f"This column is required.{suggest(name, given)}") for name in absent],
        )

    def save(self, folder: Path) -> None:
        """Write ``preparation.json`` and, where text columns exist, ``preparation.npz`` into an existing folder."""
        document = {
            "format": _FORMAT,
            "plans": [p.model_dump(mode="json") for p in self._plans],
            "texts": {name: encoder.document() for name, encoder in self._texts.items()},
        }
        (folder / "preparation.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        arrays = {f"{i}.{key}": a for i, e in enumerate(self._texts.values()) for key, a in e.arrays().items()}
        if arrays:
            np.savez(folder / "preparation.npz", allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> Preparation:
        """Read what :meth:`save` wrote.

        Raises:
            UntrustedBundle: the files are not a preparation of a known format.
        """
        try:
            document = json.loads((folder / "preparation.json").read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r}, known is {_FORMAT}")
            plans = tuple(_PLANS[p["kind"]].model_validate(p) for p in document["plans"])
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
        return cls(plans, texts)


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
    if len(values) <= _FEW:
        get = lookup.get
        return [get(v, 0) if type(v) is str else get(text_of(v) or "", 0) for v in values.tolist()]
    raw, uniques = pd.factorize(values, use_na_sentinel=True)
    known = [lookup.get(text_of(v) or "", 0) for v in uniques.tolist()]
    return np.array([*known, 0], dtype=np.int32)[raw]


def _days(moments: np.ndarray) -> np.ndarray:
    return moments.astype("M8[D]").astype(np.int64)


_PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "year": lambda m: m.astype("M8[Y]").astype(np.int64) + 1970,
    "month": lambda m: m.astype("M8[M]").astype(np.int64) % 12 + 1,
    "day": lambda m: (m.astype("M8[D]") - m.astype("M8[M]").astype("M8[D]")).astype(np.int64) + 1,
    "weekday": lambda m: (_days(m) + 3) % 7,
    "hour": lambda m: m.astype("M8[h]").astype(np.int64) % 24,
    "days": _days,
}
"""Calendar parts of datetimes; weekday 0 is Monday, since day 0 (1970-01-01) was a Thursday."""


def _fit_calendar(column: str, values: np.ndarray, text_format: str | None) -> _Calendar:
    """Keep the parts that vary in the training rows."""
    moments = as_datetime(values, text_format=text_format)
    known = moments[~np.isnat(moments)]
    parts = tuple(name for name, of in _PARTS.items() if len(known) and np.ptp(of(known)) > 0)
    reference = int(_days(known).min()) if len(known) else 0
    return _Calendar(column=column, parts=parts, reference=reference, text_format=text_format)


def _calendar(moments: np.ndarray, plan: _Calendar) -> np.ndarray:
    """Return the parts, float32 (n_rows, n_parts), NaN where the date is missing."""
    missing = np.isnat(moments)
    known = np.where(missing, np.datetime64(0, "us"), moments)
    block = np.empty((len(moments), len(plan.parts)), dtype=np.float32)
    for j, part in enumerate(plan.parts):
        block[:, j] = _PARTS[part](known) - (plan.reference if part == "days" else 0)
    block[missing] = np.nan
    return block

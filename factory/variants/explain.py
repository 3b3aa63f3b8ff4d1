"""What each input column added to a prediction: Shapley values over the columns that a caller sends.

A set of columns is worth the mean prediction of background rows that have the
row's values in these columns.  Where a member's answer is a sum whose values
are known, they are exact (:mod:`factory.variants.attribution`); what remains
of the blend is walked (:mod:`factory.variants.walks`).  Both speak of the same
game and the same background, so that they add up:

    base + sum of the contributions = prediction

holds for every row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from factory.errors import Conflict, Detail, InvalidRequest
from factory.families._terms import Link
from factory.variants.attribution import CLOSE, Allowance, Margin, Scale, Scene, Share, blended, exact, two_dimensional
from factory.variants.background import Background, canonical
from factory.variants.bundle import Bundle
from factory.variants.inputs import Columns
from factory.variants.walks import Predict, sample

EXPLAIN_S = 5.0
"""Seconds after which no further walk begins."""
MOST_S = 30.0
"""Seconds that may be asked for, and after which even the first pair of walks is given up: as long as the predictor
answers one request by default (FACTORY_SERVE_DEADLINE_S)."""
MOST_ROWS = 1_000
"""Rows of one explanation; more are a report on the variant, which its model card has."""
WALKS = 64
"""Walks of each row at most; the standard error falls with their square root."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Contributions to some predictions. ``base + contributions.sum(axis=1) == predictions`` for every output.

    Attributes:
        columns: Input columns, (n_columns,).
        outputs: Class labels of a classification; ``("prediction",)`` of a regression.
        base: Mean prediction of the background, float64 (n_outputs,).
        contributions: float64 (n_rows, n_columns, n_outputs), in units of the prediction.
        errors: Standard errors of the contributions, of the same shape; 0 where they are exact, NaN where one pair of
            walks was made.
        predictions: float64 (n_rows, n_outputs); sums, where these are explained.
        walks: Walks that were made for each row; 0 where all is exact.
        index: Labels of the rows.
        scale: ``margin`` where the sums are explained that predictions are the link of.
        link: That makes predictions of these.
        shares: How each member of the blend was explained.
    """

    columns: tuple[str, ...]
    outputs: tuple[str, ...]
    base: np.ndarray
    contributions: np.ndarray
    errors: np.ndarray
    predictions: np.ndarray
    walks: int
    index: pd.Index
    scale: Scale = "prediction"
    link: Link = "identity"
    shares: tuple[Share, ...] = ()

    @property
    def method(self) -> str:
        """``tree_shap``, ``linear`` or, of several kinds, ``exact``; ``sampled``; ``mixed`` where a part is sampled."""
        methods = {share.method for share in self.shares} - {"constant"}
        if "sampled" in methods:
            return "sampled" if methods == {"sampled"} else "mixed"
        return next(iter(methods)) if len(methods) == 1 else "exact"

    def frame(self, output: str | None = None) -> pd.DataFrame:
        """Return the contributions to one output, (n_rows, n_columns), the column with the largest ones first.

        Args:
            output: A class label; the last class, which is the positive one of two, where not given.

        Raises:
            ValueError: there is no such output.
        """
        k = len(self.outputs) - 1 if output is None else self.outputs.index(output)
        values = self.contributions[:, :, k]
        order = np.argsort(-np.abs(values).mean(axis=0), kind="stable")
        return pd.DataFrame(values[:, order], index=self.index, columns=[self.columns[j] for j in order])

    def _repr_html_(self) -> str:
        shown = self.frame()
        how = f"{self.walks} walks" if self.walks else "exact"
        note = f"base {self.base[-1]:.4g}, contributions to {self.outputs[-1]!r}, {how}"
        return f"{shown.to_html(float_format='{:+.4g}'.format, max_cols=20)}<p>{note}</p>"


def explain(
    bundle: Bundle,
    rows: Columns,
    *,
    scale: Scale = "prediction",
    limit_s: float = EXPLAIN_S,
    walks: int = WALKS,
    seed: int = 0,
) -> Explanation:
    """Return what each input column added to the predictions of some rows.

    Args:
        bundle: The variant, with its background.
        rows: Checked rows, a frame or arrays (n_rows,) by column name; 1 to :data:`MOST_ROWS`.
        scale: ``margin`` explains the sum that a variant of one model is the link of (log-odds, say), exactly.
        limit_s: Seconds after which no further pair of walks begins; :data:`MOST_S` at most. The first pair is always
            finished, unless it takes as long as that. A model that is too large to be explained exactly in them is
            sampled.
        walks: Walks of each row at most.
        seed: Of the orders and of the background rows they start from; where the time suffices for all walks, the
            same seed gives the same contributions.

    Raises:
        Conflict: the bundle has no background, or no margin.
        InvalidRequest: these are too many rows, or none, or too much time is asked for; names both. Or one pair of
            walks of these rows takes longer than :data:`MOST_S`.
    """
    background = background_of(bundle)
    began = time.monotonic()
    values = canonical(rows, bundle.columns)
    n_rows = len(next(iter(values.values())))
    _check(n_rows, limit_s)
    allowance = Allowance(began + limit_s, began + MOST_S)
    scene = Scene(bundle, values, background.columns)
    link: Link = "identity"
    outputs: tuple[str, ...] = bundle.classes or ("prediction",)
    rest: Predict
    try:
        if scale == "margin":
            margin = Margin(bundle)
            link, outputs, rest = margin.link, margin.outputs, margin.predict
            found, predictions = margin.exact(scene, allowance=allowance), margin.predict(values)
        else:
            found = exact(bundle, scene, allowance=allowance)
            predictions = two_dimensional(bundle.predict_raw(values))
            is_part = len(found.rest) < len(bundle.members)
            rest = partial(blended, bundle, found.rest) if is_part else partial(_predicted, bundle)
        base, contributions, errors, n_walks = found.base, found.contributions, np.zeros_like(found.contributions), 0
        if found.rest:
            n_pairs, ends, until = max(1, walks // 2), allowance.ends, allowance.until
            walked = sample(rest, values, background.columns, n_pairs=n_pairs, seed=seed, ends=ends, until=until)
            base, contributions = base + walked.base, contributions + walked.contributions
            errors, n_walks = walked.errors, walked.walks
    except TimeoutError as error:
        raise _refused([Detail("rows", f"{n_rows} rows take more than {MOST_S:g} s to explain.")]) from error
    return Explanation(
        columns=tuple(background.columns),
        outputs=outputs,
        base=base,
        contributions=_rounded(base, contributions, predictions),
        errors=errors,
        predictions=predictions,
        walks=n_walks,
        index=rows.index if isinstance(rows, pd.DataFrame) else pd.RangeIndex(n_rows),
        scale=scale,
        link=link,
        shares=found.shares,
    )


def background_of(bundle: Bundle) -> Background:
    """Return the rows that a variant keeps to compare with.

    Raises:
        Conflict: it keeps none.
    """
    if bundle.background is None:
        raise Conflict(
            "This variant keeps no background rows, so its predictions cannot be explained.",
            hint="It was made by an older factory; make it again.",
        )
    return bundle.background


def _predicted(bundle: Bundle, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    return two_dimensional(bundle.predict_raw(dict(columns)))


def _rounded(base: np.ndarray, contributions: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Return contributions with the rounding of models in single precision divided among them by their size.

    What is more than rounding is not: it would be an error that no one sees.
    """
    left = predictions - base - contributions.sum(axis=1)
    largest = max(np.abs(part).max(initial=1.0) for part in (predictions, base, contributions))
    left[np.abs(left) > CLOSE * largest] = 0.0
    size = np.abs(contributions) + np.finfo(float).tiny
    return np.asarray(contributions + size / size.sum(axis=1, keepdims=True) * left[:, np.newaxis])


def _check(n_rows: int, limit_s: float) -> None:
    problems = []
    if not 1 <= n_rows <= MOST_ROWS:
        problems.append(Detail("rows", f"{n_rows} rows cannot be explained; 1 to {MOST_ROWS} are allowed."))
    if not 0 <= limit_s <= MOST_S:
        problems.append(Detail("limit_s", f"{limit_s:g} s are not allowed; 0 to {MOST_S:g} are."))
    if problems:
        raise _refused(problems)


def _refused(problems: list[Detail]) -> InvalidRequest:
    return InvalidRequest(
        "The predictions are not explained. " + " ".join(f"{p.field}: {p.message}" for p in problems),
        hint="Explain fewer rows at a time; what matters to the variant as a whole stands in its model card.",
        details=problems,
    )

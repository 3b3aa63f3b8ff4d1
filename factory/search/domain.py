"""Which numbers a scorer is defined for, and what becomes of predictions that are none of them.

Deviances of counts and amounts, and errors of logarithms, are defined for
predictions above a bound only, and a model that knows nothing of the bound
predicts below it now and then.  Such a prediction is raised to a floor, in
every score of a search and in every answer of the variant: the score is that
of what callers get.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from factory.errors import Detail, InvalidData, listing

SHARE = 1e-3
"""Of the mean target: the floor where the least target is no prediction that the scorer is defined for."""
_UNKNOWN = 1e-9
"""Above the bound, the floor where no targets are known: what was served has one, and is not changed by this."""


@dataclass(frozen=True)
class Domain:
    """Numbers that a scorer is defined for.

    Attributes:
        bound: Below all of them; predictions are above it.
        included: Whether targets may be the bound itself.
    """

    bound: float
    included: bool = False

    def outside(self, y: np.ndarray) -> np.ndarray:
        """Return which targets it is not defined for, bool (n_rows,)."""
        return np.asarray(y < self.bound if self.included else y <= self.bound)

    def floor(self, y: np.ndarray) -> float:
        """Return the least prediction that makes sense after some targets (n_rows,), all of them inside."""
        least = float(y.min())
        return least if least > self.bound else max(SHARE * float(y.mean()), self.bound + _UNKNOWN)

    @property
    def lowest(self) -> float:
        """The floor where no targets are known."""
        return self.bound + _UNKNOWN

    @property
    def words(self) -> str:
        """Which targets these are, for people: ``above 0``."""
        return f"of {self.bound:g} or more" if self.included else f"above {self.bound:g}"


DOMAINS: dict[str, Domain] = {
    "neg_mean_poisson_deviance": Domain(0.0, included=True),
    "neg_mean_gamma_deviance": Domain(0.0),
    "neg_mean_squared_log_error": Domain(-1.0),
    "neg_root_mean_squared_log_error": Domain(-1.0),
}
"""Of scikit-learn's scorers; all others are defined for every number."""


def require_inside(name: str, y: np.ndarray, *, target: str, others: Iterable[str]) -> None:
    """Refuse targets that a scorer is not defined for.

    Args:
        name: Of a scorer with a domain.
        y: Targets, (n_rows,).
        target: Name of their column.
        others: Scorers that are defined for every number, to name instead.

    Raises:
        InvalidData: names the scorer, the targets and scorers that fit them.
    """
    domain = DOMAINS[name]
    if not (outside := domain.outside(y)).any():
        return
    said = (
        f"{name!r} needs targets {domain.words}; {target!r} is not in {int(outside.sum()):,} of {len(y):,} rows "
        f"(the least is {y.min():.6g})"
    )
    fitting = [other for other, its in DOMAINS.items() if not its.outside(y).any()]
    raise InvalidData(
        f"metric: {said}.",
        hint=f"Defined for all of its values are {listing([*others, *fitting])}. Or leave these rows out.",
        details=[Detail("metric", said)],
    )

"""The clock of a request: it starts with the command, and ends with a variant that is ready to serve.

What comes before the search (imports, the ledger, a table to be stored) and
after it (bundle, scores, gate, registration, and what the caller does then)
is part of the budget, so that a person who gives a minute waits a minute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from factory.families.base import Deadline

FINISH_SHARE, FINISH_LEAST_S, FINISH_MOST_S = 0.12, 3.0, 20.0
"""Part of the budget kept for bundle, scores, gate and registration; measured 2 to 5 s for one variant."""
LEAST_SEARCH_S = 5.0
LEAST_S = 2 * LEAST_SEARCH_S
"""Seconds for search and finish, however much of the budget is gone before: imports on a busy machine leave a small one
its usable variant."""
AFTER_SHARE = 0.25
"""Part of the budget at most that is kept for what the caller does with the variant."""


@dataclass(frozen=True)
class Clock:
    """When a request's time began.

    Attributes:
        began: In seconds since 1970.
        after_s: Seconds that the caller needs when the variant is there.
        of_process: Whether that was the start of a process for this request alone; quotes learn from it how long one
            takes.
    """

    began: float
    after_s: float = 0.0
    of_process: bool = False

    @classmethod
    def now(cls) -> Clock:
        """Return the clock of a request whose time begins now."""
        return cls(time.time())

    @property
    def start_s(self) -> float | None:
        """Seconds since the process was started; None where it was not started for the request alone."""
        return round(max(time.time() - self.began, 0.0), 3) if self.of_process else None

    def deadline(self, time_s: float, *, spent_s: float = 0.0) -> Deadline:
        """Return when the variant has to be registered.

        Args:
            time_s: Of the budget.
            spent_s: That earlier attempts have spent on what is taken up from them.
        """
        until = self.began + time_s - spent_s - min(self.after_s, AFTER_SHARE * time_s)
        return Deadline(max(until, Deadline.after(LEAST_S).at))


def finish_s_of(time_s: float) -> float:
    """Return the seconds of a budget that are kept for what comes after the search."""
    return min(max(FINISH_SHARE * time_s, FINISH_LEAST_S), FINISH_MOST_S)

"""How the threads of a process share it."""

from __future__ import annotations

import sys

SWITCH_S = 0.0005
"""Between two changes of threads, for as long as somebody waits for one.

Who looks at files or at the ledger works in many short steps, and waits before
each: at Python's 5 ms a step of microseconds takes as long as forty calls.
"""


def change_often() -> None:
    """Let the threads of this process take turns every :data:`SWITCH_S`."""
    sys.setswitchinterval(SWITCH_S)

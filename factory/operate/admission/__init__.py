"""Who may start now: fair shares, guarantees, preemption, back-filling, and a reason for everybody who waits.

Pure: it knows no ledger, no cluster and no clock, so that a day can be played
through in seconds.  docs/decisions/admission.md tells the rules and why.
"""

from factory.operate.admission.decision import Decision, decide
from factory.operate.admission.reasons import HeldBack
from factory.operate.admission.terms import (
    EXEMPT_S,
    MOST_PREEMPTIONS,
    PATIENCE_S,
    PRIORITY_S,
    Capacity,
    Held,
    Preemption,
    Priority,
    Rule,
    Running,
    TeamLoad,
    Waiting,
    longest_wait_s,
)

__all__ = [
    "EXEMPT_S",
    "MOST_PREEMPTIONS",
    "PATIENCE_S",
    "PRIORITY_S",
    "Capacity",
    "Decision",
    "Held",
    "HeldBack",
    "Preemption",
    "Priority",
    "Rule",
    "Running",
    "TeamLoad",
    "Waiting",
    "decide",
    "longest_wait_s",
]

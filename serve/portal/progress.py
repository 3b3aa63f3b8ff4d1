"""How far a request is, in one bounded answer: its trials as marks of a chart, the best of them, what it took so far.

A search may have ten thousand trials.  All of them are counted; those that are
told one by one are the ones that a chart can show and a person can tell apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from factory.ledger import Attempt, Ledger, RequestRecord, TrialMark
from factory.operate.quotes import Holding, Rates
from factory.settings import Settings
from factory.spec import Document, Trial, TrialState

MOST_SCORED, MOST_UNSCORED = 1_500, 300
"""Trials that are told one by one: those that lead, the latest, and of the others an even part."""
LEADERS = 12
"""Best trials that are told with all that is known of them."""
CURVED, LOOKED = 6, 60
"""Trials with a learning curve, and how many of the best are looked through for them."""


class Mark(Document):
    """A trial as a mark in a chart."""

    number: int
    family: str
    state: TrialState
    score: float | None = Field(description="Greater is better; null of one that came to none.")


class Spent(Document):
    """What a request has taken so far, and what it is going to take."""

    held_s: float = Field(description="Seconds for which its jobs have held what they hold, up to now.")
    money: float = Field(description="What that costs by the prices of the settings, as quotes and usage count.")
    money_an_hour: float = Field(description="What its job costs for an hour; 0 where none runs.")
    currency: str
    expected_s: float | None = Field(None, description="As its quote said.")
    expected_money: float | None = Field(None, description="As its quote said.")
    promise_s: float | None = Field(None, description="Seconds after which its budget has ended it at the latest.")
    fits_s: float = Field(description="Seconds of all its trials, of its segments' too.")


class Progress(Document):
    """How far a request is. Trials are those of the pooled variant."""

    n_trials: int
    states: dict[TrialState, int] = Field(description="How many trials are in each state.")
    marks: tuple[Mark, ...] = Field(description="By number: all, or of very many those that a chart can show.")
    leading: tuple[Mark, ...] = Field(description="Trials that were the best when they ended, by number.")
    best: tuple[Trial, ...] = Field(description="With the best scores, the best first.")
    curved: tuple[Trial, ...] = Field(description="Of the best those that have a learning curve.")
    n_segments: int = Field(description="Segments that have trials of their own.")
    spent: Spent


def progress(record: RequestRecord, *, ledger: Ledger, settings: Settings, now: datetime | None = None) -> Progress:
    """Return how far a request is.

    Args:
        record: The request.
        ledger: Has its trials and attempts.
        settings: Name the prices.
        now: Up to which what runs is counted; this moment if not given.
    """
    marks = ledger.trial_marks(record.id)
    costs = ledger.trial_costs(record.id)
    best = ledger.best_trials(record.id, limit=LOOKED)
    return Progress(
        n_trials=len(marks),
        states=dict(Counter(mark.state for mark in marks)),
        marks=tuple(map(_mark, thinned(marks))),
        leading=tuple(map(_mark, _even(leading(marks), MOST_SCORED // 3))),
        best=tuple(told(trial) for trial in best[:LEADERS]),
        curved=tuple(told(trial) for trial in best if len(trial.curve) > 1)[:CURVED],
        n_segments=sum(segment != "" for segment in costs),
        spent=_spent(record, ledger.attempts(record.id), sum(costs.values()), settings, now or datetime.now(UTC)),
    )


def leading(marks: Sequence[TrialMark]) -> list[TrialMark]:
    """Return the trials that succeeded with a better score than all before them."""
    found: list[TrialMark] = []
    for mark in marks:
        better = mark.score is not None and (not found or mark.score > (found[-1].score or 0.0))
        if better and mark.state is TrialState.SUCCEEDED:
            found.append(mark)
    return found


def thinned(marks: Sequence[TrialMark]) -> list[TrialMark]:
    """Return not more trials than a chart can show: of those with a score and of those without."""
    scored = [mark for mark in marks if mark.score is not None]
    kept = _part(scored, leading(scored), MOST_SCORED)
    kept |= _part([mark for mark in marks if mark.score is None], [], MOST_UNSCORED)
    return [mark for mark in marks if mark.number in kept]


def _part(marks: Sequence[TrialMark], first: Sequence[TrialMark], most: int) -> set[int]:
    """Return the numbers of a third that lead, a third that are the latest, and an even part of all."""
    if len(marks) <= most:
        return {mark.number for mark in marks}
    third = most // 3
    parts = (_even(first, third), marks[-third:], _even(marks, third))
    return {mark.number for part in parts for mark in part}


def _even(marks: Sequence[TrialMark], most: int) -> Sequence[TrialMark]:
    """Return an even part, with the last one."""
    if len(marks) <= most:
        return marks
    return [marks[round(k * (len(marks) - 1) / (most - 1))] for k in range(most)]


def _mark(mark: TrialMark) -> Mark:
    return Mark(number=mark.number, family=mark.family, state=mark.state, score=mark.score)


def told(trial: Trial) -> Trial:
    """Return a trial as callers see it: without the folder on our disk, and without numbers that JSON does not have."""
    finite = {
        name: None
        for name in ("score", "train_score")
        if (value := getattr(trial, name)) is not None and not math.isfinite(value)
    }
    return trial.model_copy(update={"artifacts": None, **finite})


def _spent(
    record: RequestRecord, attempts: Sequence[Attempt], fits_s: float, settings: Settings, now: datetime
) -> Spent:
    rates, quote = Rates.of(settings), record.quote or {}
    held_s = money = an_hour = 0.0
    for attempt in attempts:
        hourly = Holding(cpus=attempt.cpus, gpus=attempt.gpus, memory_gb=attempt.memory_gb or 0.0).hourly(rates)
        seconds = max(((attempt.ended_at or now) - attempt.admitted_at).total_seconds(), 0.0)
        held_s, money = held_s + seconds, money + seconds * hourly / 3600
        an_hour = hourly if attempt.ended_at is None else 0.0
    return Spent(
        held_s=round(held_s, 1),
        money=round(money, 6),
        money_an_hour=an_hour,
        currency=rates.currency,
        expected_s=record.expected_s,
        expected_money=_number(quote.get("money"), "expected"),
        promise_s=_number(quote, "promise_s"),
        fits_s=round(fits_s, 3),
    )


def _number(document: Any, name: str) -> float | None:
    """Return a number of a quote as it was kept; older releases may have kept less."""
    found = document.get(name) if isinstance(document, dict) else None
    return float(found) if isinstance(found, int | float) else None

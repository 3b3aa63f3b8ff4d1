"""What earlier requests of a team took and came to, read at once.

A quote is asked for at every submission, so this is one short statement, and
two more where a request was made meanwhile; :meth:`Ledger.past_searches` would
read thousands of trials for the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import Connection, Integer, bindparam, desc, select

from factory.ledger import Ledger, schema
from factory.search.splits import AUTO_FOLDS
from factory.spec import REMADE, Budget, Recipe, RequestState, Traits, Validation

MOST_PAST = 24
"""Earlier requests that are looked at, the newest ones."""
_MADE = (RequestState.REGISTERED, RequestState.SERVING, RequestState.REJECTED)
_BEGIN, _ENDS = RequestState.PREPARING.value, (RequestState.REGISTERED.value, RequestState.REJECTED.value)

Kind = Literal["timed", "counted", "remade"]


@dataclass(frozen=True)
class Asked:
    """What of a request decides how long it takes.

    Attributes:
        kind: Searched until the time is over, until so many trials are done, or not searched at all.
        time_s: Of its budget.
        trials: Of its budget, where it counts them.
        memory_gb: Of its budget.
        n_folds: That every trial may be fitted on; 1 of a holdout.
        segmented: Whether a variant is made for each segment.
        workers: Processes that a network trains on.
    """

    kind: Kind
    time_s: float
    trials: int | None
    memory_gb: float
    n_folds: int
    segmented: bool
    workers: int

    @classmethod
    def of(cls, document: Mapping[str, Any], default: Budget, usual: Validation) -> Asked:
        """Return it of a request as it is stored; what it left open is the recipe's of today."""
        budget = document.get("budget") or default.model_dump()
        validation = document.get("validation") or usual.model_dump()
        remade, trials = document.get("making") in REMADE, budget.get("trials")
        return cls(
            kind="remade" if remade else "timed" if trials is None else "counted",
            time_s=budget["time_s"],
            trials=trials,
            memory_gb=budget["memory_gb"],
            n_folds=_N_FOLDS.get(validation["kind"]) or validation.get("folds", 1),
            segmented=document.get("segments") is not None,
            workers=(document.get("resources") or {}).get("workers", 1),
        )


_N_FOLDS = {"auto": AUTO_FOLDS, "group": AUTO_FOLDS, "holdout": 1, "time": 1}


@dataclass(frozen=True)
class PastMaking:
    """A request that was made in one attempt, with what its pooled variant reached.

    Attributes:
        request_id: Its id.
        variant: Name of the pooled variant.
        asked: What it asked for.
        traits: Of its data.
        making_s: From when its data were read to its end.
        start_s: Until then, from when its process was started; None where that is not known.
        fits_s: Seconds of the trials of its pooled search.
        metric: Of its scores; greater is better.
        score: On rows that the search had not seen.
        low: Of the score's 95 % interval.
        high: Of the same.
    """

    request_id: str
    variant: str
    asked: Asked
    traits: Traits
    making_s: float
    start_s: float | None
    fits_s: float
    metric: str
    score: float
    low: float
    high: float


_of, _at, _made, _events = schema.requests.c, schema.profiles.c, schema.variants.c, schema.events.c
# All are made once: to make a statement takes longer than the database does.
_NEWEST = (
    select(_of.id)
    .join_from(schema.requests, schema.profiles, _at.request_id == _of.id)
    .join(schema.variants, (_made.request_id == _of.id) & (_made.name == _of.variant))
    .where(_of.team == bindparam("team"), _of.recipe == bindparam("recipe"), _of.attempt == 1, _of.state.in_(_MADE))
    .order_by(desc(_of.created), desc(_of.id))
    .limit(bindparam("most", type_=Integer))
)
_MADE_BY = (
    select(_of.id, _of.variant, _of.document, _at.document.label("traits"), _made.document.label("made"))
    .join_from(schema.requests, schema.profiles, _at.request_id == _of.id)
    .join(schema.variants, (_made.request_id == _of.id) & (_made.name == _of.variant))
    .where(_of.id.in_(bindparam("ids", expanding=True)))
)
_STEPS = (
    select(_events.request_id, _events.state, _events.time, _events.payload)
    .where(_events.request_id.in_(bindparam("ids", expanding=True)))
    .where(_events.kind == "state", _events.state.in_((_BEGIN, *_ENDS)))
    .order_by(desc(_events.sequence))
)


def past_makings(ledger: Ledger, *, team: str, recipe: Recipe, limit: int = MOST_PAST) -> tuple[PastMaking, ...]:
    """Return a team's requests of a recipe (by its name) that were made in one attempt, the newest first."""
    with ledger._read() as connection:
        ids = connection.scalars(_NEWEST, {"team": team, "recipe": recipe.name, "most": limit}).all()
    return _makings(ledger, tuple(ids), recipe.budget.default, recipe.validation) if ids else ()


@lru_cache(maxsize=128)
def _makings(ledger: Ledger, ids: tuple[str, ...], budget: Budget, validation: Validation) -> tuple[PastMaking, ...]:
    """Return what is known of requests that were made, which changes no more: it is read again for other ones only."""
    with ledger._read() as connection:
        rows = {row.id: row for row in connection.execute(_MADE_BY, {"ids": ids})}
        took_s = _took_s(connection, ids)
    return tuple(
        PastMaking(
            request_id=row.id,
            variant=row.variant,
            asked=Asked.of(row.document, budget, validation),
            traits=Traits.model_validate(row.traits),
            making_s=took_s[row.id][0],
            start_s=took_s[row.id][1],
            fits_s=row.made["cost_s"],
            metric=row.made["metric"],
            score=float(row.made["score"]),
            low=float(row.made["score_low"]),
            high=float(row.made["score_high"]),
        )
        for row in (rows[one] for one in ids)
        if row.id in took_s
    )


def _took_s(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[float, float | None]]:
    """Return the seconds from PREPARING to the end of those requests that have events of both, and those before."""
    begun: dict[str, tuple[datetime, float | None]] = {}
    ended: dict[str, datetime] = {}
    for request_id, state, time, payload in connection.execute(_STEPS, {"ids": ids}):  # the first one counts
        if state == _BEGIN:
            begun[request_id] = (time, payload.get("start_s"))
        else:
            ended[request_id] = time
    took = {one: ((ended[one] - begun[one][0]).total_seconds(), begun[one][1]) for one in begun.keys() & ended.keys()}
    return {one: taken for one, taken in took.items() if taken[0] > 0}  # a clock may have been set back

"""The ledger as the factory uses it: all its parts, and the trial history."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, desc, func, insert, literal, select, tuple_, update

from factory.errors import Conflict, Detail
from factory.ledger import moments, schema
from factory.ledger.batches import Batches
from factory.ledger.claims import Claims
from factory.ledger.database import repeatable
from factory.ledger.datasets import Datasets
from factory.ledger.intake import Intake
from factory.ledger.moments import now
from factory.ledger.pages import Pages
from factory.ledger.proposals import Proposals
from factory.ledger.queue import Queue
from factory.ledger.records import PastSearch, document_json
from factory.ledger.served import ServedCalls
from factory.ledger.sessions import Sessions
from factory.ledger.usage import Usages, add_usage
from factory.ledger.wishes import Wishes
from factory.spec import Task, Traits, Trial, TrialState, Variant


class TrialMark(NamedTuple):
    """A trial as a mark in a chart: without its parameters, so that thousands are read at once."""

    number: int
    family: str
    state: TrialState
    score: float | None


class Ledger(Intake, Claims, Wishes, Queue, Proposals, Sessions, Datasets, Pages, Usages, ServedCalls, Batches):
    """Durable state of the factory; the only thing that a resume needs.

    Several processes and threads may use one ledger at once.  ``with Ledger.open(url) as ledger:`` closes it.
    """

    @repeatable
    def record_trial(self, request_id: str, trial: Trial) -> None:
        """Store a trial, or what became of it; a finished one only ever gains folds.

        Storing a finished trial again with the same content does nothing.

        Raises:
            Conflict: the trial is finished and was stored with another content.
            NotFound: there is no such request.
        """
        at = schema.trials.c
        this = (at.request_id == request_id) & (at.segment == trial.segment) & (at.number == trial.number)
        values = {
            "family": trial.family,
            "state": trial.state.value,
            "finished": trial.finished,
            # NaN is no value that every database stores; the document keeps it.
            "score": trial.score if trial.score is not None and abs(trial.score) < float("inf") else None,
            "cost_s": trial.cost_s,
            "origin": trial.origin,
            "recorded": now(),
            "document": document_json(trial),
        }
        with self._write() as connection:
            team = self._locked(connection, request_id).team
            query = select(at.finished, at.cost_s, at.document).where(this)
            known = connection.execute(query).one_or_none()
            if known is None:
                key = {"request_id": request_id, "segment": trial.segment, "number": trial.number}
                connection.execute(insert(schema.trials).values(key | values))
            elif not known.finished or _gains_folds(Trial.model_validate(known.document), trial):
                connection.execute(update(schema.trials).where(this).values(values))
            elif changed := sorted(
                field for field, value in values["document"].items() if known.document.get(field) != value
            ):
                raise Conflict(
                    f"Trial {trial.number} of request {request_id} is finished and cannot change; "
                    f"{', '.join(changed)} would.",
                    hint="Record a new trial under a new number.",
                    details=[Detail(field, "differs from what is stored") for field in changed],
                )
            else:
                return
            if trial.finished:
                spent_s = known.cost_s if known is not None and known.finished else None
                add_usage(
                    connection,
                    team,
                    f"{now():%Y-%m}",
                    trials=int(spent_s is None),
                    trial_s=trial.cost_s - (spent_s or 0.0),
                )

    @repeatable
    def trials(
        self,
        request_id: str,
        *,
        segment: str | None = None,
        after: tuple[str, int] | None = None,
        newest: bool = False,
        limit: int | None = None,
    ) -> list[Trial]:
        """Return the trials of a request ordered by segment and number, of one segment where given.

        Args:
            request_id: Whose.
            segment: Of which segment; empty is the pooled variant's, None all of them.
            after: Segment and number of the trial before the first one.
            newest: Whether the last ones come first.
            limit: Most of them; all if None.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.trials.c
        order = (at.segment.desc(), at.number.desc()) if newest else (at.segment, at.number)
        query = select(at.document).where(at.request_id == request_id).order_by(*order)
        if segment is not None:
            query = query.where(at.segment == segment)
        if after is not None:
            place, begin = tuple_(at.segment, at.number), tuple_(*map(literal, after))
            query = query.where(place < begin if newest else place > begin)
        query = query.limit(limit)
        with self._read() as connection:
            documents = connection.scalars(query).all()
            if not documents:
                self._require(connection, request_id)
        return [Trial.model_validate(document) for document in documents]

    @repeatable
    def trial_marks(self, request_id: str) -> list[TrialMark]:
        """Return all trials of a request's pooled variant by number, each with what a chart shows of it."""
        at = schema.trials.c
        query = select(at.number, at.family, at.state, at.score).where(at.request_id == request_id, at.segment == "")
        with self._read() as connection:
            rows = connection.execute(query.order_by(at.number)).all()
        return [TrialMark(row.number, row.family, TrialState(row.state), row.score) for row in rows]

    @repeatable
    def trial_costs(self, request_id: str) -> dict[str, float]:
        """Return the seconds that the trials of a request took, by segment; empty is the pooled variant's."""
        at = schema.trials.c
        query = select(at.segment, func.sum(at.cost_s)).where(at.request_id == request_id).group_by(at.segment)
        with self._read() as connection:
            return {segment: float(cost_s) for segment, cost_s in connection.execute(query)}

    @repeatable
    def best_trials(self, request_id: str, *, limit: int) -> list[Trial]:
        """Return the trials of a request's pooled variant that succeeded with the best scores, the best first."""
        at = schema.trials.c
        query = (
            select(at.document)
            .where(at.request_id == request_id, at.segment == "", at.state == TrialState.SUCCEEDED.value)
            .where(at.score.is_not(None))
            .order_by(at.score.desc(), at.number)
            .limit(limit)
        )
        with self._read() as connection:
            return [Trial.model_validate(document) for document in connection.scalars(query)]

    @repeatable
    def trials_since(self, request_id: str, since: datetime | None) -> list[tuple[datetime, Trial]]:
        """Return trials that were recorded, or changed, after a moment, with when that was, the oldest first.

        Args:
            request_id: Whose.
            since: The moment; all if None.
        """
        at = schema.trials.c
        query = select(at.recorded, at.document).where(at.request_id == request_id)
        if since is not None:
            query = query.where(at.recorded > since)
        query = query.order_by(at.recorded, at.segment, at.number)
        with self._read() as connection:
            return [(row.recorded, Trial.model_validate(row.document)) for row in connection.execute(query)]

    @repeatable
    def last_trial_at(self, request_id: str) -> datetime | None:
        """Return when a trial of a request was last recorded; None where there is none."""
        at = schema.trials.c
        query = select(func.max(at.recorded, type_=moments.UtcDateTime())).where(at.request_id == request_id)
        with self._read() as connection:
            found: datetime | None = connection.scalar(query)
        return found

    @repeatable
    def record_traits(self, request_id: str, traits: Traits) -> None:
        """Store what a request's data look like, in place of what was stored before.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.profiles.c
        row = {"request_id": request_id, "task": traits.task.value, "recorded": now()}
        with self._write() as connection:
            self._locked(connection, request_id)
            connection.execute(delete(schema.profiles).where(at.request_id == request_id))
            connection.execute(insert(schema.profiles).values(row | {"document": document_json(traits)}))

    @repeatable
    def n_rows(self, request_id: str) -> int | None:
        """Return how many rows a request's data have; None where they were not looked at yet."""
        at = schema.profiles.c
        with self._read() as connection:
            document = connection.scalar(select(at.document).where(at.request_id == request_id))
        return None if document is None else Traits.model_validate(document).n_rows

    @repeatable
    def past_searches(
        self, *, team: str, recipe: str, task: Task, limit: int = 20, most_trials: int = 1000
    ) -> list[PastSearch]:
        """Return a team's searches of one recipe (by its name) and task that have finished trials, the newest first.

        Args:
            team: Whose requests; those of other teams are theirs alone.
            recipe: Name of the recipe, of any digest.
            task: What was predicted.
            limit: Searches at most.
            most_trials: Trials of each, the first ones.
        """
        at, of = schema.profiles.c, schema.requests.c
        finished = select(schema.trials.c.request_id).where(schema.trials.c.finished, schema.trials.c.segment == "")
        query = (
            select(at.request_id)
            .join_from(schema.profiles, schema.requests, at.request_id == of.id)
            .where(of.team == team, of.recipe == recipe, at.task == task.value, at.request_id.in_(finished))
            .order_by(desc(at.recorded), desc(at.request_id))
            .limit(limit)
        )
        with self._read() as connection:
            return [_past_search(connection, found, "", most_trials) for found in connection.scalars(query).all()]

    @repeatable
    def past_search(self, request_id: str, *, segment: str = "", most_trials: int = 1000) -> PastSearch:
        """Return what a request's search left, of one segment where given.

        Raises:
            NotFound: there is no such request.
        """
        with self._read() as connection:
            self._require(connection, request_id)
            return _past_search(connection, request_id, segment, most_trials)


def _past_search(connection: Connection, request_id: str, segment: str, most_trials: int) -> PastSearch:
    request = connection.execute(select(schema.requests).where(schema.requests.c.id == request_id)).one()
    profile = connection.execute(
        select(schema.profiles).where(schema.profiles.c.request_id == request_id)
    ).one_or_none()
    at = schema.trials.c
    trials = connection.scalars(
        select(at.document)
        .where(at.request_id == request_id, at.segment == segment, at.finished)
        .order_by(at.number)
        .limit(most_trials)
    )
    made = [
        variant
        for document in connection.scalars(
            select(schema.variants.c.document).where(schema.variants.c.request_id == request_id)
        )
        if (variant := Variant.model_validate(document)).segment == segment
    ]
    return PastSearch(
        request_id=request_id,
        variant=made[0].name if made else request.variant,
        recorded=request.created if profile is None else profile.recorded,
        traits=None if profile is None else Traits.model_validate(profile.document),
        trials=tuple(Trial.model_validate(document) for document in trials),
        blend=made[0].blend if made else {},
        kind=made[0].kind if made else "cold",
    )


def _gains_folds(known: Trial, trial: Trial) -> bool:
    """Whether a trial is a known one with more folds, those it had scored as they were."""
    # Not strict: trials from before the race over folds do not name theirs.
    before = dict(zip(known.folds, known.fold_scores, strict=False))
    after = dict(zip(trial.folds, trial.fold_scores, strict=False))
    same = (known.family, known.parameters, known.seed) == (trial.family, trial.parameters, trial.seed)
    return same and bool(before) and before.items() < after.items()

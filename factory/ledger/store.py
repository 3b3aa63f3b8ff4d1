"""The ledger as the factory uses it: requests, claims and variants, and the trial history."""

from __future__ import annotations

from sqlalchemy import desc, insert, select, update

from factory.errors import Conflict, Detail
from factory.ledger import schema
from factory.ledger.catalog import Catalog
from factory.ledger.claims import Claims
from factory.ledger.records import PastTrial
from factory.ledger.requests import document_json
from factory.ledger.schema import now
from factory.spec import Trial


class Ledger(Claims, Catalog):
    """Durable state of the factory; the only thing that a resume needs.

    Several processes and threads may use one ledger at once.  ``with Ledger.open(url) as ledger:`` closes it.
    """

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
            self._locked(connection, request_id)
            known = connection.execute(select(at.finished, at.document).where(this)).one_or_none()
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

    def trials(self, request_id: str, *, segment: str | None = None) -> list[Trial]:
        """Return the trials of a request ordered by segment and number, of one segment where given.

        Raises:
            NotFound: there is no such request.
        """
        at = schema.trials.c
        query = select(at.document).where(at.request_id == request_id).order_by(at.segment, at.number)
        if segment is not None:
            query = query.where(at.segment == segment)
        with self._read() as connection:
            documents = connection.scalars(query).all()
            if not documents:
                self._require(connection, request_id)
        return [Trial.model_validate(document) for document in documents]

    def trial_history(self, *, recipe: str | None = None, limit: int = 1000) -> list[PastTrial]:
        """Return finished trials of all requests, the newest first, of one recipe (by its name) where given."""
        at, of = schema.trials.c, schema.requests.c
        query = (
            select(at.request_id, of.variant, of.recipe, at.recorded, at.document.label("trial"))
            .join_from(schema.trials, schema.requests, at.request_id == of.id)
            .where(at.finished)
            .order_by(desc(at.recorded), desc(at.request_id), at.segment, desc(at.number))
            .limit(limit)
        )
        if recipe is not None:
            query = query.where(of.recipe == recipe)
        with self._read() as connection:
            return [PastTrial.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def _gains_folds(known: Trial, trial: Trial) -> bool:
    """Whether a trial is a known one with more folds, those it had scored as they were."""
    before = dict(zip(known.folds, known.fold_scores, strict=True))
    after = dict(zip(trial.folds, trial.fold_scores, strict=True))
    same = (known.family, known.parameters, known.seed) == (trial.family, trial.parameters, trial.seed)
    return same and bool(before) and before.items() < after.items()

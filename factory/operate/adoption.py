"""Jobs that came past the controller: ``ray job submit -- factory run request.yaml``.

Such a job has what the controller's own jobs have: its request is in the
ledger, its team's quota counts, and it can be watched and cancelled.  It tells
the ledger its name, takes next to nothing while it waits, and goes on when the
controller has admitted it, with what it was admitted with.  Where it is killed
before that, the controller makes the request with a job of its own.

Whoever may submit a job to Ray can run any code on the cluster; the token that
is asked for here says whose request it is, it does not lock that door.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from factory.errors import Detail, InvalidRequest, StorageFault
from factory.ledger import Attempt, Ledger, Refusal, RequestRecord
from factory.ledger.records import ADOPTED, UNDER_WAY
from factory.operate.controller import LEAD
from factory.operate.intake import Intake
from factory.settings import Settings
from factory.spec import Actor

log = logging.getLogger(__name__)

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray tells a job's entrypoint what it is (``ray._private.runtime_env.constants``, Ray 2.60)."""
LOOK_S = 1.0
"""Between two looks at whether the job was admitted: one query, and a start within a second of the decision."""
AWAY_S = 600.0
"""For which the ledger's database may be away while a job waits."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Admitted:
    """A request that may be made now.

    Attributes:
        request_id: The request.
        settings: This process's, with what the request was admitted with.
    """

    request_id: str
    settings: Settings


def own_job(settings: Settings, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the submission id of the Ray job that this process is; None where it is none, or the controller's.

    >>> own_job(Settings(), {JOB_CONFIG: '{"metadata": {"job_submission_id": "raysubmit_7Hx"}}'})
    'raysubmit_7Hx'
    """
    try:
        metadata = json.loads(environment.get(JOB_CONFIG, "{}")).get("metadata") or {}
        job = metadata.get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return str(job) if job and settings.attempt is None else None


def is_led(ledger: Ledger) -> bool:
    """Return whether a controller leads, which then says who may start."""
    return ledger.leader(LEAD) is not None


def adopt(
    document: object,
    job: str,
    *,
    ledger: Ledger,
    settings: Settings,
    token: str | None,
    tell: Tell,
    pause: Callable[[float], None] = time.sleep,
) -> Admitted | RequestRecord:
    """Put a job's request into the queue, and wait until the controller lets it in.

    Args:
        document: The request.
        job: Submission id of this process's job.
        ledger: The state.
        settings: Of this process.
        token: Says whose job it is; needed where the factory has any token.
        tell: Called with why it waits, whenever that changes.
        pause: Lets seconds pass.

    Returns:
        What may be made now; or the request where it came to an end meanwhile, by another job or without one.

    Raises:
        InvalidRequest: the document, with one detail for each problem, or the token is not valid.
        NotFound: the recipe does not exist.
        StorageFault: the ledger was away for ten minutes.
    """
    team = document.get("team") if isinstance(document, Mapping) else None
    actor = _actor(team, job, ledger=ledger, token=token)
    record = Intake(ledger, settings).submit(document, door="job", by=actor, job=job).record
    found = _admission(record.id, ledger, tell, pause)
    if isinstance(found, RequestRecord):
        return found
    granted = {"granted_cpus": max(int(found.cpus), 1), "attempt": found.submission_id}
    return Admitted(record.id, settings.model_copy(update=granted))


def _actor(team: object, job: str, *, ledger: Ledger, token: str | None) -> Actor:
    """Return who submits for a team, as the token tells.

    Raises:
        InvalidRequest: it tells nobody who may.
    """
    origin = f"job {job}"[:64]
    if token is None:
        if ledger.tokens(revoked=True):
            raise _refused(
                "This job says nobody whose request it is.",
                hint='Submit it with a token: --runtime-env-json \'{"env_vars": {"FACTORY_TOKEN": "..."}}\'.',
            )
        return Actor(who=f"job:{job}"[:255], origin=origin)
    principal = ledger.authenticate(token)
    if isinstance(principal, Refusal):
        raise _refused(principal.value, hint="An operator makes new ones: factory tokens create.")
    if not principal.may("submit") or principal.request_id is not None:
        raise _refused(f"{principal.name} may not submit requests.", hint="It needs the scope submit.")
    if isinstance(team, str) and not principal.sees(team):
        raise _refused(
            f"{principal.name} is of team {principal.team}, and the request of team {team[:80]}.",
            hint="Use a token of the request's team.",
        )
    return principal.actor(origin)


def _refused(message: str, *, hint: str) -> InvalidRequest:
    return InvalidRequest(f"FACTORY_TOKEN: {message}", hint=hint, details=[Detail("FACTORY_TOKEN", message)])


def _admission(request_id: str, ledger: Ledger, tell: Tell, pause: Callable[[float], None]) -> Attempt | RequestRecord:
    """Wait for an attempt of this job, or for the end of the request."""
    told, answered = "", time.monotonic()
    while True:
        try:
            record = ledger.request(request_id)
            if record.state not in UNDER_WAY:
                return record
            attempt = next((a for a in ledger.attempts(request_id) if a.ended_at is None), None)
            if attempt is not None and attempt.kind == ADOPTED:
                return attempt
            sentence, answered = _sentence(record, attempt, led=is_led(ledger)), time.monotonic()
        except StorageFault as fault:
            if time.monotonic() > answered + AWAY_S:
                raise
            sentence = fault.message
        if sentence != told:
            tell(f"Request {request_id}: {sentence}")
        told = sentence
        pause(LOOK_S)


def _sentence(record: RequestRecord, attempt: Attempt | None, *, led: bool) -> str:
    if attempt is not None:
        return f"The controller makes it with a job of its own, {attempt.submission_id}; this one waits for its end."
    if not led:
        return "No controller runs; waiting for one."
    return record.held.sentence if record.held is not None else "Waiting to be admitted."

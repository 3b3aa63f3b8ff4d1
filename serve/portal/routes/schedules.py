"""Schedules: when something that is declared by one would be due."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from factory.errors import Detail, InvalidRequest
from factory.parsing import parse
from factory.spec import Document
from factory.spec.schedule import Schedule
from serve.portal.documents import DueTimes
from serve.portal.identity import Reader
from serve.portal.openapi import ALWAYS, refusals
from serve.portal.replies import reply
from serve.portal.routes import API

router = APIRouter(prefix=f"{API}/schedules", tags=["batches"], responses=refusals(*ALWAYS))


class DueQuery(Document):
    """A schedule, and how many of its times are wanted."""

    cron: str | None = Field(None, max_length=200, description="Minute, hour, day, month and weekday, as cron's.")
    every: str | None = Field(None, max_length=16, description="Instead of cron: as 15m, 6h or 1d.")
    time_zone: str = Field("UTC", max_length=64, description="That cron's times are of.")
    limit: int = Field(5, ge=1, le=50, description="The next ones.")


@router.get("/due", response_model=DueTimes)
def show_due_times(_: Reader, asked: Annotated[DueQuery, Query()]) -> Response:
    """Tell when a schedule is due next, without declaring anything by it."""
    wanted = asked.model_dump(exclude={"limit"})
    try:
        schedule = parse(Schedule, wanted, what="schedule")
        schedule.require_zone()
    except InvalidRequest as error:
        raise _by_field(error) from error
    except ValueError as error:
        raise _by_field(
            InvalidRequest("", hint="Mend the named field and try again.", details=[Detail("", str(error))])
        ) from error
    return reply(DueTimes(items=tuple(islice(schedule.times(datetime.now(UTC)), asked.limit))))


def _by_field(error: InvalidRequest) -> InvalidRequest:
    """Return an error of a schedule with the parameter that it is about as its field."""
    details = []
    for detail in error.details:
        field, _, problem = detail.message.partition("; received ")[0].partition(": ")
        known = field in ("cron", "every", "time_zone")
        details.append(Detail(field, problem) if known else Detail("", detail.message.partition("; received ")[0]))
    message = " ".join(f"{detail.field}: {detail.message}.".removeprefix(": ") for detail in details)
    return InvalidRequest(message, hint=error.hint, details=details)

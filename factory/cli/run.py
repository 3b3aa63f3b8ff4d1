"""Make what a request asks for, or go on with one that was interrupted.

In a job that was submitted to Ray past the controller, a request's file is
first put into the queue, and made when the controller lets it in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from factory.cli._clock import own_clock
from factory.cli._console import Json, ProgressLine, came_to, end, err, only_ours_on_stdout, opened_ledger, out
from factory.ledger import Ledger
from factory.operate.adoption import Admitted, adopt, is_led, own_job
from factory.operate.inprocess import InProcess
from factory.operate.job_log import job_log
from factory.pipeline import Outcome, Progress, produce
from factory.remote.credentials import given_token
from factory.search.clock import Clock
from factory.search.plan import read_document
from factory.settings import Settings
from factory.variants.mlflow_away import send_once

PLUGIN = typer.Typer()

PATIENCE_S = 60.0
"""For which a driver waits for the ledger's database, which may be started again meanwhile."""


@PLUGIN.command()
def run(
    request: Annotated[str, typer.Argument(help="A request's file (YAML, JSON), or the id of one that was submitted.")],
    json: Json = False,
) -> None:
    """Make what a request asks for, or go on with one that was interrupted."""
    with opened_ledger(patience_s=PATIENCE_S) as (ledger, settings):
        if Path(request).suffix not in (".yaml", ".yml", ".json"):
            work_on(
                ledger.request(request).id,
                ledger=ledger,
                settings=settings,
                json=json,
                clock=own_clock(of_process=True),
            )
        document = read_document(Path(request), what="request")
        job = own_job(settings)
        if job is not None and is_led(ledger):
            _as_job(document, job, ledger=ledger, settings=settings, json=json)
        record = InProcess(ledger, settings).submit(document)
        work_on(record.id, ledger=ledger, settings=settings, json=json, clock=own_clock(of_process=True))


def work_on(request_id: str, *, ledger: Ledger, settings: Settings, json: bool, clock: Clock | None = None) -> NoReturn:
    """Produce a request with its progress shown, print what came of it, and leave with its exit code.

    Args:
        request_id: The request.
        ledger: Has it.
        settings: Of this process.
        json: Whether the outcome is printed as JSON.
        clock: When its time began; now where not given.
    """
    send_once()
    if not json:
        out.print(f"Request {request_id}")
    with (
        ProgressLine(quiet=json) as line,
        only_ours_on_stdout(),
        job_log(request_id, ledger=ledger, settings=settings) as note,
    ):

        def listen(progress: Progress) -> None:
            line(progress)
            note(progress)

        result = produce(request_id, ledger=ledger, settings=settings, listen=listen, clock=clock)
    _end(result, json=json)


def _as_job(document: object, job: str, *, ledger: Ledger, settings: Settings, json: bool) -> NoReturn:
    """Wait until the controller lets this job's request in, then produce it."""

    def tell(sentence: str) -> None:
        err.print(sentence, markup=False, soft_wrap=True)

    found = adopt(document, job, ledger=ledger, settings=settings, token=given_token(), tell=tell)
    if isinstance(found, Admitted):
        work_on(found.request_id, ledger=ledger, settings=found.settings, json=json)
    _end(came_to(found, ledger.variants(request_id=found.id)), json=json)


def _end(result: Outcome, *, json: bool) -> NoReturn:
    shown = [f"variants show {variant.name}" for variant in result.variants[:1]]
    end(result, json=json, following=[*shown, "deployments list"])

"""Make what a request asks for, or go on with one that was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.cli._console import Json, ProgressLine, end, only_ours_on_stdout, opened_ledger, out
from factory.ledger import Ledger
from factory.pipeline import produce, submit
from factory.search.plan import read_document
from factory.settings import Settings

PLUGIN = typer.Typer()


@PLUGIN.command()
def run(
    request: Annotated[str, typer.Argument(help="A request's file (YAML, JSON), or the id of one that was submitted.")],
    json: Json = False,
) -> None:
    """Make what a request asks for, or go on with one that was interrupted."""
    with opened_ledger() as (ledger, settings):
        request_id = request
        if Path(request).suffix in (".yaml", ".yml", ".json"):
            document = read_document(Path(request), what="request")
            request_id = submit(document, ledger=ledger, settings=settings).id
        work_on(ledger.request(request_id).id, ledger=ledger, settings=settings, json=json)


def work_on(request_id: str, *, ledger: Ledger, settings: Settings, json: bool) -> None:
    """Produce a request with its progress shown, print what came of it, and leave with its exit code."""
    if not json:
        out.print(f"Request {request_id}")
    with ProgressLine(quiet=json) as line, only_ours_on_stdout():
        result = produce(request_id, ledger=ledger, settings=settings, listen=line)
    end(result, json=json, following=[f"variants show {result.variants[0].name}", "deployments list"])

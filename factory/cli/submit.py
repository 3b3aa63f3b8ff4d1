"""Check a request and put it into the queue; --wait makes it here and now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.cli._console import Json, opened_ledger, out, print_json
from factory.cli.run import work_on
from factory.pipeline import submit as submit_request
from factory.search.plan import read_document

PLUGIN = typer.Typer()


@PLUGIN.command()
def submit(
    request: Annotated[Path, typer.Argument(help="The request as YAML or JSON.")],
    wait: Annotated[bool, typer.Option("--wait", help="Make the variant in this process and wait for it.")] = False,
    json: Json = False,
) -> None:
    """Check a request and put it into the queue; --wait makes it here and now."""
    with opened_ledger() as (ledger, settings):
        document = read_document(request, what="request")
        record = submit_request(document, ledger=ledger, settings=settings)
        if wait:
            work_on(record.id, ledger=ledger, settings=settings, json=json)
        if json:
            print_json(record)
        else:
            out.print(f"Request {record.id} for {record.request.variant} is {record.state}.")
            out.print(f"Next: factory run {record.id}")

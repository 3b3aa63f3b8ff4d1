"""List, show, cancel and retry requests; read their events and trials."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli._console import Json, opened_ledger, out, print_json, table
from factory.spec import RequestState

PLUGIN = typer.Typer(no_args_is_help=True, help="List, show, cancel and retry requests; read their events and trials.")

Id = Annotated[str, typer.Argument(help="Id of a request, or the beginning of it.")]


@PLUGIN.command("list")
def list_requests(
    team: Annotated[str | None, typer.Option(help="Of one team only.")] = None,
    state: Annotated[RequestState | None, typer.Option(help="In one state only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the newest first.")] = 50,
    json: Json = False,
) -> None:
    """List requests, the newest first."""
    with opened_ledger() as (ledger, _):
        records = ledger.requests(team=team, state=state, limit=limit)
    if json:
        print_json(records)
        return
    rows = [
        (r.id, r.request.variant, r.request.recipe, r.state, f"{r.created:%Y-%m-%d %H:%M}", r.attempt) for r in records
    ]
    table("Requests", ("id", "variant", "recipe", "state", "received (UTC)", "attempts."), rows)


@PLUGIN.command()
def show(request: Id, json: Json = False) -> None:
    """Show a request: its document, state, trials and variants."""
    with opened_ledger() as (ledger, _):
        record = ledger.request(request)
        trials, variants = ledger.trials(record.id), ledger.variants(request_id=record.id)
    if json:
        print_json({"request": record, "trials": trials, "variants": variants})
        return
    out.print(f"[bold]{record.id}[/bold]  {record.request.variant}  {record.state}  attempt {record.attempt}")
    if record.error is not None:
        out.print(f"{'Your' if record.fault == 'user' else 'Our'} fault: {record.error.message} {record.error.hint}")
    rows = [
        (
            t.segment,
            t.number,
            t.family,
            t.state,
            "" if t.score is None else f"{t.score:.5g}",
            len(t.folds) or "",
            f"{t.cost_s:.1f}",
            t.reason,
        )
        for t in trials
    ]
    table("Trials", ("segment", "trial.", "family", "state", "score.", "folds.", "cost, s.", "reason"), rows)
    table("Variants", ("variant", "gate"), [(f"{v.name}/{v.version}", v.state) for v in variants])


@PLUGIN.command()
def logs(request: Id, json: Json = False) -> None:
    """Show what happened to a request, event by event."""
    with opened_ledger() as (ledger, _):
        events = ledger.events(ledger.request(request).id)
    if json:
        print_json(events)
        return
    for event in events:
        out.print(f"{event.time:%H:%M:%S}  {event.state:<11} {event.kind:<10} {event.message}", markup=False)


@PLUGIN.command()
def cancel(request: Id) -> None:
    """Cancel a request that has not ended; its finished trials are kept."""
    with opened_ledger() as (ledger, _):
        record = ledger.request(request)
        # The claim is refused while a driver lives, and taken from one that was killed.
        with ledger.claim(record.id):
            ledger.advance(record.id, RequestState.CANCELLED, "Cancelled by hand.")
    out.print(f"Request {record.id} is cancelled.")


@PLUGIN.command()
def retry(request: Id) -> None:
    """Order again what a failed, rejected or cancelled request asked for; makes a new request that names the old."""
    with opened_ledger() as (ledger, _):
        old = ledger.request(request)
        new = ledger.create_request(old.request, retry_of=old.id)
        ledger.reach(new.id, RequestState.QUEUED, "Waiting for a driver.")
    out.print(f"Request {new.id} tries {old.id} again. Next: factory run {new.id}")

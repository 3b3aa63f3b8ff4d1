"""List, show, cancel and retry requests; read their events and trials."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli._backend import Local, opened
from factory.cli._console import Json, out, print_json, table
from factory.ledger.records import Priority
from factory.spec import RequestState

PLUGIN = typer.Typer(no_args_is_help=True, help="List, show, cancel and retry requests; read their events and trials.")

Id = Annotated[str, typer.Argument(help="Id of a request, or the beginning of it.")]


@PLUGIN.command("list")
def list_requests(
    team: Annotated[str | None, typer.Option(help="Of one team only.")] = None,
    state: Annotated[RequestState | None, typer.Option(help="In one state only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the newest first.")] = 50,
    json: Json = False,
    local: Local = False,
) -> None:
    """List requests, the newest first."""
    with opened(local) as factory:
        found = list(factory.requests(team=team, states=(state,) if state else (), most=limit))
    if json:
        print_json(found)
        return
    rows = [(r.id, r.variant, r.recipe, r.state, f"{r.created:%Y-%m-%d %H:%M}", r.attempt) for r in found]
    table("Requests", ("id", "variant", "recipe", "state", "received (UTC)", "attempts."), rows)


@PLUGIN.command()
def show(request: Id, json: Json = False, local: Local = False) -> None:
    """Show a request: its document, state, trials and variants."""
    with opened(local) as factory:
        record = factory.request(request)
        trials, variants = list(factory.trials(record.id)), list(factory.variants(request_id=record.id))
    if json:
        print_json({"request": record, "trials": trials, "variants": variants})
        return
    out.print(f"[bold]{record.id}[/bold]  {record.request.variant}  {record.state}  attempt {record.attempt}")
    if record.error is not None:
        out.print(f"{'Your' if record.fault == 'user' else 'Our'} fault: {record.error.message} {record.error.hint}")
    elif record.held is not None and not record.ended:
        out.print(record.held.sentence, markup=False)
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
def logs(request: Id, json: Json = False, local: Local = False) -> None:
    """Show what happened to a request, event by event."""
    with opened(local) as factory:
        events = list(factory.events(factory.request(request).id))
    if json:
        print_json(events)
        return
    for event in events:
        out.print(f"{event.time:%H:%M:%S}  {event.state:<11} {event.kind:<10} {event.message}", markup=False)


@PLUGIN.command()
def cancel(
    request: Id,
    why: Annotated[str, typer.Option(help="The reason; it is kept with the request.")] = "",
    json: Json = False,
    local: Local = False,
) -> None:
    """Cancel a request that has not ended; its finished trials are kept."""
    with opened(local) as factory:
        record = factory.cancel(request, why=why)
        led = factory.is_led
    if json:
        print_json(record)
    elif record.state is RequestState.CANCELLED:
        out.print(f"Request {record.id} is cancelled.")
    elif led or record.driver is None:
        out.print(f"Request {record.id} is to be cancelled; the controller stops its job.")
    else:
        out.print(
            f"Request {record.id} is to be cancelled: process {record.driver.pid} on {record.driver.host} works on it, "
            "and stops when the trials that run have ended."
        )


@PLUGIN.command()
def priority(
    request: Id,
    level: Annotated[Priority, typer.Argument(help="high, normal or low.")],
    why: Annotated[str, typer.Option(help="The reason; it is kept with the request.")] = "",
    json: Json = False,
    local: Local = False,
) -> None:
    """Put a waiting request before, or behind, others that wait."""
    with opened(local) as factory:
        record = factory.set_priority(request, level, why=why)
    if json:
        print_json(record)
    else:
        out.print(f"Request {record.id} waits with priority {record.priority}.")


@PLUGIN.command()
def retry(request: Id, json: Json = False, local: Local = False) -> None:
    """Order again what a failed, rejected or cancelled request asked for; makes a new request that names the old."""
    with opened(local) as factory:
        new = factory.retry(request)
        following = next_of(new.id, led=factory.is_led)
    if json:
        print_json(new)
    else:
        out.print(f"Request {new.id} tries {new.retry_of} again. Next: {following}")


def next_of(request_id: str, *, led: bool) -> str:
    """Return the command that follows when a request is in the queue."""
    return f"factory requests show {request_id}" if led else f"factory run {request_id}"

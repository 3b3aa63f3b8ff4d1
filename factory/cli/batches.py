"""Declare, show and run batches: rows that a variant predicts by a schedule, or when asked to."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli._backend import Backend, Local, opened
from factory.cli._console import Json, out, print_json, table
from factory.errors import Detail, InvalidRequest
from factory.ledger import Batch, BatchRun

PLUGIN = typer.Typer(
    no_args_is_help=True,
    help="Declare, show and run batches: rows that a variant predicts by a schedule, or when asked to.",
)

Name = Annotated[str, typer.Argument(help="team.name of a batch.")]


@PLUGIN.command("list")
def list_batches(
    team: Annotated[str | None, typer.Option(help="Of one team.")] = None, json: Json = False, local: Local = False
) -> None:
    """List batches with their last runs."""
    with opened(local) as factory:
        batches = factory.batches(team=team)
    if json:
        print_json(list(batches))
        return
    columns = ("batch", "variant", "when", "next (UTC)", "last run", "rows.", "ended (UTC)")
    table("Batches", columns, [_row(batch) for batch in batches])


@PLUGIN.command()
def create(
    name: Name,
    variant: Annotated[str, typer.Option(help="team.name, team.name@alias or team.name/version.")],
    data: Annotated[
        str | None, typer.Option(help="Rows: a Parquet, CSV or Arrow file, a folder or a pattern; absolute.")
    ] = None,
    upload: Annotated[str | None, typer.Option(help="Instead: digest of an uploaded table.")] = None,
    cron: Annotated[
        str | None, typer.Option(help="When: minute hour day month weekday, as '30 4 * * mon-fri'.")
    ] = None,
    time_zone: Annotated[str, typer.Option(help="That cron's times are of.")] = "UTC",
    every: Annotated[str | None, typer.Option(help="Instead of cron: as 15m, 6h or 1d.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column that the predictions have as well; may be repeated.")
    ] = None,
    keep_runs: Annotated[int, typer.Option(help="Ended runs that are kept, with output and log.")] = 30,
    hours: Annotated[float, typer.Option(help="That a run may take at most.")] = 12.0,
    json: Json = False,
    local: Local = False,
) -> None:
    """Declare a batch; without --cron and --every it runs when asked to."""
    team, dot, short = name.partition(".")
    if not dot:
        raise InvalidRequest(
            f"name: {name!r} is not team.name.",
            hint="Write the team before it, as growth.nightly.",
            details=[Detail("name", "has no team")],
        )
    when = {"cron": cron, "every": every, "time_zone": time_zone}
    document = {
        "team": team,
        "name": short,
        "variant": variant,
        "path": data,
        "upload": upload,
        "keep": keep or [],
        "keep_runs": keep_runs,
        "hours": hours,
        "schedule": None if cron is None and every is None else when,
    }
    with opened(local) as factory:
        batch = factory.create_batch(document)
    if json:
        print_json(batch)
    else:
        out.print(f"{batch.name} is declared. {_when(batch)}", markup=False)


@PLUGIN.command()
def show(name: Name, json: Json = False, local: Local = False) -> None:
    """Show a batch and its runs."""
    with opened(local) as factory:
        batch, runs = factory.batch(name), factory.batch_runs(name)
    if json:
        print_json({"batch": batch, "runs": list(runs)})
        return
    wish = batch.wish
    what = "" if wish is None else f"{wish.path or f'upload {wish.upload}'} by {wish.variant}. "
    out.print(f"{batch.name}: {what}{_when(batch)}", markup=False)
    columns = ("run.", "due (UTC)", "by", "state", "version", "rows.", "folder, or what went wrong")
    table("Runs", columns, [_run(run) for run in runs])


@PLUGIN.command()
def run(name: Name, json: Json = False, local: Local = False) -> None:
    """Start a run now; one runs at a time."""
    with opened(local) as factory:
        started, is_led = factory.run_batch(name), factory.is_led
    if json:
        print_json(started)
        return
    out.print(f"Run {started.number} of {name} writes to {started.folder}.", markup=False)
    out.print("" if is_led else "No controller runs, so it waits: `factory up` starts one.")
    out.print(f"Next: factory batches show {name}", markup=False)


@PLUGIN.command()
def logs(
    name: Name,
    number: Annotated[int | None, typer.Option("--run", help="Number of the run; the last one if empty.")] = None,
    local: Local = False,
) -> None:
    """Print what a run has said so far."""
    with opened(local) as factory:
        typer.echo(factory.batch_log(name, number or _last(factory, name)), nl=False)


@PLUGIN.command()
def pause(name: Name, json: Json = False, local: Local = False) -> None:
    """Let the schedule of a batch rest; a run that is under way goes on."""
    _enable(name, False, json=json, local=local)


@PLUGIN.command()
def resume(name: Name, json: Json = False, local: Local = False) -> None:
    """Let the schedule of a batch count again, from now on."""
    _enable(name, True, json=json, local=local)


@PLUGIN.command()
def delete(name: Name, local: Local = False) -> None:
    """Forget a batch and its runs; what they have written stays where it is."""
    with opened(local) as factory:
        factory.delete_batch(name)
    out.print(f"{name} is deleted; what its runs have written stays.", markup=False)


def _enable(name: str, enabled: bool, *, json: bool, local: bool) -> None:
    with opened(local) as factory:
        batch = factory.enable_batch(name, enabled)
    if json:
        print_json(batch)
    else:
        out.print(f"{batch.name}: {_when(batch)}", markup=False)


def _last(factory: Backend, name: str) -> int:
    last = factory.batch(name).last
    if last is None:
        raise InvalidRequest(f"{name} has not run yet.", hint=f"`factory batches run {name}` starts a run.")
    return last.number


def _when(batch: Batch) -> str:
    if batch.wish is None or batch.problem:
        return f"It cannot run: {batch.problem}"
    schedule = batch.wish.schedule
    if schedule is None:
        return "It runs when asked to."
    if not batch.enabled:
        return f"It is paused ({schedule.sentence})."
    due = "never again" if batch.next_due is None else f"{batch.next_due:%Y-%m-%d %H:%M} UTC"
    return f"It runs {schedule.sentence}, next {due}."


def _row(batch: Batch) -> tuple[object, ...]:
    wish, last = batch.wish, batch.last
    when = "when asked" if wish is None or wish.schedule is None else wish.schedule.sentence
    when = batch.problem or when
    due = "" if batch.next_due is None else f"{batch.next_due:%Y-%m-%d %H:%M}"
    ran = ("", "", "") if last is None else (last.state, "" if last.rows is None else f"{last.rows:,}", _ended(last))
    return batch.name, "" if wish is None else wish.variant, when, due if batch.enabled else "paused", *ran


def _run(run: BatchRun) -> tuple[object, ...]:
    rows = "" if run.rows is None else f"{run.rows:,}"
    told = run.message if run.state == "failed" else run.folder
    return run.number, f"{run.due:%Y-%m-%d %H:%M}", run.started_by, run.state, run.variant or "", rows, told


def _ended(run: BatchRun) -> str:
    return "" if run.ended_at is None else f"{run.ended_at:%Y-%m-%d %H:%M}"

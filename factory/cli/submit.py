"""Check a request and put it into the queue; --wait follows it to its end, --quote tells what it would take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.progress import Progress

from factory.cli._backend import Local, opened
from factory.cli._console import REFUSED, Json, err, out, print_json, table
from factory.cli._following import follow
from factory.cli.requests import next_of
from factory.cli.run import work_on
from factory.operate.inprocess import InProcess
from factory.operate.quotes import Interval, Quote
from factory.remote import Client
from factory.search.plan import read_document
from factory.spec import duration

PLUGIN = typer.Typer()


@PLUGIN.command()
def submit(
    request: Annotated[Path, typer.Argument(help="The request as YAML or JSON.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; where no controller runs, make it in this process.")
    ] = False,
    quote: Annotated[
        bool, typer.Option("--quote", help="Tell what it would take, cost and come to; nothing is stored.")
    ] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="Over HTTP: send the table that dataset names, and order from that.")
    ] = False,
    json: Json = False,
    local: Local = False,
) -> None:
    """Check a request and put it into the queue; --wait follows it to its end, --quote tells what it would take."""
    document = read_document(request, what="request")
    with opened(local) as factory:
        if upload and isinstance(factory, Client):
            document = _with_upload(document, factory)
        if quote:
            _tell(factory.quote(document), json=json)
        record = factory.submit(document)
        if wait and isinstance(factory, InProcess) and not factory.is_led:
            work_on(record.id, ledger=factory.ledger, settings=factory.settings, json=json)
        if wait:
            follow(record, factory, json=json)
        following = next_of(record.id, led=factory.is_led)
    if json:
        print_json(record)
    else:
        out.print(f"Request {record.id} for {record.request.variant} is {record.state}.")
        out.print(f"Next: {following}")


def _with_upload(document: object, client: Client) -> object:
    """Return a request whose table lies with the factory; anything else is left to be judged there."""
    dataset = document.get("dataset") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(dataset, dict):
        return document
    field = next((name for name in ("path", "entities") if isinstance(dataset.get(name), str)), None)
    if field is None:
        return document
    team = document.get("team")
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task(f"Sending {dataset[field]}", total=None)
        kept = client.upload(
            dataset[field],
            team=team if isinstance(team, str) else None,
            progress=lambda sent, total: bar.update(task, completed=sent, total=total),
        )
    rest = {name: value for name, value in dataset.items() if name != field}
    return {**document, "dataset": {**rest, "upload": kept.digest}}


def _tell(quote: Quote, *, json: bool) -> NoReturn:
    """Print a quote, and leave: as refused where the request would be."""
    if json:
        print_json(quote)
    else:
        _print(quote)
    raise typer.Exit(REFUSED if quote.problems else 0)


def _print(quote: Quote) -> None:
    score = quote.score
    gpu_s = quote.gpu_s if quote.gpu_s is not None and quote.gpu_s.high else None
    told: list[tuple[str, Interval | None, Callable[[float], str]]] = [
        ("wall time", quote.wall_s, duration),
        ("processor time", quote.used_cpu_s, duration),
        ("CPU-seconds held", quote.cpu_s, "{:,.0f}".format),
        ("GPU-seconds held", gpu_s, "{:,.0f}".format),
        (f"cost, {quote.currency}", quote.money, "{:,.2f}".format),
        (f"score, {score.metric}" if score else "score", score.score if score else None, "{:.4g}".format),
    ]
    rows = [(what, *map(shown, (i.expected, i.low, i.high))) for what, i, shown in told if i is not None]
    if rows:
        table("Quote", ("what", "expected.", "low.", "high."), rows)
        sentences = [f"{quote.coverage:.0%} of requests end between low and high. {quote.basis}", quote.score_basis]
        if quote.promise_s is not None:
            sentences.append(f"Whatever happens, its work has ended after {duration(quote.promise_s)}.")
        if quote.place is not None:
            sentences.append(f"In the queue: number {quote.place.position}, {quote.place.sentence}.")
        for sentence in (*sentences, *quote.notes):
            out.print(sentence, markup=False)
    if quote.problems:
        table("What would stop it", ("field", "problem"), [(p.field, p.message) for p in quote.problems])
    else:
        out.print("Nothing is stored or started. Next: the same without --quote.")

"""Make a variant from a table in this process: no controller, no queue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from factory.cli._console import (
    Json,
    ProgressLine,
    exit_code,
    leaderboard,
    only_ours_on_stdout,
    opened_ledger,
    out,
    outcome,
    print_json,
)
from factory.data.tables import check_target, read_table, write_table
from factory.errors import Detail, InvalidRequest
from factory.pipeline import produce, submit
from factory.search.metric import Metric
from factory.spec import NAME
from factory.variants.bundle import Bundle
from factory.variants.delivery import predict_table
from factory.variants.registry import Registry

PLUGIN = typer.Typer()


@PLUGIN.command()
def fit(
    train: Annotated[str, typer.Option(help="Table to learn from: Parquet, CSV or Arrow, a path or fsspec URL.")],
    target: Annotated[str, typer.Option(help="Column that is to be predicted.")],
    task: Annotated[str | None, typer.Option(help="binary, multiclass or regression; inferred if empty.")] = None,
    recipe: Annotated[str, typer.Option(help="How it is made; `factory recipes list`.")] = "tabular-auto",
    budget: Annotated[
        str | None, typer.Option(help="Wall time, as 60s, 5m or 1h; the recipe's default if empty.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Rows to predict; goes with --out.")] = None,
    out_file: Annotated[str | None, typer.Option("--out", help="File for the predictions of --test.")] = None,
    seed: Annotated[int, typer.Option(help="The only source of randomness.")] = 0,
    name: Annotated[str | None, typer.Option(help="team.name of the variant; from the file's name if empty.")] = None,
    metric: Annotated[str | None, typer.Option(help="scikit-learn scorer; the recipe's if empty.")] = None,
    json: Json = False,
) -> None:
    """Make a variant from a table in this process: no controller, no queue."""
    if (test is None) != (out_file is None):
        raise InvalidRequest("--test and --out go together.", hint="Name both, or neither.")
    team, _, short = (name or f"local.{_slug(train)}").partition(".")
    if name is not None and not (re.fullmatch(NAME, team) and re.fullmatch(NAME, short)):
        raise InvalidRequest(
            f"--name {name!r} is not the name of a variant.",
            hint="Write team.name: two words of lower-case letters, digits, '_' and '-', a letter first: growth.churn.",
            details=[Detail("--name", f"{name!r} is not team.name")],
        )
    document: dict[str, object] = {
        "team": team,
        "name": short,
        "recipe": recipe,
        "dataset": {"path": train, "target": target, **({"task": task} if task else {})},
        "seed": seed,
        **({"metric": metric} if metric else {}),
        **({"budget": {"time_s": budget}} if budget else {}),
    }
    with opened_ledger() as (ledger, settings):
        if test is not None and out_file is not None:
            # Told now rather than after the search.
            check_target(out_file)
            read_table(test, max_rows=settings.max_rows)
        record = submit(document, ledger=ledger, settings=settings)
        with ProgressLine(quiet=json) as line, only_ours_on_stdout():
            result = produce(record.id, ledger=ledger, settings=settings, listen=line)
        variant = result.variants[0]
        if test is not None and out_file is not None:
            folder = Registry(settings).local_bundle(variant.name, variant.version)
            bundle = Bundle.load(folder, digest=variant.bundle_digest)
            write_table(predict_table(bundle, test, max_rows=settings.max_rows), Path(out_file))
    if json:
        print_json({"request": result.request_id, "state": result.state, "variant": variant})
    else:
        leaderboard(result.results[0], Metric(variant.metric, variant.task))
        outcome(result)
        if out_file:
            out.print(f"Predictions of {test} are in {out_file}")
        out.print(f"Next: factory variants show {variant.name}   factory predict {variant.name} --data FILE")
    raise typer.Exit(exit_code(result.state))


def _slug(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-").lstrip("0123456789-")[:60] or "table"

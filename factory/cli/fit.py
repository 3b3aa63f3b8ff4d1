"""Make a variant from a table in this process: no controller, no queue."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from factory import client
from factory.cli._clock import own_clock
from factory.cli._console import Json, ProgressLine, end, only_ours_on_stdout
from factory.data.tables import check_target, read_table, write_table
from factory.errors import Detail, InvalidRequest
from factory.search.cluster import local_cpus
from factory.settings import Settings, load_settings
from factory.spec import NAME
from factory.variants.delivery import predict_table

PLUGIN = typer.Typer()

PREDICTED_S, PREDICTED_ROW_S = 0.2, 1e-4
"""What predictions take of the budget beside the reading: at least, and a row of thirty models (bench.batch has one of
LightGBM's predict 254,000 rows a second)."""


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
    making: Annotated[
        str, typer.Option(help="auto, cold, warm_start, refit or incremental; the last two make --parent again.")
    ] = "auto",
    parent: Annotated[
        str | None, typer.Option(help="Variant that it comes from: team.name, team.name@alias or team.name/version.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a variant from a table in this process: no controller, no queue."""
    if (test is None) != (out_file is None):
        raise InvalidRequest("--test and --out go together.", hint="Name both, or neither.")
    if name is not None and not all(re.fullmatch(NAME, word) for word in name.partition(".")[::2]):
        raise InvalidRequest(
            f"--name {name!r} is not the name of a variant.",
            hint="Write team.name: two words of lower-case letters, digits, '_' and '-', a letter first: growth.churn.",
            details=[Detail("--name", f"{name!r} is not team.name")],
        )
    settings = load_settings()
    settings.prepare_home()
    after_s = 0.0
    if test is not None and out_file is not None:
        # Told now rather than after the search.
        check_target(out_file)
        after_s = _predicted_in_s(test, settings)
    with ProgressLine(quiet=json) as line, only_ours_on_stdout():
        fitted = client.fit(
            train,
            target,
            name=name or f"local.{_slug(train)}",
            task=task,
            recipe=recipe,
            budget_s=budget,
            metric=metric,
            making=making,
            scoring=test,
            parent=parent,
            seed=seed,
            settings=settings,
            listen=line,
            clock=own_clock(after_s=after_s),
        )
    notes = []
    if test is not None and out_file is not None:
        write_table(
            predict_table(fitted.bundle, test, max_rows=settings.max_rows, threads=local_cpus(settings)), Path(out_file)
        )
        notes = [f"Predictions of {test} are in {out_file}"]
    made = fitted.variant.name
    end(fitted.outcome, json=json, notes=notes, following=[f"variants show {made}", f"predict {made} --data FILE"])


def _predicted_in_s(test: str, settings: Settings) -> float:
    """Read the rows to predict, and return the seconds that it takes to read them again and to predict them."""
    began = time.monotonic()
    rows = read_table(test, max_rows=settings.max_rows)
    return time.monotonic() - began + PREDICTED_S + len(rows) * PREDICTED_ROW_S


def _slug(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-").lstrip("0123456789-")[:60] or "table"

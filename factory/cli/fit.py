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
from factory.errors import Detail, InvalidRequest, listing
from factory.search.cluster import local_cpus
from factory.settings import Settings, load_settings
from factory.spec import NAME, ColumnType
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
    weights: Annotated[str | None, typer.Option(help="Column that says how much each row counts.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column that stays whatever is found; may be repeated.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Column that is no feature; may be repeated.")] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Corrects a type, as COLUMN=categorical; may be repeated.")
    ] = None,
    drift: Annotated[
        str | None, typer.Option(help="warn or drop: of columns that differ altogether in later rows; warn if empty.")
    ] = None,
    families: Annotated[
        list[str] | None, typer.Option("--family", help="One of the recipe's families; may be repeated.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Column whose groups never stand on both sides of a split.")] = None,
    time: Annotated[str | None, typer.Option(help="Column by which the latest rows validate.")] = None,
    gap: Annotated[int | None, typer.Option(help="Rows left out before those; goes with --time.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Most milliseconds that a row may take.")] = None,
    size_mb: Annotated[float | None, typer.Option(help="Most MB that the variant may take.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="GB that all processes may take.")] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Lets a column pass that gives the target away and is kept.")
    ] = False,
    segments: Annotated[str | None, typer.Option(help="Column; each of its values gets a variant as well.")] = None,
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
    validation = _validation(group, time, gap)
    corrected = _types(types or [])
    asked = {"latency_ms": latency_ms, "size_mb": size_mb}
    ceilings = {name: most for name, most in asked.items() if most is not None}
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
            weights=weights,
            keep=keep or (),
            drop=drop or (),
            types=corrected,
            drift=drift,
            families=families,
            validation=validation,
            gates={"allow_leakage": True} if allow_leakage else None,
            ceilings=ceilings,
            segments={"by": segments} if segments else None,
            memory_gb=memory_gb,
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


def _validation(group: str | None, time: str | None, gap: int | None) -> dict[str, object] | None:
    """Return the validation that the options ask for; None leaves it to the recipe."""
    if group is not None and time is not None:
        raise InvalidRequest("--group and --time exclude each other.", hint="Name the one that new rows differ by.")
    if gap is not None and time is None:
        raise InvalidRequest(f"--gap {gap} goes with --time.", hint="Name the column that orders the rows.")
    if group is not None:
        return {"kind": "group", "column": group}
    if time is None:
        return None
    # A gap that is not named is the recipe's.
    named: dict[str, object] = {} if gap is None else {"gap": gap}
    return {"kind": "time", "column": time, **named}


def _types(corrections: list[str]) -> dict[str, str]:
    pairs = [correction.rpartition("=") for correction in corrections]
    if wrong := [said for said, (column, _, _) in zip(corrections, pairs, strict=True) if not column]:
        raise InvalidRequest(
            f"--type {wrong[0]!r} is not COLUMN=TYPE.",
            hint=f"Types: {listing(ColumnType)}.",
            details=[Detail("--type", f"{wrong[0]!r} is not COLUMN=TYPE")],
        )
    return {column: kind for column, _, kind in pairs}


def _predicted_in_s(test: str, settings: Settings) -> float:
    """Read the rows to predict, and return the seconds that it takes to read them again and to predict them."""
    began = time.monotonic()
    rows = read_table(test, max_rows=settings.max_rows)
    return time.monotonic() - began + PREDICTED_S + len(rows) * PREDICTED_ROW_S


def _slug(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-").lstrip("0123456789-")[:60] or "table"

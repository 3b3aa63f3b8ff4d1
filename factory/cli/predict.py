"""Predict the rows of a table with a registered variant; into a folder any number of rows, part by part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from factory.cli._console import Json, opened_ledger, out, print_json, table
from factory.data.tables import suffix_kind, write_table
from factory.errors import InvalidRequest
from factory.search.cluster import local_cpus
from factory.variants.bundle import Bundle
from factory.variants.delivery import predict_table
from factory.variants.reference import resolve
from factory.variants.registry import Registry

PLUGIN = typer.Typer()


@PLUGIN.command()
def predict(
    name: Annotated[str, typer.Argument(help="team.name, team.name@alias or team.name/version.")],
    data: Annotated[str, typer.Option(help="Rows to predict: Parquet, CSV or Arrow; into a folder also many files.")],
    out_file: Annotated[
        str | None,
        typer.Option("--out", help="File for the predictions, or a folder for any number; printed if empty."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column that predictions in a folder have as well; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Predict the rows of a table with a registered variant; into a folder any number of rows, part by part."""
    if out_file is not None and suffix_kind(Path(out_file).name) is None:
        kept = [word for name in keep or () for word in ("--keep", name)]
        command = [sys.executable, "-m", "serve.batch", name, "--data", data, "--out", out_file, *kept]
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    if keep:
        raise InvalidRequest("keep: It goes with a folder.", hint="Name a folder with --out, which has no suffix.")
    with opened_ledger() as (ledger, settings):
        variant = resolve(name, ledger=ledger)
        folder = Registry(settings).bundle_folder(variant)
        bundle = Bundle.load(folder, digest=variant.bundle_digest)
        predictions = predict_table(bundle, data, max_rows=settings.max_rows, threads=local_cpus(settings))
    if out_file is not None:
        write_table(predictions, Path(out_file))
        out.print(f"{len(predictions):,} predictions of {variant.name}/{variant.version} are in {out_file}")
    elif json:
        print_json({"variant": f"{variant.name}/{variant.version}", "predictions": predictions.to_dict("records")})
    else:
        shown = predictions.head(20)
        title = f"{variant.name}/{variant.version}: first {len(shown)} of {len(predictions):,} rows"
        table(title, [f"{c}." for c in shown.columns], [[f"{v:.6g}" for v in row] for row in shown.to_numpy()])

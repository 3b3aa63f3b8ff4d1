"""Predict the rows of a table with a registered variant, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.cli._console import Json, opened_ledger, out, print_json, table
from factory.data.tables import write_table
from factory.search.cluster import local_cpus
from factory.variants.bundle import Bundle
from factory.variants.delivery import predict_table
from factory.variants.reference import resolve
from factory.variants.registry import Registry

PLUGIN = typer.Typer()


@PLUGIN.command()
def predict(
    name: Annotated[str, typer.Argument(help="team.name, team.name@alias or team.name/version.")],
    data: Annotated[str, typer.Option(help="Rows to predict: Parquet, CSV or Arrow.")],
    out_file: Annotated[str | None, typer.Option("--out", help="File for the predictions; printed if empty.")] = None,
    json: Json = False,
) -> None:
    """Predict the rows of a table with a registered variant, in this process."""
    with opened_ledger() as (ledger, settings):
        variant = resolve(name, ledger=ledger)
        folder = Registry(settings).local_bundle(variant.name, variant.version)
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

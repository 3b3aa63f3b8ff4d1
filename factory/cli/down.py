"""Stop what `factory up` started, and nothing else."""

from __future__ import annotations

import typer

from factory.cli._console import Json, out, print_json
from factory.errors import listing
from factory.operate.stack import control
from factory.settings import load_settings

PLUGIN = typer.Typer()


@PLUGIN.command()
def down(json: Json = False) -> None:
    """Stop what `factory up` started, and nothing else.

    Jobs that run are broken off; their finished trials are kept, and they go on after the next start.
    """
    stopped = control.stop(load_settings().root)
    if json:
        print_json({"stopped": list(stopped)})
        return
    out.print(f"Stopped: {listing(stopped)}." if stopped else "No stack of this FACTORY_HOME runs.")

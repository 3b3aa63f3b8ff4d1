"""Say what is installed, free, reachable and wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli._console import Json, out, print_json, table
from factory.operate.doctor import examine
from factory.settings import load_settings

PLUGIN = typer.Typer()
MARKS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "wrong": "[red]wrong[/red]"}


@PLUGIN.command()
def doctor(
    records: Annotated[
        bool, typer.Option("--records", help="Read the events of all requests, not only the newest.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what is installed, free, reachable and wrong; exit code 1 if anything is wrong."""
    checks = examine(load_settings(), every_record=records)
    wrong = [check for check in checks if check.state == "wrong"]
    if json:
        print_json(checks)
    else:
        table("Doctor", ("", "what", "found"), [(MARKS[c.state], c.name, c.message) for c in checks])
        for check in wrong:
            out.print(f"{check.name}: {check.message} {check.hint}")
        if not wrong:
            out.print("Nothing is wrong.")
    raise typer.Exit(1 if wrong else 0)

"""Start Ray, MLflow, the controller, the portal and the predictor, and keep them running."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from factory.cli._console import Json, err, out, print_json, table
from factory.cli._first_token import first_token
from factory.ledger import Ledger
from factory.operate.stack import control
from factory.operate.stack.records import ServiceState, now
from factory.operate.stack.services import declared
from factory.settings import Settings, load_settings

PLUGIN = typer.Typer()


@PLUGIN.command()
def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and print all logs as JSON: for systemd and containers.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="A service that runs elsewhere; can be given several times.")
    ] = None,
    json: Json = False,
) -> None:
    """Start Ray, MLflow, the controller, the portal and the predictor, and keep them running.

    The command ends when all are well, and leaves a supervisor behind that starts them again when they die.
    """
    settings = load_settings()
    settings.prepare_home()
    services = declared(settings, without=without or ())
    # Made or upgraded here, before several processes want to at once.
    Ledger.open(settings.ledger).close()
    if foreground:
        control.run(settings.root, services, echo=True, on_ready=lambda: _keep(_first_token(settings), settings.root))
        return
    control.start(settings.root, services, progress=_tell)
    token = _first_token(settings)
    if json:
        print_json({"services": list(control.look(settings.root).services), "token": token})
        return
    table("The stack runs", ("service", "address"), [(service.name, service.url or "-") for service in services])
    if token is not None:
        out.print(f"Admin token, shown only now: {token}")
    out.print("Next: factory status   factory down")


def _tell(service: ServiceState) -> None:
    if service.started is not None:
        err.print(f"{service.name:<11} {service.state:<9} {(now() - service.started).total_seconds():5.1f} s")


def _first_token(settings: Settings) -> str | None:
    """Return an operator's token where the ledger has no token at all."""
    with Ledger.open(settings.ledger) as ledger:
        return first_token(ledger, by="factory up")


def _keep(token: str | None, root: Path) -> str:
    """Leave the first token in a file of the operator's own: what is printed here ends up in a journal."""
    if token is None:
        return ""
    path = root / "admin_token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{token}\n")
    return f"The first admin token is in {path}: take it, and delete the file"

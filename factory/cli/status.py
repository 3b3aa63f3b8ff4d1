"""Show how each service of the stack is; exit code 1 if one is not well."""

from __future__ import annotations

import typer

from factory.cli._console import Json, out, print_json, table
from factory.operate.stack import control
from factory.operate.stack.control import ServiceStatus
from factory.settings import load_settings
from factory.spec import duration

PLUGIN = typer.Typer()
MARKS = {"healthy": "[green]healthy[/green]", "starting": "[yellow]starting[/yellow]"}


@PLUGIN.command()
def status(json: Json = False) -> None:
    """Show how each service of the stack is; exit code 1 if one is not well."""
    root = load_settings().root
    services, supervised = control.look(root), control.supervised(root)
    if json:
        print_json({"supervised": supervised, "services": list(services)})
    elif not services:
        out.print("No stack of this FACTORY_HOME was started. Start one: factory up")
    else:
        columns = ("service", "state", "pid.", "ports.", "up for.", "memory.", "restarts.", "address")
        table("The stack", columns, [_row(service) for service in services])
        for service in services:
            if service.state != "healthy":
                out.print(f"{service.name}: {service.message or service.state}. Its log: {service.log}", markup=False)
        if not supervised and any(service.pid for service in services):
            out.print("Nobody supervises these any more: factory down, then factory up.")
    well = supervised and all(service.state == "healthy" for service in services)
    raise typer.Exit(0 if well else 1)


def _row(service: ServiceStatus) -> tuple[object, ...]:
    return (
        service.name,
        MARKS.get(service.state, f"[red]{service.state}[/red]"),
        service.pid,
        ", ".join(map(str, service.ports)),
        "" if service.uptime_s is None else duration(service.uptime_s),
        "" if service.memory_mb is None else f"{service.memory_mb:,.0f} MB",
        service.restarts or "",
        service.url,
    )

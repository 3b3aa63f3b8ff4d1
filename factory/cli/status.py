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
    stack = control.look(load_settings().root)
    if json:
        print_json(stack)
    elif not any(service.pid for service in stack.services) and not stack.supervised:
        fault = f" The last start failed: {stack.fault}." if stack.fault else ""
        out.print(f"No stack of this FACTORY_HOME runs.{fault} Start it: factory up", markup=False)
    else:
        columns = ("service", "state", "pid.", "ports.", "up for.", "memory.", "restarts.", "address")
        table("The stack", columns, [_row(service) for service in stack.services])
        for service in stack.services:
            if service.state != "healthy":
                out.print(f"{service.name}: {service.message or service.state}. Its log: {service.log}", markup=False)
        if not stack.supervised:
            out.print("Nobody supervises these any more: factory down, then factory up.")
    raise typer.Exit(0 if stack.well else 1)


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

"""List what is served; start and stop the predictor."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from factory.cli._console import Json, opened_ledger, out, plain, print_json, table
from factory.errors import Conflict
from factory.operate.deployments import running_predictor, start_predictor, stop_predictor
from factory.spec import DeploymentWish, RequestState
from factory.variants.reference import resolve
from factory.variants.registry import Registry

PLUGIN = typer.Typer(no_args_is_help=True, help="List what is served; start and stop the predictor.")


@PLUGIN.command("list")
def list_deployments(json: Json = False) -> None:
    """List what is served, and where."""
    with opened_ledger() as (ledger, settings):
        deployments, running = ledger.deployments(), running_predictor(settings)
    address = running.url if running is not None else None
    if json:
        print_json({"predictor": address, "deployments": deployments})
        return
    out.print(f"Predictor: {address or 'not running; start it with `factory deployments start`'}")
    rows = [(d.name, d.version, d.as_, d.percent, f"{d.updated:%Y-%m-%d %H:%M}") for d in deployments]
    table("Deployments", ("variant", "version.", "as", "percent.", "since (UTC)"), rows)


@PLUGIN.command("set")
def set_deployment(
    name: Annotated[str, typer.Argument(help="team.name, team.name@alias or team.name/version.")],
    as_: Annotated[Literal["champion", "challenger"], typer.Option("--as", help="How it is served.")] = "champion",
    why: Annotated[str, typer.Option(help="The reason; it is kept in the alias ledger.")] = "Set by hand.",
) -> None:
    """Serve a version as champion or challenger."""
    with opened_ledger() as (ledger, settings):
        variant = resolve(name, ledger=ledger)
        if variant.state == "rejected" and as_ == "champion" and ledger.alias(variant.name, as_) != variant.version:
            raise Conflict(
                f"{variant.name}/{variant.version} was turned down by its gate.",
                hint="Serve it as challenger, or make it champion with a reason: factory variants promote --override.",
            )
        ledger.set_alias(variant.name, as_, variant.version, who="command line", why=why)
        Registry(settings).set_alias(variant.name, as_, variant.version)
        ledger.set_deployment(variant.name, DeploymentWish.model_validate({"as": as_}), version=variant.version)
    out.print(f"{variant.name}/{variant.version} is served as {as_}.")


@PLUGIN.command()
def start(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; FACTORY_SERVE_PORT if empty, 0 takes a free one.")
    ] = None,
    json: Json = False,
) -> None:
    """Start the predictor and wait until it answers."""
    with opened_ledger() as (ledger, settings):
        running = start_predictor(settings, port=port)
        for deployment in ledger.deployments():
            made_by = ledger.request(ledger.variant(deployment.name, deployment.version).request_id)
            if made_by.state is RequestState.REGISTERED:
                ledger.reach(made_by.id, RequestState.SERVING, f"Served at {running.url}/variants/{deployment.name}.")
    if json:
        print_json({**plain({"url": running.url, "pid": running.pid, "log": running.log})})
        return
    out.print(f"The predictor answers at {running.url} (pid {running.pid}, log {running.log}).")
    out.print(f"Next: curl -s {running.url}/v2/models/NAME   factory deployments stop")


@PLUGIN.command()
def stop() -> None:
    """Stop the predictor and everything it started."""
    with opened_ledger() as (_, settings):
        stopped = stop_predictor(settings)
    out.print("The predictor is stopped." if stopped else "No predictor of this FACTORY_HOME runs.")

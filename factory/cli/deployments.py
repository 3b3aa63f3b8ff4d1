"""List what is served; start and stop the predictor."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from factory.cli._backend import Local, opened
from factory.cli._console import Json, opened_ledger, out, plain, print_json, table
from factory.cli._first_token import first_token
from factory.errors import Detail, InvalidRequest
from factory.operate.deployments import start_predictor, stop_predictor
from factory.spec import DeploymentWish, RequestState

PLUGIN = typer.Typer(no_args_is_help=True, help="List what is served; start and stop the predictor.")


@PLUGIN.command("list")
def list_deployments(json: Json = False, local: Local = False) -> None:
    """List what is served, and where."""
    with opened(local) as factory:
        serving = factory.deployments()
    if json:
        print_json(serving)
        return
    out.print(f"Predictor: {serving.predictor or 'not running; start it with `factory deployments start`'}")
    rows = [(d.name, d.version, d.as_, d.percent, f"{d.updated:%Y-%m-%d %H:%M}") for d in serving.deployments]
    table("Deployments", ("variant", "version.", "as", "percent.", "since (UTC)"), rows)


@PLUGIN.command("set")
def set_deployment(
    name: Annotated[str, typer.Argument(help="team.name, team.name@alias or team.name/version.")],
    as_: Annotated[
        Literal["champion", "challenger", "canary", "shadow", "none"],
        typer.Option("--as", help="How it is served; none takes it out of traffic."),
    ] = "champion",
    percent: Annotated[
        float | None, typer.Option(help="Percent of the requests, above 0 and below 100; a canary's.")
    ] = None,
    why: Annotated[str, typer.Option(help="The reason; the history of the deployment keeps it.")] = "Set by hand.",
    local: Local = False,
) -> None:
    """Serve a version as champion, challenger, canary or shadow, or take it out of traffic."""
    wish = _wish(as_, percent)
    with opened(local) as factory:
        variant = factory.deploy(name, wish, why=why)
    told = {
        "none": "is out of traffic",
        "canary": f"is served as canary to {percent:g} % of the calls" if percent else "",
    }.get(as_, f"is served as {as_}")
    out.print(f"{variant.name}/{variant.version} {told}.")


def _wish(as_: str, percent: float | None) -> DeploymentWish:
    if as_ == "canary" and percent is None:
        message = "A canary needs a part of the requests."
    elif as_ != "canary" and percent is not None:
        message = f"{percent:g} goes with --as canary, not with --as {as_}."
    elif percent is not None and not 0 < percent < 100:
        message = f"{percent:g} is not above 0 and below 100."
    else:
        return DeploymentWish.model_validate({"as": as_, "percent": percent})
    raise InvalidRequest(
        f"--percent: {message}",
        hint="For example: factory deployments set team.name/2 --as canary --percent 10.",
        details=[Detail("percent", message)],
    )


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
        token = first_token(ledger, by="factory deployments start")
        for deployment in ledger.deployments():
            made_by = ledger.request(ledger.variant(deployment.name, deployment.version).request_id)
            if made_by.state is RequestState.REGISTERED:
                ledger.reach(made_by.id, RequestState.SERVING, f"Served at {running.url}/variants/{deployment.name}.")
    if json:
        about = {"url": running.url, "grpc": running.grpc, "pid": running.pid, "log": running.log}
        print_json({**plain(about), "token": token})
        return
    out.print(
        f"The predictor answers at {running.url}, for gRPC at {running.grpc} (pid {running.pid}, log {running.log})."
    )
    stop_by = "factory down" if running.of_stack else "factory deployments stop"
    if token is not None:
        out.print(f"Admin token, shown only now: {token}")
    out.print(f'Next: curl -s -H "Authorization: Bearer $FACTORY_TOKEN" {running.url}/v2/models/NAME   {stop_by}')


@PLUGIN.command()
def stop() -> None:
    """Stop the predictor and everything it started."""
    with opened_ledger() as (_, settings):
        stopped = stop_predictor(settings)
    out.print("The predictor is stopped." if stopped else "No predictor of this FACTORY_HOME runs.")

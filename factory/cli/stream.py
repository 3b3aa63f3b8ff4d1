"""Answer the messages of a topic, send dead letters again, describe the topics, or send rows as messages."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal, NoReturn

import typer

PLUGIN = typer.Typer(
    no_args_is_help=True,
    help="Answer the messages of a topic, send dead letters again, describe the topics, or send rows as messages.",
)

Name = Annotated[str, typer.Argument(help="team.name, team.name@alias, team.name/version, or a pattern as 'team.*'.")]
From = Annotated[str, typer.Option("--from", help="Topic of the messages.")]
To = Annotated[str | None, typer.Option(help="Topic of the answers; the messages' with .predictions if empty.")]
Dead = Annotated[str | None, typer.Option(help="Topic of what cannot be answered; with .dead if empty.")]
Group = Annotated[str | None, typer.Option(help="Consumers that share the messages; named by the variant if empty.")]


@PLUGIN.command()
def run(
    name: Name,
    from_: From,
    to: To = None,
    dead: Dead = None,
    group: Group = None,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Messages that are answered together at most.")] = 256,
    idle: Annotated[
        float, typer.Option(min=1, help="Seconds after which another consumer gets what one has not answered.")
    ] = 60.0,
) -> None:
    """Answer the messages of a topic with a variant, until it is stopped."""
    _become("run", name, _from=from_, to=to, dead=dead, group=group, batch=batch, idle=idle)


@PLUGIN.command()
def replay(
    from_: Annotated[str, typer.Option("--from", help="Topic of the dead letters.")],
    to: Annotated[
        str | None, typer.Option(help="Topic that gets them; that of the letters without .dead if empty.")
    ] = None,
) -> None:
    """Send the dead letters that are there now to their topic again."""
    _become("replay", _from=from_, to=to)


@PLUGIN.command()
def describe(name: Name, from_: From, to: To = None, dead: Dead = None) -> None:
    """Print the AsyncAPI document of the topics of a variant."""
    _become("describe", name, _from=from_, to=to, dead=dead)


@PLUGIN.command()
def send(
    data: Annotated[str, typer.Option(help="Rows: Parquet, CSV or Arrow.")],
    to: Annotated[str, typer.Option(help="Topic of the messages.")],
    key: Annotated[str | None, typer.Option(help="Column whose value is a message's id; left out of its row.")] = None,
    as_: Annotated[
        Literal["record", "entity"], typer.Option("--as", help="Whether rows hold columns, or keys of entities.")
    ] = "record",
) -> None:
    """Send the rows of a table as messages, one each."""
    _become("send", data=data, to=to, key=key, **{"as": as_})


def _become(command: str, *words: str, **options: object) -> NoReturn:
    """Go on as ``python -m serve.stream``, so that signals reach it."""
    named = [(name.lstrip("_"), value) for name, value in options.items() if value is not None]
    told = [word for name, value in named for word in (f"--{name}", str(value))]
    os.execv(sys.executable, [sys.executable, "-m", "serve.stream", command, *words, *told])  # noqa: S606

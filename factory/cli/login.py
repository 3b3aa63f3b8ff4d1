"""Remember a factory's address and a token for it, for this user only."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from factory.cli._console import Json, err, out, print_json
from factory.remote import Client
from factory.remote.credentials import Login, checked_url, in_clear, write_login

PLUGIN = typer.Typer()


@PLUGIN.command()
def login(
    url: Annotated[str, typer.Argument(help="Address of the portal, as https://factory.example.com.")],
    json: Json = False,
) -> None:
    """Remember a factory's address and a token for it, for this user only.

    The token is asked for, or read from standard input; it is tried before it is stored.
    """
    address = checked_url(url)
    if in_clear(address):
        err.print("Not encrypted: whoever is on the way can read the token. Use https:// where you can.", markup=False)
    token = _token()
    with Client(address, token) as client:
        who = client.whoami()
    path = write_login(Login(address, token))
    if json:
        print_json({"url": address, "who": who, "file": str(path)})
        return
    of = "all teams" if who.team is None else f"team {who.team}"
    out.print(f"Logged in to {address} as {who.name}: {of}, {', '.join(sorted(who.scopes))}.", markup=False)
    out.print(f"Kept in {path}. Commands use it from now on; --local uses this home, `factory logout` forgets it.")


def _token() -> str:
    """Return the token that was typed without being shown, or the first line of what is piped in."""
    if sys.stdin.isatty():
        return str(typer.prompt("Token", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()

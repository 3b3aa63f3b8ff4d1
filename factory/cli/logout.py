"""Forget the factory that `factory login` remembers; the token itself stays good until it is revoked."""

from __future__ import annotations

import typer

from factory.cli._console import Json, out, print_json
from factory.remote.credentials import forget_login

PLUGIN = typer.Typer()


@PLUGIN.command()
def logout(json: Json = False) -> None:
    """Forget the factory that `factory login` remembers; the token itself stays good until it is revoked."""
    login = forget_login()
    if json:
        print_json({"url": login.url if login is not None else None})
    elif login is None:
        out.print("Nobody was logged in.")
    else:
        out.print(f"The login to {login.url} is forgotten. `factory tokens revoke` ends a token for everybody.")

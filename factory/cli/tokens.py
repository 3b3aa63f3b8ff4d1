"""Create, list, rotate and revoke tokens; a secret is shown once."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from factory.cli._backend import Local, opened
from factory.cli._console import Json, out, print_json, table
from factory.cli.teams import known_scopes
from factory.errors import Detail, InvalidRequest
from factory.ledger import IssuedToken
from factory.spec import SCOPES

PLUGIN = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke tokens; a secret is shown once.")

Id = Annotated[str, typer.Argument(help="Id of a token, as `factory tokens list` shows it.")]


@PLUGIN.command()
def create(
    name: Annotated[str, typer.Argument(help="For people to know it by.")],
    scope: Annotated[list[str], typer.Option(help=f"{', '.join(SCOPES)}; several are allowed.")],
    team: Annotated[str | None, typer.Option(help="Whose it is.")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="Of no team: it sees all of them.")] = False,
    expires: Annotated[str, typer.Option(help="As 12h, 90d, 2027-01-31, or never.")] = "90d",
    variants: Annotated[
        str | None, typer.Option(help="With --scope predict alone: only variants like this, as 'growth.churn*'.")
    ] = None,
    json: Json = False,
    local: Local = False,
) -> None:
    """Make a token for a team, and show its secret: only now."""
    if (team is None) != operator:
        raise InvalidRequest(
            "--team: a token is either of one team or of no team.",
            hint="Name --team growth, for example; or --operator for one that sees all teams.",
            details=[Detail("--team", "is needed, unless --operator is given")],
        )
    until = _moment(expires)
    with opened(local) as factory:
        issued = factory.issue_token(name, team=team, scopes=known_scopes(scope), expires=until, variants=variants)
    _show(issued, json)


@PLUGIN.command("list")
def list_tokens(
    team: Annotated[str | None, typer.Option(help="Of one team only.")] = None,
    revoked: Annotated[bool, typer.Option("--revoked", help="Also those that were revoked.")] = False,
    json: Json = False,
    local: Local = False,
) -> None:
    """List tokens, the newest first; secrets are not kept."""
    with opened(local) as factory:
        tokens = factory.tokens(team=team, revoked=revoked)
    if json:
        print_json(list(tokens))
        return
    rows = [
        (
            t.id,
            t.name,
            t.team or "(all teams)",
            ", ".join(t.scopes) + (f" {t.variants}" if t.variants else ""),
            f"{t.created:%Y-%m-%d}",
            f"{t.expires:%Y-%m-%d %H:%M}" if t.expires else "never",
            f"{t.last_used:%Y-%m-%d %H:%M}" if t.last_used else "",
            "revoked" if t.revoked_at else "",
        )
        for t in tokens
    ]
    table("Tokens", ("id", "name", "team", "may", "made", "expires (UTC)", "last used (UTC)", ""), rows)


@PLUGIN.command()
def rotate(
    token: Id,
    expires: Annotated[str | None, typer.Option(help="As for create; as long as the old one if empty.")] = None,
    json: Json = False,
    local: Local = False,
) -> None:
    """Make a token in place of another one, which is refused at once, and show its secret: only now."""
    until = None if expires is None else _moment(expires)
    with opened(local) as factory:
        issued = factory.rotate_token(token, expires=until)
    _show(issued, json)


@PLUGIN.command()
def revoke(token: Id, json: Json = False, local: Local = False) -> None:
    """Refuse a token from now on."""
    with opened(local) as factory:
        record = factory.revoke_token(token)
    if json:
        print_json(record)
    else:
        out.print(f"Token {record.id} ({record.name}) is revoked.", markup=False)


def _show(issued: IssuedToken, json: bool) -> None:
    record = issued.record
    if json:
        print_json({"secret": issued.secret, "token": record})
        return
    of = "all teams" if record.team is None else f"team {record.team}"
    until = f"until {record.expires:%Y-%m-%d %H:%M} UTC" if record.expires else "for ever"
    out.print(f"Token {record.id} ({record.name}) of {of}: {', '.join(record.scopes)}, {until}.", markup=False)
    out.print("Its secret, shown only now:")
    out.print(issued.secret, markup=False, soft_wrap=True)


def _moment(text: str) -> datetime | None:
    """Return the moment that a time from now or a date names, in UTC; None for ``never``.

    Raises:
        InvalidRequest: it names none.

    >>> _moment("never") is None, _moment("2027-01-31")
    (True, datetime.datetime(2027, 1, 31, 0, 0, tzinfo=datetime.timezone.utc))
    """
    if text == "never":
        return None
    if found := re.fullmatch(r"(\d{1,5})([hd])", text):
        return datetime.now(UTC) + int(found[1]) * {"h": timedelta(hours=1), "d": timedelta(days=1)}[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"--expires: {text!r} is no time.",
            hint="Write 12h, 90d, 2027-01-31, or never.",
            details=[Detail("--expires", f"{text!r} is not understood")],
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

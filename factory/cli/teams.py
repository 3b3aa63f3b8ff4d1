"""Create, show and change teams: their quotas, their people, what they used."""

from __future__ import annotations

from typing import Annotated

import typer

from factory.cli._backend import Backend, Local, opened
from factory.cli._console import Json, out, print_json, table
from factory.errors import Detail, InvalidRequest, UserFault, listing, suggest
from factory.parsing import parse
from factory.spec import SCOPES, Member, Quota, Scope, Team

PLUGIN = typer.Typer(
    no_args_is_help=True, help="Create, show and change teams: their quotas, their people, what they used."
)

Name = Annotated[str, typer.Argument(help="Name of a team.")]
Subject = Annotated[str, typer.Argument(help="The sign-in provider's id of a person.")]
Title = Annotated[str | None, typer.Option(help="The team's name as people read it.")]
Cpus = Annotated[float | None, typer.Option(help="Guaranteed CPUs.")]
Gpus = Annotated[float | None, typer.Option(help="Guaranteed GPUs.")]
MemoryGb = Annotated[float | None, typer.Option(help="Guaranteed memory in GB.")]
Requests = Annotated[int | None, typer.Option(help="Requests that may run at once.")]
TrialSeconds = Annotated[float | None, typer.Option("--trial-seconds-month", help="Seconds of trials a month.")]
Weight = Annotated[float | None, typer.Option(help="Share against other teams that want more; 1 by default.")]


@PLUGIN.command("list")
def list_teams(
    archived: Annotated[bool, typer.Option("--archived", help="Also those that take nothing new.")] = False,
    json: Json = False,
    local: Local = False,
) -> None:
    """List the teams with their quotas."""
    with opened(local) as factory:
        teams = factory.teams(archived=archived)
    if json:
        print_json(list(teams))
        return
    columns = ("team", "title", "CPUs.", "GPUs.", "GB.", "requests.", "trial-s a month.", "weight.", "archived")
    table("Teams", columns, [_row(team) for team in teams])


@PLUGIN.command()
def show(name: Name, json: Json = False, local: Local = False) -> None:
    """Show a team: its quota, its people and what it used this month."""
    with opened(local) as factory:
        team, members = factory.team(name), _members(factory, name)
        used = [usage for usage in factory.usage() if usage.team == name]
    if json:
        print_json({"team": team, "members": members, "usage": used[0] if used else None})
        return
    out.print(f"[bold]{team.name}[/bold]  {team.title}")
    quota = [(field.title, getattr(team.quota, key)) for key, field in Quota.model_fields.items()]
    table("Quota", ("what", "amount."), [(title, "no limit" if value is None else value) for title, value in quota])
    if members is None:
        out.print("Its people are shown to its admins.")
    else:
        people = [(m.email, m.subject, ", ".join(m.scopes), f"{m.added:%Y-%m-%d}") for m in members]
        table("People", ("address", "subject", "may", "since"), people)
    for usage in used:
        out.print(
            f"Used in {usage.month}: {usage.trials:,} trials, {usage.trial_s:,.0f} trial-s, {usage.cpu_s:,.0f} CPU-s"
        )


@PLUGIN.command()
def create(
    name: Name,
    title: Title = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    memory_gb: MemoryGb = None,
    requests: Requests = None,
    trial_seconds_month: TrialSeconds = None,
    weight: Weight = None,
    json: Json = False,
    local: Local = False,
) -> None:
    """Create a team; without options it has no guarantee and no limit."""
    given = _given(cpus, gpus, memory_gb, requests, trial_seconds_month, weight)
    with opened(local) as factory:
        team = factory.create_team(name, title=title or "", quota=parse(Quota, given, what="quota"))
    _tell(team, "is created", json)
    if not json:
        out.print(f"Next: factory tokens create NAME --team {team.name} --scope read --scope submit")


@PLUGIN.command("set")
def change(
    name: Name,
    title: Title = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    memory_gb: MemoryGb = None,
    requests: Requests = None,
    trial_seconds_month: TrialSeconds = None,
    weight: Weight = None,
    clear: Annotated[
        list[str] | None, typer.Option(help="Field of the quota that is to be without a limit; several are allowed.")
    ] = None,
    json: Json = False,
    local: Local = False,
) -> None:
    """Change a team's title or parts of its quota; what is not named stays."""
    given = _given(cpus, gpus, memory_gb, requests, trial_seconds_month, weight)
    with opened(local) as factory:
        team = factory.team(name)
        kept = {key: value for key, value in team.quota.model_dump().items() if key not in _cleared(clear or [])}
        team = factory.change_team(team, title=title, quota=parse(Quota, kept | given, what="quota"))
    _tell(team, "is changed", json)


@PLUGIN.command()
def archive(name: Name, json: Json = False, local: Local = False) -> None:
    """Take nothing new from a team: its tokens are refused; what it made stays."""
    with opened(local) as factory:
        team = factory.archive_team(name)
    _tell(team, "is archived", json)


@PLUGIN.command()
def add(
    name: Name,
    subject: Subject,
    scope: Annotated[list[str], typer.Option(help=f"{', '.join(SCOPES)}; several are allowed.")],
    email: Annotated[str, typer.Option(help="For people to read.")] = "",
    json: Json = False,
    local: Local = False,
) -> None:
    """Add a person to a team, or give one who is in it other scopes."""
    with opened(local) as factory:
        member = factory.add_member(name, subject, email=email, scopes=known_scopes(scope))
    if json:
        print_json(member)
    else:
        out.print(
            f"{member.email or member.subject} is in team {member.team}: {', '.join(member.scopes)}.", markup=False
        )


@PLUGIN.command()
def remove(name: Name, subject: Subject, local: Local = False) -> None:
    """Take a person out of a team."""
    with opened(local) as factory:
        factory.remove_member(name, subject)
    out.print(f"{subject} is not in team {name} any more.", markup=False)


@PLUGIN.command("usage")
def show_usage(
    month: Annotated[str | None, typer.Option(help="As 2026-11; the present one if empty.")] = None,
    json: Json = False,
    local: Local = False,
) -> None:
    """Show what each team used in a month: trials, and resources held."""
    with opened(local) as factory:
        used = factory.usage(month)
    if json:
        print_json(list(used))
        return
    rows = [(u.team, u.trials, *(f"{s:,.0f}" for s in (u.trial_s, u.cpu_s, u.gpu_s, u.gb_s))) for u in used]
    table(f"Usage {used[0].month if used else ''}", ("team", "trials.", "trial-s.", "CPU-s.", "GPU-s.", "GB-s."), rows)


def known_scopes(names: list[str]) -> tuple[Scope, ...]:
    """Return scopes by their names, in their usual order.

    Raises:
        InvalidRequest: one does not exist; all of them are named.
    """
    unknown = [name for name in names if name not in SCOPES]
    if unknown:
        raise InvalidRequest(
            f"--scope: {listing(map(repr, unknown))} does not exist.{suggest(unknown[0], SCOPES)}",
            hint=f"Allowed: {', '.join(SCOPES)}.",
            details=[Detail("--scope", f"{name!r} is not allowed") for name in unknown],
        )
    return tuple(scope for scope in SCOPES if scope in names)


def _members(factory: Backend, team: str) -> list[Member] | None:
    """Return the people of a team, or None where the token may not know them."""
    try:
        return list(factory.members(team))
    except UserFault as error:
        if error.code != "forbidden":
            raise
        return None


def _given(
    cpus: float | None,
    gpus: float | None,
    memory_gb: float | None,
    requests: int | None,
    trial_seconds_month: float | None,
    weight: float | None,
) -> dict[str, float]:
    fields = {"cpus": cpus, "gpus": gpus, "memory_gb": memory_gb, "requests": requests}
    fields |= {"trial_seconds_month": trial_seconds_month, "weight": weight}
    return {name: value for name, value in fields.items() if value is not None}


def _cleared(names: list[str]) -> list[str]:
    """Return fields of a quota by the names of their options.

    Raises:
        InvalidRequest: there is no such field.
    """
    fields = [name.replace("-", "_") for name in names]
    for name in fields:
        if name not in Quota.model_fields:
            raise InvalidRequest(
                f"--clear: a quota has no field {name!r}.{suggest(name, Quota.model_fields)}",
                hint=f"Allowed: {listing(Quota.model_fields)}.",
                details=[Detail("--clear", f"{name!r} is not allowed")],
            )
    return fields


def _row(team: Team) -> tuple[object, ...]:
    quota = team.quota
    limits = (quota.cpus, quota.gpus, quota.memory_gb, quota.requests, quota.trial_seconds_month)
    numbers = ("" if limit is None else f"{limit:g}" for limit in limits)
    return (
        team.name,
        team.title,
        *numbers,
        f"{quota.weight:g}",
        f"{team.archived_at:%Y-%m-%d}" if team.archived_at else "",
    )


def _tell(team: Team, what: str, json: bool) -> None:
    if json:
        print_json(team)
    else:
        out.print(f"Team {team.name} {what}.")

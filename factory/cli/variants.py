"""List, show, compare, promote, roll back and verify variants."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from factory.cli._console import Json, opened_ledger, out, plain, print_json, table
from factory.errors import Conflict, NotFound
from factory.ledger import Ledger
from factory.settings import Settings
from factory.spec import DeploymentWish, Variant
from factory.variants.bundle import Bundle
from factory.variants.reference import resolve
from factory.variants.registry import Registry

PLUGIN = typer.Typer(no_args_is_help=True, help="List, show, compare, promote, roll back and verify variants.")

Name = Annotated[str, typer.Argument(help="team.name, team.name@alias or team.name/version.")]
Why = Annotated[str, typer.Option(help="The reason; it is kept in the alias ledger.")]


@PLUGIN.command("list")
def list_variants(json: Json = False) -> None:
    """List all variants with their versions and aliases."""
    with opened_ledger() as (ledger, _):
        variants = ledger.variants()
        champions = {name: ledger.alias(name, "champion") for name in {v.name for v in variants}}
        challengers = {name: ledger.alias(name, "challenger") for name in champions}
    if json:
        print_json(variants)
        return
    rows = [
        (
            f"{v.name}/{v.version}",
            " ".join(a for a, of in (("champion", champions), ("challenger", challengers)) if of[v.name] == v.version),
            v.state,
            v.recipe,
            f"{v.metric} {v.score:.5g}",
            f"{v.created:%Y-%m-%d %H:%M}" if v.created else "",
        )
        for v in variants
    ]
    table("Variants", ("variant", "alias", "gate", "recipe", "score", "made (UTC)"), rows)


@PLUGIN.command()
def show(name: Name, json: Json = False) -> None:
    """Show a variant: scores, lineage, input columns and where its model card lies."""
    with opened_ledger() as (ledger, settings):
        variant = _resolve_any(name, ledger)
        folder = Registry(settings).local_bundle(variant.name, variant.version)
        bundle = Bundle.load(folder, digest=variant.bundle_digest)
        cards = sorted(settings.workspace(variant.request_id).glob("*/card.html"))
        history = ledger.alias_history(variant.name)
    columns = [{"name": c.name, "type": c.type.value} for c in bundle.columns]
    members = [{"family": m.family, "weight": round(m.weight, 4)} for m in bundle.members]
    if json:
        print_json({**plain(variant), "columns": columns, "members": members, "alias_history": history})
        return
    told = {**plain(variant), "blend": None, "seeded_by": ", ".join(variant.seeded_by)}
    rows = [(key, value) for key, value in told.items() if value not in (None, "")]
    table(f"{variant.name}/{variant.version}", ("field", "value"), rows)
    table("Input columns", ("column", "type"), [(c["name"], c["type"]) for c in columns])
    table("Members", ("family", "weight."), [(m["family"], m["weight"]) for m in members])
    for card in cards:
        out.print(f"Model card: {card}", soft_wrap=True)


@PLUGIN.command()
def lineage(name: Name, json: Json = False) -> None:
    """Show where a variant comes from, and every change of its aliases."""
    with opened_ledger() as (ledger, _):
        variant = _resolve_any(name, ledger)
        request = ledger.request(variant.request_id)
        history = ledger.alias_history(variant.name)
    if json:
        print_json({"variant": variant, "request": request.request, "alias_history": history})
        return
    rows = [
        ("request", request.id),
        ("recipe", f"{variant.recipe}@{variant.recipe_digest[:12]}"),
        ("dataset", variant.dataset_digest[:12]),
        ("feature service", variant.feature_service),
        ("parent", variant.parent),
        ("kind", variant.kind),
        ("seeded by", ", ".join(variant.seeded_by)),
        ("trials to parity", variant.trials_to_parity),
        ("seed", variant.seed),
        ("bundle", variant.bundle_digest[:12]),
    ]
    table(f"{variant.name}/{variant.version}", ("from", "what"), rows)
    changes = [(f"{c.time:%Y-%m-%d %H:%M}", c.alias, c.version, c.who, c.why) for c in history]
    table("Aliases (UTC)", ("when", "alias", "version.", "who", "why"), changes)


@PLUGIN.command()
def compare(
    first: Name,
    second: Annotated[str, typer.Argument(help="Another version, of the same variant or of another one.")],
    json: Json = False,
) -> None:
    """Compare two versions field by field; what differs comes first."""
    with opened_ledger() as (ledger, _):
        both = [plain(_resolve_any(name, ledger)) for name in (first, second)]
    rows = [(field, both[0][field], both[1][field]) for field in both[0]]
    differing = [row for row in rows if row[1] != row[2]]
    alike = [row for row in rows if row[1] == row[2] and row[1] not in (None, "")]
    if json:
        print_json({"differs": {f: [a, b] for f, a, b in differing}, "alike": {f: a for f, a, _ in alike}})
        return
    columns = ("field", *(f"{v['name']}/{v['version']}" for v in both))
    table("What differs", columns, differing)
    table("Alike", ("field", "both"), [row[:2] for row in alike])


@PLUGIN.command()
def promote(
    name: Name, why: Why, override: Annotated[bool, typer.Option("--override", help="Also a rejected one.")] = False
) -> None:
    """Make a version the champion."""
    with opened_ledger() as (ledger, settings):
        variant = _resolve_any(name, ledger)
        if variant.state == "rejected" and not override:
            raise Conflict(
                f"{variant.name}/{variant.version} was turned down by its gate.",
                hint="Look at its model card; --override promotes it all the same and is recorded.",
            )
        _make_champion(variant, ledger, settings, why=f"{'Override: ' if override else ''}{why}")
    out.print(f"{variant.name}/{variant.version} is champion now.")


@PLUGIN.command()
def rollback(name: Annotated[str, typer.Argument(help="team.name")], why: Why) -> None:
    """Make the version champion that was it before the present one."""
    with opened_ledger() as (ledger, settings):
        past = [c.version for c in ledger.alias_history(name) if c.alias == "champion" and c.version is not None]
        before = [version for version in past if version != past[-1]]
        if not before:
            raise NotFound(f"{name} has no earlier champion.", hint=f"`factory variants lineage {name}` shows all.")
        variant = ledger.variant(name, before[-1])
        _make_champion(variant, ledger, settings, why=f"Rollback: {why}")
    out.print(f"{variant.name}/{variant.version} is champion again.")


@PLUGIN.command()
def verify(name: Name) -> None:
    """Check that a stored variant is what the ledger says, by its digest."""
    with opened_ledger() as (ledger, settings):
        variant = _resolve_any(name, ledger)
        folder = Registry(settings).local_bundle(variant.name, variant.version)
        Bundle.load(folder, digest=variant.bundle_digest)
    out.print(f"{variant.name}/{variant.version} is what was registered: {variant.bundle_digest[:12]}.")


def _make_champion(variant: Variant, ledger: Ledger, settings: Settings, *, why: str) -> None:
    ledger.set_alias(variant.name, "champion", variant.version, who=getpass.getuser(), why=why)
    ledger.set_deployment(variant.name, DeploymentWish(), version=variant.version)
    Registry(settings).set_alias(variant.name, "champion", variant.version)


def _resolve_any(name: str, ledger: Ledger) -> Variant:
    """Resolve a reference; a bare name without a champion is its newest version."""
    if "@" not in name and "/" not in name and ledger.alias(name, "champion") is None:
        versions = ledger.variants(name)
        if versions:
            return versions[-1]
    return resolve(name, ledger=ledger)

"""List, show, compare, promote, roll back, verify and export variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli._backend import Local, opened
from factory.cli._console import Json, opened_ledger, out, plain, print_json, table
from factory.ledger import Proposal
from factory.operate.promotion import named
from factory.variants.bundle import Bundle
from factory.variants.export import export
from factory.variants.registry import Registry

PLUGIN = typer.Typer(no_args_is_help=True, help="List, show, compare, promote, roll back, verify and export variants.")

Name = Annotated[str, typer.Argument(help="team.name, team.name@alias or team.name/version.")]
Why = Annotated[str, typer.Option(help="The reason; it is kept in the alias ledger.")]
ProposalId = Annotated[str, typer.Argument(help="Id of a proposal, as `factory variants proposals` shows it.")]


@PLUGIN.command("list")
def list_variants(json: Json = False, local: Local = False) -> None:
    """List all variants with their versions and aliases."""
    with opened(local) as factory:
        variants = list(factory.variants())
    if json:
        print_json(variants)
        return
    rows = [
        (
            f"{v.name}/{v.version}",
            " ".join(v.aliases),
            v.state,
            v.recipe,
            f"{v.metric} {v.score:.5g}",
            f"{v.created:%Y-%m-%d %H:%M}" if v.created else "",
        )
        for v in variants
    ]
    table("Variants", ("variant", "alias", "gate", "recipe", "score", "made (UTC)"), rows)


@PLUGIN.command()
def show(name: Name, json: Json = False, local: Local = False) -> None:
    """Show a variant: scores, lineage, input columns and where its model card lies."""
    with opened(local) as factory:
        found = factory.variant_detail(name)
    variant = found.variant
    if json:
        detail = plain(found)
        shown = {name: detail[name] for name in ("columns", "members", "alias_history")}
        print_json({**plain(variant), **shown})
        return
    told = {**plain(variant), "blend": None, "seeded_by": ", ".join(variant.seeded_by)}
    rows = [(key, value) for key, value in told.items() if value not in (None, "")]
    table(f"{variant.name}/{variant.version}", ("field", "value"), rows)
    if found.columns:
        table("Input columns", ("column", "type"), [(c.name, c.type) for c in found.columns])
        table("Members", ("family", "weight."), [(m.family, m.weight) for m in found.members])
    for card in found.cards:
        out.print(f"Model card: {card}", soft_wrap=True)


@PLUGIN.command()
def lineage(name: Name, json: Json = False, local: Local = False) -> None:
    """Show where a variant comes from, and every change of its aliases."""
    with opened(local) as factory:
        variant = factory.variant(name)
        request = factory.request(variant.request_id)
        history = factory.alias_history(variant.name)
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
    local: Local = False,
) -> None:
    """Compare two versions field by field; what differs comes first."""
    with opened(local) as factory:
        both = [plain(factory.variant(name)) for name in (first, second)]
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
    name: Name,
    why: Why,
    override: Annotated[bool, typer.Option("--override", help="Also one that was rejected or not approved.")] = False,
    local: Local = False,
) -> None:
    """Make a version the champion, or propose it where its recipe asks for a second person."""
    with opened(local) as factory:
        promoted = factory.promote(name, why=why, override=override)
    if isinstance(promoted, Proposal):
        out.print(f"{promoted.name}/{promoted.version} waits for another member of team {promoted.team}: {promoted.id}")
        out.print(f"Next: factory variants approve {promoted.id} --why REASON")
    else:
        out.print(f"{promoted.name}/{promoted.version} is champion now.")


@PLUGIN.command()
def proposals(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were decided.")] = False,
    json: Json = False,
    local: Local = False,
) -> None:
    """List versions that wait for a second person before callers get them."""
    with opened(local) as factory:
        found = list(factory.proposals(state=None if everything else "open"))
    if json:
        print_json(found)
        return
    rows = [
        (
            p.id,
            f"{p.name}/{p.version}",
            p.wish.as_,
            p.state,
            p.proposed_by,
            f"{p.created:%Y-%m-%d %H:%M}",
            p.decided_by,
            p.decided_why or p.why,
        )
        for p in found
    ]
    columns = ("proposal", "variant", "as", "state", "proposed by", "when (UTC)", "decided by", "why")
    table("Proposals", columns, rows)


@PLUGIN.command()
def approve(proposal: ProposalId, why: Why, local: Local = False) -> None:
    """Approve a proposal that somebody else has made, which serves the version."""
    with opened(local) as factory:
        found = factory.approve(proposal, why=why)
    out.print(f"{found.name}/{found.version} is approved, and served as {found.wish.as_} now.")


@PLUGIN.command()
def reject(proposal: ProposalId, why: Why, local: Local = False) -> None:
    """Reject a proposal, or take one's own back."""
    with opened(local) as factory:
        found = factory.reject(proposal, why=why)
    out.print(f"{found.name}/{found.version} is rejected; nothing has changed for callers.")


@PLUGIN.command()
def rollback(name: Annotated[str, typer.Argument(help="team.name")], why: Why, local: Local = False) -> None:
    """Make the version champion that was it before the present one."""
    with opened(local) as factory:
        variant = factory.rollback(name, why=why)
    out.print(f"{variant.name}/{variant.version} is champion again.")


@PLUGIN.command()
def verify(name: Name) -> None:
    """Check that a variant that is stored in this home is what the ledger says, by its digest."""
    with opened_ledger() as (ledger, settings):
        variant = named(name, ledger=ledger)
        folder = Registry(settings).bundle_folder(variant)
        Bundle.load(folder, digest=variant.bundle_digest)
    out.print(f"{variant.name}/{variant.version} is what was registered: {variant.bundle_digest[:12]}.")


@PLUGIN.command("export")
def export_variant(
    name: Name,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for it; new or empty.")],
    format_: Annotated[
        Literal["folder", "docker", "onnx"],
        typer.Option("--format", help="docker adds a Dockerfile whose container serves it; onnx is one file."),
    ] = "folder",
) -> None:
    """Write a variant into a folder that predicts without the factory."""
    with opened_ledger() as (ledger, settings):
        variant = named(name, ledger=ledger)
        model = Registry(settings).local_model(variant.name, variant.version)
    export(variant, model, out_folder, as_=format_)
    out.print(f"{variant.name}/{variant.version} is in {out_folder}; README.md says how it is used.")

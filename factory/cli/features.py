"""Apply, list, materialize and check the feature store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from factory.cli._console import Json, opened_ledger, out, print_json, table
from factory.data.feature_check import check as check_features
from factory.data.feature_store import apply as apply_repository
from factory.data.features import catalogue
from factory.data.features import materialize as materialize_views

PLUGIN = typer.Typer(no_args_is_help=True, help="Apply, list, materialize and check the feature store.")


@PLUGIN.command()
def apply(json: Json = False) -> None:
    """Bring the registry in line with the feature repository."""
    with opened_ledger() as (_, settings):
        report = apply_repository(settings)
    if json:
        print_json(report)
        return
    rows = [(c.action, c.kind, c.name, ", ".join(c.properties)) for c in report.changes]
    if rows:
        table(f"Applied {report.repository}", ("", "kind", "name", "changed"), rows)
    else:
        out.print(f"{report.repository} was applied before; nothing changed.")


@PLUGIN.command("list")
def list_services(json: Json = False) -> None:
    """List the feature services with their views, owners and freshness."""
    with opened_ledger() as (_, settings):
        services = catalogue(settings)
    if json:
        print_json(services)
        return
    rows = [
        (
            service.name,
            ", ".join(service.entities),
            view.name,
            ", ".join(view.features),
            service.owner,
            f"{view.newest:%Y-%m-%d}" if view.newest else "",
            f"{view.materialized:%Y-%m-%d}" if view.materialized else "computed" if view.computed else "never",
        )
        for service in services
        for view in service.views
    ]
    columns = ("service", "entities", "view", "features", "owner", "newest row", "materialized to")
    table("Feature services", columns, rows)


@PLUGIN.command()
def materialize(
    until: Annotated[datetime | None, typer.Option(help="Rows up to this moment (UTC); now if empty.")] = None,
    view: Annotated[list[str] | None, typer.Option(help="Only this view; may be given several times.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read the whole interval again.")] = False,
    json: Json = False,
) -> None:
    """Fill the online store with each view's newest rows."""
    with opened_ledger() as (_, settings):
        moment = until.replace(tzinfo=UTC) if until is not None and until.tzinfo is None else until
        done = materialize_views(settings, until=moment, views=tuple(view) if view else None, full=full)
    if json:
        print_json(done)
        return
    rows = [
        (
            m.view,
            f"{m.since:%Y-%m-%d %H:%M}",
            f"{m.until:%Y-%m-%d %H:%M}",
            "left to `feast materialize`" if m.foreign else "was filled before" if m.skipped else "filled",
        )
        for m in done
    ]
    table("Online store", ("view", "since (UTC)", "until (UTC)", ""), rows)


@PLUGIN.command()
def check(
    service: Annotated[str, typer.Argument(help="Name of a feature service.")],
    sample: Annotated[int, typer.Option(min=1, help="Entities to compare.")] = 1000,
    seed: Annotated[int, typer.Option(help="Chooses the entities.")] = 0,
    json: Json = False,
) -> None:
    """Compare online values with offline ones as of the same moment, cell by cell; exit code 1 if any differs."""
    with opened_ledger() as (_, settings):
        found = check_features(settings, service, sample=sample, seed=seed)
    if json:
        print_json(found)
    else:
        rows = [(v.view, f"{v.moment:%Y-%m-%d %H:%M}", v.entities, f"{v.cells:,}", v.differences) for v in found.views]
        table(f"Feature service {service}", ("view", "as of (UTC)", "entities.", "cells.", "differences."), rows)
        differing = [(d.entity, d.view, d.feature, d.online, d.offline) for d in found.differences[:20]]
        if differing:
            table("Cells that differ", ("entity", "view", "feature", "online", "offline"), differing)
    raise typer.Exit(0 if found.ok else 1)

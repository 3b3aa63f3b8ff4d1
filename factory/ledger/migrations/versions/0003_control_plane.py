"""Attempts, admission, teams, tokens, audit, uploads, shares, leases, usage; events become a chain of hashes."""

from collections import defaultdict
from datetime import UTC
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)
_json = sa.JSON(none_as_null=True)

_requests = sa.table(
    "requests",
    sa.column("id"),
    sa.column("document", _json),
    sa.column("team"),
    sa.column("created", _moment),
    sa.column("priority"),
    sa.column("gpus"),
    sa.column("memory_gb"),
    sa.column("events"),
    sa.column("unchained"),
)


def upgrade() -> None:
    """Add the tables of the control plane, and fill in what the stored documents say."""
    _widen_requests()
    with op.batch_alter_table("events") as events:
        events.add_column(sa.Column("hash", sa.String(64)))
    _widen_variants()
    _create_attempts()
    _create_identity()
    _create_chains()
    _create_datasets()
    _create_rest()
    _fill_in_requests()
    _fill_in_teams()
    _fill_in_usage()


def _widen_requests() -> None:
    # The defaults are for existing rows, most of which are filled in below. They stay: taking them away would make
    # SQLite write the whole table anew, and drop one that others refer to.
    with op.batch_alter_table("requests") as requests:
        for column in (
            sa.Column("priority", sa.String(8), nullable=False, server_default="normal"),
            sa.Column("door", sa.String(16)),
            sa.Column("submitted_by", sa.String(255)),
            sa.Column("quote", _json),
            sa.Column("expected_s", sa.Float()),
            sa.Column("cpus", sa.Float(), nullable=False, server_default="1"),
            sa.Column("gpus", sa.Float(), nullable=False, server_default="0"),
            sa.Column("memory_gb", sa.Float()),
            sa.Column("not_before", _moment),
            sa.Column("preemptions", sa.Integer(), nullable=False, server_default="0"),
            sa.Column("preempt_requested_at", _moment),
            sa.Column("cancel_requested_at", _moment),
            sa.Column("cancelled_by", sa.String(255)),
            sa.Column("chain", sa.String(64)),
            sa.Column("unchained", sa.Integer(), nullable=False, server_default="0"),
        ):
            requests.add_column(column)
    op.drop_index("ix_requests_created", "requests")
    op.drop_index("ix_requests_team_state", "requests")
    op.drop_index("ix_requests_recipe", "requests")
    op.create_index("ix_requests_created_id", "requests", ["created", "id"])
    op.create_index("ix_requests_updated_id", "requests", ["updated", "id"])
    op.create_index("ix_requests_team_created_id", "requests", ["team", "created", "id"])
    op.create_index("ix_requests_team_state_created", "requests", ["team", "state", "created"])
    op.create_index("ix_requests_state_created_id", "requests", ["state", "created", "id"])
    for name in ("variant", "recipe", "door", "submitted_by"):
        op.create_index(f"ix_requests_{name}_created_id", "requests", [name, "created", "id"])
    wished = sa.text("cancel_requested_at IS NOT NULL")
    op.create_index(
        "ix_requests_cancel_requested_at",
        "requests",
        ["cancel_requested_at"],
        sqlite_where=wished,
        postgresql_where=wished,
    )
    op.create_table(
        "holds",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("rule", sa.String(64), nullable=False),
        sa.Column("sentence", sa.String(500), nullable=False),
        sa.Column("eta_s", sa.Float()),
        sa.Column("checked_at", _moment, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_holds"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_holds_request_id_requests"),
    )


def _widen_variants() -> None:
    with op.batch_alter_table("variants") as variants:
        variants.add_column(sa.Column("team", sa.String(64), nullable=False, server_default=""))
    op.execute("UPDATE variants SET team = (SELECT team FROM requests WHERE requests.id = variants.request_id)")
    op.create_index("ix_variants_created_name_version", "variants", ["created", "name", "version"])
    op.create_index("ix_variants_team_created_name_version", "variants", ["team", "created", "name", "version"])


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("submission_id", sa.String(80), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("cpus", sa.Float(), nullable=False),
        sa.Column("gpus", sa.Float(), nullable=False),
        sa.Column("memory_gb", sa.Float()),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("admitted_at", _moment, nullable=False),
        sa.Column("submitted_at", _moment),
        sa.Column("running_at", _moment),
        sa.Column("ended_at", _moment),
        sa.Column("outcome", sa.String(16)),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_attempts_request_id_requests"),
        sa.UniqueConstraint("submission_id", name="uq_attempts_submission_id"),
    )
    op.create_index("ix_attempts_team_gpus_ended_at", "attempts", ["team", "gpus", "ended_at"])
    still = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_attempts_open", "attempts", ["request_id"], unique=True, sqlite_where=still, postgresql_where=still
    )


def _create_identity() -> None:
    op.create_table(
        "teams",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("title", sa.String(255), nullable=False),
        sa.Column("quota", _json, nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("archived_at", _moment),
        sa.PrimaryKeyConstraint("name", name="pk_teams"),
    )
    op.create_table(
        "members",
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("email", sa.String(255), nullable=False),
        sa.Column("scopes", _json, nullable=False),
        sa.Column("added", _moment, nullable=False),
        sa.PrimaryKeyConstraint("team", "subject", name="pk_members"),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name="fk_members_team_teams"),
    )
    op.create_index("ix_members_subject", "members", ["subject"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("team", sa.String(64)),
        sa.Column("scopes", _json, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("expires", _moment),
        sa.Column("last_used", _moment),
        sa.Column("revoked_at", _moment),
        sa.Column("rotated_to", sa.String(32)),
        sa.Column("request_id", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name="fk_tokens_team_teams"),
        sa.ForeignKeyConstraint(["rotated_to"], ["tokens.id"], name="fk_tokens_rotated_to_tokens"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_tokens_request_id_requests"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
    )
    op.create_index("ix_tokens_team", "tokens", ["team"])
    op.create_index("ix_tokens_request_id", "tokens", ["request_id"])


def _create_chains() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", _moment, nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("origin", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("team", sa.String(64)),
        sa.Column("detail", _json, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_team_id", "audit", ["team", "id"])
    op.create_index("ix_audit_subject_id", "audit", ["subject", "id"])
    chains = op.create_table(
        "chains",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_chains"),
    )
    op.bulk_insert(chains, [{"name": "audit", "length": 0, "hash": ""}])


def _create_datasets() -> None:
    op.create_table(
        "uploads",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger()),
        sa.Column("columns", _json),
        sa.Column("created", _moment, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("digest", "team", name="pk_uploads"),
    )
    op.create_index("ix_uploads_team_created_digest", "uploads", ["team", "created", "digest"])
    op.create_table(
        "shares",
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("with_team", sa.String(64), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("kind", "subject", "team", "with_team", name="pk_shares"),
    )
    op.create_index("ix_shares_kind_with_team", "shares", ["kind", "with_team"])


def _create_rest() -> None:
    op.create_table(
        "idempotency",
        sa.Column("scope", sa.String(255), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created", "idempotency", ["created"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("until", _moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "usage",
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("trial_s", sa.Float(), nullable=False),
        sa.Column("cpu_s", sa.Float(), nullable=False),
        sa.Column("gpu_s", sa.Float(), nullable=False),
        sa.Column("gb_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("month", "team", name="pk_usage"),
    )


def _fill_in_requests() -> None:
    """Take priority and resources from the stored documents; their events came before the chain."""
    at = _requests.c
    connection = op.get_bind()
    values = []
    for identifier, document in connection.execute(sa.select(at.id, at.document)):
        resources = document.get("resources") or {}
        values.append(
            {
                "this": identifier,
                "its_priority": document.get("priority") or "normal",
                "its_gpus": float(resources.get("workers") or 1) * float(resources.get("gpus_per_worker") or 0),
                "its_memory_gb": (document.get("budget") or {}).get("memory_gb"),
            }
        )
    if values:
        change = sa.update(_requests).where(at.id == sa.bindparam("this"))
        filled: dict[str, sa.ColumnElement[Any]] = {
            name: sa.bindparam(f"its_{name}") for name in ("priority", "gpus", "memory_gb")
        }
        connection.execute(change.values(**filled, unchained=at.events), values)


def _fill_in_teams() -> None:
    """Every team that has asked for something exists, without a quota."""
    at = _requests.c
    connection = op.get_bind()
    quota = dict.fromkeys(("cpus", "gpus", "memory_gb", "requests", "trial_seconds_month")) | {"weight": 1.0}
    teams = sa.table(
        "teams", sa.column("name"), sa.column("title"), sa.column("quota", _json), sa.column("created", _moment)
    )
    firsts = connection.execute(sa.select(at.team, sa.func.min(at.created, type_=_moment)).group_by(at.team))
    if rows := [{"name": team, "title": team, "quota": quota, "created": created} for team, created in firsts]:
        connection.execute(sa.insert(teams), rows)


def _fill_in_usage() -> None:
    """Add up the trials of before by team and month; attempts were not counted then."""
    connection = op.get_bind()
    trials = sa.table(
        "trials", sa.column("request_id"), sa.column("recorded", _moment), sa.column("finished"), sa.column("cost_s")
    )
    query = (
        sa.select(_requests.c.team, trials.c.recorded, trials.c.cost_s)
        .join_from(trials, _requests, trials.c.request_id == _requests.c.id)
        .where(trials.c.finished)
    )
    sums: dict[tuple[str, str], list[float]] = defaultdict(list)
    for team, recorded, cost_s in connection.execute(query):
        in_utc = recorded if recorded.tzinfo is None else recorded.astimezone(UTC)
        sums[f"{in_utc:%Y-%m}", team].append(cost_s)
    usage = sa.table("usage", *map(sa.column, ("month", "team", "trials", "trial_s", "cpu_s", "gpu_s", "gb_s")))
    rows = [
        {"month": month, "team": team, "trials": len(costs), "trial_s": sum(costs), "cpu_s": 0, "gpu_s": 0, "gb_s": 0}
        for (month, team), costs in sorted(sums.items())
    ]
    if rows:
        connection.execute(sa.insert(usage), rows)

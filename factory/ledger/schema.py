"""The tables of the ledger.

Everything here is standard SQL that SQLite and PostgreSQL share.  A change of
a table is a new file in ``migrations/versions`` and a new :data:`HEAD`; a test
holds that the migrations lead to exactly these tables.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from factory.ledger.moments import UtcDateTime
from factory.ledger.schema_base import is_open, json_column, metadata
from factory.ledger.schema_serving import (
    LATENCY_COLUMNS,
    LATENCY_MS,
    aliases,
    batch_runs,
    batches,
    canaries,
    deployment_changes,
    deployments,
    served,
    shadows,
)

__all__ = [
    "LATENCY_COLUMNS",
    "LATENCY_MS",
    "aliases",
    "batch_runs",
    "batches",
    "canaries",
    "deployment_changes",
    "deployments",
    "served",
    "shadows",
    "metadata",
]
"""Of other modules, for those who look for a table here; the tables below are beside them."""

HEAD = "0009"
"""Revision that the tables below are of."""

VERSION_TABLE = "ledger_schema"
"""Own version table, since MLflow keeps its ``alembic_version`` where both share one database."""

_TO_BE_CANCELLED = text("cancel_requested_at IS NOT NULL")
_UNDECIDED = text("state = 'open'")

requests = Table(
    "requests",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("document", json_column, nullable=False),
    Column("team", String(64), nullable=False),
    Column("variant", String(128), nullable=False),
    Column("recipe", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    Column("retry_of", String(64), ForeignKey("requests.id")),
    Column("attempt", Integer, nullable=False),
    Column("events", Integer, nullable=False),
    Column("fault", String(8)),
    Column("error", json_column),
    Column("driver_token", String(32)),
    Column("driver_host", String(255)),
    Column("driver_pid", Integer),
    Column("driver_started", Float),
    Column("driver_lease_until", UtcDateTime),
    Column("priority", String(8), nullable=False),
    Column("door", String(16)),
    Column("submitted_by", String(255)),
    Column("quote", json_column),
    Column("expected_s", Float),
    Column("cpus", Float, nullable=False),
    Column("gpus", Float, nullable=False),
    Column("memory_gb", Float),
    Column("not_before", UtcDateTime),
    Column("preemptions", Integer, nullable=False),
    Column("preempt_requested_at", UtcDateTime),
    Column("cancel_requested_at", UtcDateTime),
    Column("cancelled_by", String(255)),
    Column("chain", String(64)),
    Column("unchained", Integer, nullable=False),
    Index(None, "created", "id"),
    Index(None, "updated", "id"),
    Index(None, "team", "created", "id"),
    Index(None, "team", "state", "created"),
    Index(None, "state", "created", "id"),
    Index(None, "variant", "created", "id"),
    Index(None, "recipe", "created", "id"),
    Index(None, "door", "created", "id"),
    Index(None, "submitted_by", "created", "id"),
    Index(None, "cancel_requested_at", sqlite_where=_TO_BE_CANCELLED, postgresql_where=_TO_BE_CANCELLED),
)
"""``chain`` is the hash of the last event; ``unchained`` counts the events from before events were hashed."""

holds = Table(
    "holds",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("rule", String(64), nullable=False),
    Column("sentence", String(500), nullable=False),
    Column("eta_s", Float),
    Column("checked_at", UtcDateTime, nullable=False),
)
"""Why requests wait; apart from them, since it changes for hundreds at once, and their rows are long and indexed."""

events = Table(
    "events",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("payload", json_column, nullable=False),
    Column("hash", String(64)),
)

attempts = Table(
    "attempts",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("submission_id", String(80), nullable=False),
    Column("team", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("cpus", Float, nullable=False),
    Column("gpus", Float, nullable=False),
    Column("memory_gb", Float),
    Column("state", String(16), nullable=False),
    Column("admitted_at", UtcDateTime, nullable=False),
    Column("submitted_at", UtcDateTime),
    Column("running_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("outcome", String(16)),
    Column("message", Text, nullable=False),
    UniqueConstraint("submission_id"),
    Index(None, "team", "gpus", "ended_at"),
    Index("ix_attempts_open", "request_id", unique=True, sqlite_where=is_open, postgresql_where=is_open),
)
"""``ix_attempts_open`` lets a request have one open attempt at most, and is what finds the open ones."""

trials = Table(
    "trials",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("segment", String(255), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("family", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("finished", Boolean, nullable=False),
    Column("score", Float),
    Column("cost_s", Float, nullable=False),
    Column("origin", String(16), nullable=False),
    Column("recorded", UtcDateTime, nullable=False),
    Column("document", json_column, nullable=False),
    Index(None, "finished", "recorded"),
)

profiles = Table(
    "profiles",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("task", String(16), nullable=False),
    Column("recorded", UtcDateTime, nullable=False),
    Column("document", json_column, nullable=False),
    Index(None, "task", "recorded"),
)

variants = Table(
    "variants",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("request_id", String(64), ForeignKey("requests.id"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("document", json_column, nullable=False),
    Column("team", String(64), nullable=False),
    Index(None, "request_id"),
    Index(None, "created", "name", "version"),
    Index(None, "team", "created", "name", "version"),
)

teams = Table(
    "teams",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("title", String(255), nullable=False),
    Column("quota", json_column, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("archived_at", UtcDateTime),
)

members = Table(
    "members",
    metadata,
    Column("team", String(64), ForeignKey("teams.name"), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("email", String(255), nullable=False),
    Column("scopes", json_column, nullable=False),
    Column("added", UtcDateTime, nullable=False),
    Index(None, "subject"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("team", String(64), ForeignKey("teams.name")),
    Column("scopes", json_column, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("expires", UtcDateTime),
    Column("last_used", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("rotated_to", String(32), ForeignKey("tokens.id")),
    Column("request_id", String(64), ForeignKey("requests.id")),
    Column("variants", String(200)),
    UniqueConstraint("digest"),
    Index(None, "team"),
    Index(None, "request_id"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("subject", String(255)),
    Column("email", String(255), nullable=False),
    Column("grants", json_column, nullable=False),
    Column("token_id", String(32), ForeignKey("tokens.id")),
    Column("team", String(64)),
    Column("created", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Index(None, "subject"),
    Index(None, "token_id"),
    Index(None, "expires"),
)
"""Of browsers: of a person by ``subject``, or of whoever has the token. ``team`` is the one that it acts for."""

proposals = Table(
    "proposals",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("team", String(64), nullable=False),
    Column("wish", json_column, nullable=False),
    Column("state", String(16), nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", json_column, nullable=False),
    Column("proposed_by", String(255), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("decided_by", String(255)),
    Column("decided_why", Text),
    Column("decided_at", UtcDateTime),
    ForeignKeyConstraint(["name", "version"], ["variants.name", "variants.version"]),
    Index(None, "created", "id"),
    Index(None, "team", "created", "id"),
    Index("ix_proposals_open", "name", "version", unique=True, sqlite_where=_UNDECIDED, postgresql_where=_UNDECIDED),
)
"""Promotions that a second person decides on; of a version one is open at most."""

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("who", String(255), nullable=False),
    Column("origin", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("team", String(64)),
    Column("detail", json_column, nullable=False),
    Column("hash", String(64), nullable=False),
    Index(None, "team", "id"),
    Index(None, "subject", "id"),
)

chains = Table(
    "chains",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("length", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
)
"""The end of a chain of hashes, so that rows cut off at its end are missed; writers wait for each other at its row."""

uploads = Table(
    "uploads",  # MLflow has a table called datasets, and may share the database
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("team", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", BigInteger),
    Column("columns", json_column),
    Column("created", UtcDateTime, nullable=False),
    Column("created_by", String(255), nullable=False),
    Index(None, "team", "created", "digest"),
)

shares = Table(
    "shares",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("team", String(64), primary_key=True),
    Column("with_team", String(64), primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("created_by", String(255), nullable=False),
    Index(None, "kind", "with_team"),
)
"""``team`` is the owner, ``with_team`` who may look; ``*`` is every team."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(255), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Index(None, "created"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("until", UtcDateTime, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("month", String(7), primary_key=True),
    Column("team", String(64), primary_key=True),
    Column("trials", Integer, nullable=False),
    Column("trial_s", Float, nullable=False),
    Column("cpu_s", Float, nullable=False),
    Column("gpu_s", Float, nullable=False),
    Column("gb_s", Float, nullable=False),
)
"""Sums that are kept as things end, so that admission need not add up a month of trials at every look."""

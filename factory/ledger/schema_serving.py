"""The tables of what is served: aliases, deployments with their history, what calls came to, and batches."""

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
)

from factory.ledger.moments import UtcDateTime
from factory.ledger.schema_base import is_open, json_column, metadata

aliases = Table(
    "aliases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("alias", String(32), nullable=False),
    Column("version", Integer),
    Column("who", String(255), nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", json_column, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["variants.name", "variants.version"]),
    Index(None, "name", "alias", "id"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("as", String(16), nullable=False),
    Column("percent", Float),
    Column("version", Integer, nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["variants.name", "variants.version"]),
    UniqueConstraint("name", "as"),
)

deployment_changes = Table(
    "deployment_changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("as", String(16), nullable=False),
    Column("percent", Float),
    Column("version", Integer, nullable=False),
    Column("who", String(255), nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", json_column, nullable=False),
    Column("time", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["name", "version"], ["variants.name", "variants.version"]),
    Index(None, "name", "id"),
)
"""How it was changed how a name is served; rows are only added."""

LATENCY_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0)
LATENCY_COLUMNS = (*(f"ms_{bound:.0f}" for bound in LATENCY_MS), "ms_more")

served = Table(
    "served",
    metadata,
    Column("span", String(8), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("began", UtcDateTime, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in LATENCY_COLUMNS),
    Index(None, "span", "began"),
)
"""Calls that a version has answered within a minute or an hour, also by what they took."""

canaries = Table(
    "canaries",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("since", UtcDateTime, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("compared", BigInteger, nullable=False),
    Column("slower", BigInteger, nullable=False),
    Column("bets", json_column, nullable=False, server_default="[]"),
)
"""What counts against a canary since it was given its share, in all replicas, and what bets against it are worth."""

shadows = Table(
    "shadows",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("since", UtcDateTime, primary_key=True),
    Column("against", Integer, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("agreed", BigInteger, nullable=False),
    Column("measured", BigInteger, nullable=False),
    Column("difference", Float, nullable=False),
)
"""How a shadow's answers compare with those of the versions that callers got, in all replicas."""

batches = Table(
    "batches",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("team", String(64), nullable=False),
    Column("document", json_column, nullable=False),
    Column("anywhere", Boolean, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("next_due", UtcDateTime),
    Column("created", UtcDateTime, nullable=False),
    Column("created_by", String(255), nullable=False),
    Index(None, "team", "name"),
    Index(None, "enabled", "next_due"),
)
"""``anywhere``: whoever made it may name every file; others only those below the folders of the settings."""

batch_runs = Table(
    "batch_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("batch", String(128), ForeignKey("batches.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("due", UtcDateTime, nullable=False),
    Column("started_by", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("submitted_at", UtcDateTime),
    Column("began", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("variant", String(255)),
    Column("rows", BigInteger),
    Column("folder", String(255), nullable=False),
    Column("manifest", String(255)),
    Column("message", Text, nullable=False),
    UniqueConstraint("batch", "number"),
    Index("ix_batch_runs_open", "batch", unique=True, sqlite_where=is_open, postgresql_where=is_open),
)
"""``ix_batch_runs_open`` lets a batch have one open run at most, and is what finds the open ones."""

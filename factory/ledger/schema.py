"""The tables of the ledger, and how times and documents are stored in them.

Everything here is standard SQL that SQLite and PostgreSQL share.  A change of
a table is a new file in ``migrations/versions`` and a new :data:`HEAD`; a test
holds that the migrations lead to exactly these tables.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

HEAD = "0002"
"""Revision that the tables below are of."""

VERSION_TABLE = "ledger_schema"
"""Own version table, since MLflow keeps its ``alembic_version`` where both share one database."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, stored in UTC and returned aware, also where the database drops the offset."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the moment in UTC; a naive one is refused, since nobody knows what it means."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the moment with its offset."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """Return this moment in UTC."""
    return datetime.now(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_json = JSON(none_as_null=True)

requests = Table(
    "requests",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("document", _json, nullable=False),
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
    Column("error", _json),
    Column("driver_token", String(32)),
    Column("driver_host", String(255)),
    Column("driver_pid", Integer),
    Column("driver_started", Float),
    Column("driver_lease_until", UtcDateTime),
    Index(None, "created"),
    Index(None, "team", "state"),
    Index(None, "recipe"),
)

events = Table(
    "events",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("payload", _json, nullable=False),
)

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
    Column("document", _json, nullable=False),
    Index(None, "finished", "recorded"),
)

profiles = Table(
    "profiles",
    metadata,
    Column("request_id", String(64), ForeignKey("requests.id"), primary_key=True),
    Column("task", String(16), nullable=False),
    Column("recorded", UtcDateTime, nullable=False),
    Column("document", _json, nullable=False),
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
    Column("document", _json, nullable=False),
    Index(None, "request_id"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("alias", String(32), nullable=False),
    Column("version", Integer),
    Column("who", String(255), nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", _json, nullable=False),
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

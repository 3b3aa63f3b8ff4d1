"""Batches that are predicted again and again, and their runs."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)
_OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    """Create both tables, empty."""
    op.create_table(
        "batches",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("anywhere", sa.Boolean(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("next_due", _moment),
        sa.Column("created", _moment, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_batches"),
    )
    op.create_index("ix_batches_team_name", "batches", ["team", "name"])
    op.create_index("ix_batches_enabled_next_due", "batches", ["enabled", "next_due"])
    op.create_table(
        "batch_runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("batch", sa.String(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("due", _moment, nullable=False),
        sa.Column("started_by", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("submitted_at", _moment),
        sa.Column("began", _moment),
        sa.Column("ended_at", _moment),
        sa.Column("variant", sa.String(255)),
        sa.Column("rows", sa.BigInteger()),
        sa.Column("folder", sa.String(255), nullable=False),
        sa.Column("manifest", sa.String(255)),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batch_runs"),
        sa.ForeignKeyConstraint(["batch"], ["batches.name"], name="fk_batch_runs_batch_batches"),
        sa.UniqueConstraint("batch", "number", name="uq_batch_runs_batch_number"),
    )
    op.create_index(
        "ix_batch_runs_open", "batch_runs", ["batch"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN
    )

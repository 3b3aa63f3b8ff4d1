"""What is answered, by version and time, and what counts against a canary."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)
_LATENCY = ("1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "5000", "more")


def upgrade() -> None:
    """Create both tables, empty."""
    op.create_table(
        "served",
        sa.Column("span", sa.String(8), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("began", _moment, nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        *(sa.Column(f"ms_{bound}", sa.BigInteger(), nullable=False) for bound in _LATENCY),
        sa.PrimaryKeyConstraint("span", "name", "version", "began", name="pk_served"),
    )
    op.create_index("ix_served_span_began", "served", ["span", "began"])
    op.create_table(
        "canaries",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("since", _moment, nullable=False),
        *(sa.Column(each, sa.BigInteger(), nullable=False) for each in ("calls", "failed", "compared", "slower")),
        sa.PrimaryKeyConstraint("name", "version", "since", name="pk_canaries"),
    )

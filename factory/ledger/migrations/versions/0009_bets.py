"""What bets against a canary are worth, beside what counts against it."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the bets; where there are counts already, they are made by these."""
    op.add_column("canaries", sa.Column("bets", sa.JSON(), nullable=False, server_default="[]"))

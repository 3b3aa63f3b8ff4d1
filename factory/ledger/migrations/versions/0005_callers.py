"""The variants that a token may call."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the pattern; tokens that there are may call all variants that their scopes let them call."""
    op.add_column("tokens", sa.Column("variants", sa.String(200)))

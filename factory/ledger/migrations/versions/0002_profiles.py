"""What the data of a request look like, by which siblings are found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of profiles; requests from before have none."""
    op.create_table(
        "profiles",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("task", sa.String(16), nullable=False),
        sa.Column("recorded", sa.DateTime(timezone=True), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_profiles"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_profiles_request_id_requests"),
    )
    op.create_index("ix_profiles_task_recorded", "profiles", ["task", "recorded"])

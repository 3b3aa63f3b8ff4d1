"""How it was changed how a name is served: by whom, when and why; and how shadows compare."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables, empty: what was changed before is in the audit log, without its reason."""
    op.create_table(
        "deployment_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("as", sa.String(16), nullable=False),
        sa.Column("percent", sa.Float()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deployment_changes"),
        sa.ForeignKeyConstraint(
            ["name", "version"],
            ["variants.name", "variants.version"],
            name="fk_deployment_changes_name_version_variants",
        ),
    )
    op.create_index("ix_deployment_changes_name_id", "deployment_changes", ["name", "id"])
    op.create_table(
        "shadows",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("against", sa.Integer(), nullable=False),
        *(sa.Column(each, sa.BigInteger(), nullable=False) for each in ("calls", "labelled", "agreed", "measured")),
        sa.Column("difference", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "since", "against", name="pk_shadows"),
    )

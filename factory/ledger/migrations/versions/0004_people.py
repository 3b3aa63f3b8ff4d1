"""Sessions of people who signed in, and promotions that wait for a second person."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)
_json = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Create both tables, empty."""
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(255)),
        sa.Column("email", sa.String(255), nullable=False),
        sa.Column("grants", _json, nullable=False),
        sa.Column("token_id", sa.String(32)),
        sa.Column("team", sa.String(64)),
        sa.Column("created", _moment, nullable=False),
        sa.Column("expires", _moment, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
        sa.ForeignKeyConstraint(["token_id"], ["tokens.id"], name="fk_sessions_token_id_tokens"),
    )
    for column in ("subject", "token_id", "expires"):
        op.create_index(f"ix_sessions_{column}", "sessions", [column])
    op.create_table(
        "proposals",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("wish", _json, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", _json, nullable=False),
        sa.Column("proposed_by", sa.String(255), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("decided_by", sa.String(255)),
        sa.Column("decided_why", sa.Text()),
        sa.Column("decided_at", _moment),
        sa.PrimaryKeyConstraint("id", name="pk_proposals"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["variants.name", "variants.version"], name="fk_proposals_name_version_variants"
        ),
    )
    op.create_index("ix_proposals_created_id", "proposals", ["created", "id"])
    op.create_index("ix_proposals_team_created_id", "proposals", ["team", "created", "id"])
    undecided = sa.text("state = 'open'")
    op.create_index(
        "ix_proposals_open",
        "proposals",
        ["name", "version"],
        unique=True,
        sqlite_where=undecided,
        postgresql_where=undecided,
    )

"""Requests, events, trials, variants, aliases, deployments."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the first schema."""
    op.create_table(
        "requests",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("team", sa.String(64), nullable=False),
        sa.Column("variant", sa.String(128), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("updated", _moment, nullable=False),
        sa.Column("retry_of", sa.String(64)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("fault", sa.String(8)),
        sa.Column("error", sa.JSON()),
        sa.Column("driver_token", sa.String(32)),
        sa.Column("driver_host", sa.String(255)),
        sa.Column("driver_pid", sa.Integer()),
        sa.Column("driver_started", sa.Float()),
        sa.Column("driver_lease_until", _moment),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.ForeignKeyConstraint(["retry_of"], ["requests.id"], name="fk_requests_retry_of_requests"),
    )
    op.create_index("ix_requests_created", "requests", ["created"])
    op.create_index("ix_requests_team_state", "requests", ["team", "state"])
    op.create_index("ix_requests_recipe", "requests", ["recipe"])
    op.create_table(
        "events",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", _moment, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "sequence", name="pk_events"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_events_request_id_requests"),
    )
    op.create_table(
        "trials",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("segment", sa.String(255), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.Column("score", sa.Float()),
        sa.Column("cost_s", sa.Float(), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("recorded", _moment, nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "segment", "number", name="pk_trials"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_trials_request_id_requests"),
    )
    op.create_index("ix_trials_finished_recorded", "trials", ["finished", "recorded"])
    op.create_table(
        "variants",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", _moment, nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_variants"),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name="fk_variants_request_id_requests"),
    )
    op.create_index("ix_variants_request_id", "variants", ["request_id"])
    op.create_table(
        "aliases",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("alias", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer()),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("time", _moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_aliases"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["variants.name", "variants.version"], name="fk_aliases_name_version_variants"
        ),
    )
    op.create_index("ix_aliases_name_alias_id", "aliases", ["name", "alias", "id"])
    op.create_table(
        "deployments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("as", sa.String(16), nullable=False),
        sa.Column("percent", sa.Float()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated", _moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deployments"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["variants.name", "variants.version"], name="fk_deployments_name_version_variants"
        ),
        sa.UniqueConstraint("name", "as", name="uq_deployments_name_as"),
    )

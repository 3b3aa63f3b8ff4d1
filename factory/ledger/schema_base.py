"""What all tables of the ledger have in common."""

from __future__ import annotations

from sqlalchemy import JSON, MetaData, text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

json_column = JSON(none_as_null=True)
is_open = text("ended_at IS NULL")

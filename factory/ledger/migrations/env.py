"""Run by Alembic: upgrades on the connection, and within the transaction, that the ledger hands in."""

from alembic import context

from factory.ledger.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()

"""Alembic's entry: one transaction, one migrator at a time."""

from alembic import context
from sqlalchemy import text

from recparams_server.store.locks import MIGRATION_LOCK

connection = context.config.attributes["connection"]
connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()

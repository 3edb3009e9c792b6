"""Run by Alembic: applies the versions over the connection that `gateway.schema` hands in."""

from alembic import context

# All versions in the transaction that is open on the connection, on SQLite too.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()

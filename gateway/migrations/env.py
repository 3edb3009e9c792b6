"""Run by Alembic: applies the versions over the connection that `gateway.schema` hands in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()

"""Alembic's environment: the connection comes from `kit.migrate`, never from a file."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
context.run_migrations()

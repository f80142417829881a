"""Alembic's entry point; runs inside the transaction that ``Database.migrate`` has opened."""

from __future__ import annotations

from alembic import context

from graft_server.registry.models import Table

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Table.metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()

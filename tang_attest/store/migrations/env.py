"""Runs the migrations on the connection that ``tang_attest.store.database.schema`` gives, inside its transaction."""

from __future__ import annotations

from alembic import context

from tang_attest.store.database import tables, versioned

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[tables.metadata, versioned.metadata],
    render_as_batch=True,  # SQLite cannot alter a column
    transactional_ddl=True,  # also in SQLite: a migration happens or does not
)
with context.begin_transaction():
    context.run_migrations()

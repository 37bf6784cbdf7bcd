"""Alembic's scripts; ``tang_attest.store.database.schema`` runs them."""

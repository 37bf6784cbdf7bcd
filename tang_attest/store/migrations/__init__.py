"""Alembic's scripts; ``tang_attest.store.schema`` runs them."""

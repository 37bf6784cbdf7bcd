"""The registry: devices, policies, keys, tokens and the audit, in SQLite or PostgreSQL."""

from tang_attest.store.store import SqlStore, open_store, upgrade

__all__ = ["SqlStore", "open_store", "upgrade"]

"""A key may be retired, and searches of the audit record have indexes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sealed_key", sa.Column("retired_at", sa.BigInteger()))
    op.create_index("ix_audit_at", "audit", ["at"])
    _partial("ix_audit_code_id", ["code", "id"], "code <> 'ok'")
    _partial("ix_audit_event_id", ["event", "id"], "event <> 'unlock'", event="text_pattern_ops")
    _partial("ix_audit_actor_id", ["actor", "id"], "event <> 'unlock'")


def _partial(name: str, columns: list[str], condition: str, **classes: str) -> None:
    where = sa.text(condition)
    op.create_index(
        name, "audit", columns, sqlite_where=where, postgresql_where=where, postgresql_ops=classes
    )

"""Indexes of beginnings of names: PostgreSQL's own index of names sorts by the locale, where a beginning is no range."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("device", "policy"):
        op.create_index(
            f"ix_{table}_name_bytes", table, ["name"], postgresql_ops={"name": "text_pattern_ops"}
        )

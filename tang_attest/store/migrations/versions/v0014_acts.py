"""A key may be retired; the audit record has indexes for searches, and parts of it may be in files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("sealed_key", sa.Column("retired_at", sa.BigInteger()))
    op.create_index("ix_audit_at", "audit", ["at"])
    _partial("ix_audit_code_id", ["code", "id"], "code <> 'ok'")
    _partial("ix_audit_event_id", ["event", "id"], "event <> 'unlock'", event="text_pattern_ops")
    _partial("ix_audit_actor_id", ["actor", "id"], "event <> 'unlock'")
    op.create_table(
        "audit_archive",
        sa.Column("seq", _BIG, nullable=False, autoincrement=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("first_id", sa.BigInteger(), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_at", sa.BigInteger(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=False),
        sa.Column("archived_by", sa.Text(), nullable=False),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_archive")),
    )
    op.create_table(
        "audit_version",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_version")),
        sqlite_autoincrement=True,
    )


def _partial(name: str, columns: list[str], condition: str, **classes: str) -> None:
    where = sa.text(condition)
    op.create_index(
        name, "audit", columns, sqlite_where=where, postgresql_where=where, postgresql_ops=classes
    )

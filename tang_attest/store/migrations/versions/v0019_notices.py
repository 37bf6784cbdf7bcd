"""Events that want a person, grouped, and their messages to receivers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "notice_cursor",
        sa.Column("place", _BIG, nullable=False, autoincrement=False),
        sa.Column("audit_id", sa.BigInteger(), nullable=False),
        sa.Column("checked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_notice_cursor")),
    )
    op.create_table(
        "notice_group",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("due_at", sa.BigInteger()),
        sa.Column("known_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_notice_group")),
    )
    op.create_index(op.f("ix_notice_group_kind"), "notice_group", ["kind"])
    op.create_index(op.f("ix_notice_group_due_at"), "notice_group", ["due_at"])
    op.create_table(
        "delivery",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_delivery_receiver"), "delivery", ["receiver"])

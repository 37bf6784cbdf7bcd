"""Running machines are verified, watched, suspended and allowed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("policy") as policy:
        policy.add_column(sa.Column("conditions", sa.Text()))
    with op.batch_alter_table("device") as device:
        for name in ("running_policy", "tcti", "ak_handle", "suspended_by", "suspended_reason"):
            device.add_column(sa.Column(name, sa.Text()))
        for name in ("outcome", "outcome_code"):
            device.add_column(sa.Column(name, sa.Text()))
        for name in ("suspended_at", "allowed_until", "outcome_since", "answered_at", "verified_at"):
            device.add_column(sa.Column(name, sa.BigInteger()))
        device.add_column(sa.Column("wanted_at", sa.BigInteger()))
        device.create_index(op.f("ix_device_wanted_at"), ["wanted_at"])
    op.create_table(
        "verification",
        sa.Column("id", BIG, nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verification")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "notification",
        sa.Column("id", BIG, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification")),
        sqlite_autoincrement=True,
    )
    # The best that is known of when evidence was last good.
    op.execute("UPDATE device SET verified_at = last_seen_at WHERE last_code = 'ok'")
    op.create_index(op.f("ix_verification_device"), "verification", ["device"])

"""Reference states get a life, devices labels, a grade and their last evidence."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("policy") as policy:
        policy.add_column(
            sa.Column("trust_predictions", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        policy.add_column(sa.Column("rules", sa.Text()))
    with op.batch_alter_table("reference_state") as state:
        state.add_column(sa.Column("life", sa.Text(), nullable=False, server_default="active"))
        state.add_column(sa.Column("device", sa.Text()))
        state.add_column(sa.Column("expires_at", sa.BigInteger()))
        state.add_column(sa.Column("uses_left", sa.Integer()))
        state.add_column(sa.Column("rollout", sa.Text()))
        state.add_column(sa.Column("created_at", sa.BigInteger()))
        state.add_column(sa.Column("created_by", sa.Text()))
        state.add_column(sa.Column("notes", sa.Text()))
    with op.batch_alter_table("device") as device:
        device.add_column(sa.Column("last_state", sa.Text()))
        device.add_column(sa.Column("labels", sa.Text(), nullable=False, server_default="[]"))
        device.add_column(sa.Column("grade", sa.Text()))
        device.add_column(sa.Column("evidence_digest", sa.LargeBinary()))
    op.create_table(
        "evidence",
        sa.Column("device_id", BIG, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("pcr_values", sa.Text(), nullable=False),
        sa.Column("event_log", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_evidence_device_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_evidence")),
    )

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
    # ADD COLUMN, not batch mode: that would drop the tables that others refer to.
    op.add_column("policy", sa.Column("trust_predictions", sa.Boolean(), nullable=False, server_default="0"))
    op.add_column("policy", sa.Column("rules", sa.Text()))
    op.add_column("reference_state", sa.Column("life", sa.Text(), nullable=False, server_default="active"))
    op.add_column("reference_state", sa.Column("device", sa.Text()))
    op.add_column("reference_state", sa.Column("expires_at", sa.BigInteger()))
    op.add_column("reference_state", sa.Column("uses_left", sa.Integer()))
    op.add_column("reference_state", sa.Column("rollout", sa.Text()))
    op.add_column("reference_state", sa.Column("created_at", sa.BigInteger()))
    op.add_column("reference_state", sa.Column("created_by", sa.Text()))
    op.add_column("reference_state", sa.Column("notes", sa.Text()))
    op.add_column("device", sa.Column("last_state", sa.Text()))
    op.add_column("device", sa.Column("labels", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("device", sa.Column("grade", sa.Text()))
    op.add_column("device", sa.Column("evidence_digest", sa.LargeBinary()))
    op.create_table(
        "evidence",
        sa.Column("device_id", BIG, autoincrement=False, nullable=False),
        sa.Column("permitted", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("pcr_values", sa.Text(), nullable=False),
        sa.Column("event_log", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_evidence_device_id")),
        sa.PrimaryKeyConstraint("device_id", "permitted", name=op.f("pk_evidence")),
    )
    op.create_table(
        "admin_token",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("policies", sa.Text()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_admin_token")),
        sa.UniqueConstraint("name", name=op.f("uq_admin_token_name")),
    )
    op.add_column("token", sa.Column("labels", sa.Text(), nullable=False, server_default="[]"))
    _create_rollouts()


def _create_rollouts() -> None:
    op.create_table(
        "rollout",
        sa.Column("id", BIG, nullable=False),
        sa.Column("policy_id", BIG, nullable=False),
        sa.Column("under_way", BIG),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("change", sa.Text(), nullable=False),
        sa.Column("salt", sa.Text(), nullable=False),
        sa.Column("share", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text()),
        sa.Column("refusal_limit", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("ended_by", sa.Text()),
        sa.Column("why", sa.Text()),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_rollout_policy_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
        sa.UniqueConstraint("policy_id", "name", name=op.f("uq_rollout_policy_id_name")),
        sa.UniqueConstraint("under_way", name=op.f("uq_rollout_under_way")),
    )
    op.create_table(
        "rollout_device",
        sa.Column("rollout_id", BIG, autoincrement=False, nullable=False),
        sa.Column("device_id", BIG, autoincrement=False, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_rollout_device_device_id")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_device_rollout_id")),
        sa.PrimaryKeyConstraint("rollout_id", "device_id", name=op.f("pk_rollout_device")),
    )
    op.create_index(op.f("ix_rollout_device_device_id"), "rollout_device", ["device_id"])

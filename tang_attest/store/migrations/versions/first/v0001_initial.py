"""The initial schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", BIG, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("device", sa.Text()),
        sa.Column("kid", sa.Text()),
        sa.Column("address", sa.Text()),
        sa.Column("request_id", sa.Text()),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_device"), "audit", ["device"])
    op.create_table(
        "ek_root",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("der", sa.LargeBinary(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_ek_root")),
    )
    op.create_table(
        "nonce",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_nonce")),
    )
    op.create_index(op.f("ix_nonce_expires_at"), "nonce", ["expires_at"])
    op.create_table(
        "policy",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("cap_pcr", sa.Integer(), nullable=False),
        sa.Column("recorded_for", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy")),
        sa.UniqueConstraint("name", name=op.f("uq_policy_name")),
    )
    op.create_table(
        "token",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("policy", sa.Text()),
        sa.Column("record", sa.Boolean(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("cap_pcr", sa.Integer(), nullable=False),
        sa.Column("allow_unverified_ek", sa.Boolean(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("learn_for_s", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_token")),
    )
    op.create_table(
        "device",
        sa.Column("id", BIG, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("policy_id", BIG, nullable=False),
        sa.Column("ak_public", sa.LargeBinary(), nullable=False),
        sa.Column("ak_name", sa.LargeBinary(), nullable=False),
        sa.Column("ak_spki", sa.LargeBinary(), nullable=False),
        sa.Column("ak_scheme", sa.Text(), nullable=False),
        sa.Column("ak_hash", sa.Text(), nullable=False),
        sa.Column("ek_spki", sa.LargeBinary()),
        sa.Column("ek_certificate", sa.LargeBinary()),
        sa.Column("ek_verified", sa.Boolean(), nullable=False),
        sa.Column("ek_issuer", sa.Text()),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("enrolled_at", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger()),
        sa.Column("reset_count", sa.BigInteger()),
        sa.Column("restart_count", sa.BigInteger()),
        sa.Column("opened_reset_count", sa.BigInteger()),
        sa.Column("clock_safe", sa.Boolean()),
        sa.Column("learning", sa.Text()),
        sa.Column("last_seen_at", sa.BigInteger()),
        sa.Column("last_code", sa.Text()),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_device_policy_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        sa.UniqueConstraint("ak_spki", name=op.f("uq_device_ak_spki")),
        sa.UniqueConstraint("ek_spki", name=op.f("uq_device_ek_spki")),
        sa.UniqueConstraint("name", name=op.f("uq_device_name")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_device_policy_id"), "device", ["policy_id"])
    op.create_table(
        "reference_state",
        sa.Column("id", BIG, nullable=False),
        sa.Column("policy_id", BIG, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("pcr_values", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["policy_id"], ["policy.id"], name=op.f("fk_reference_state_policy_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reference_state")),
        sa.UniqueConstraint("policy_id", "label", name=op.f("uq_reference_state_policy_id_label")),
    )
    op.create_table(
        "observation",
        sa.Column("id", BIG, nullable=False),
        sa.Column("device_id", BIG, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("pcr_values", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reset_count", sa.BigInteger(), nullable=False),
        sa.Column("event_log", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_observation_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observation")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_observation_device_id"), "observation", ["device_id"])
    op.create_table(
        "sealed_key",
        sa.Column("kid", sa.Text(), nullable=False),
        sa.Column("use", sa.Text(), nullable=False),
        sa.Column("curve", sa.Text(), nullable=False),
        sa.Column("public", sa.Text(), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("rotated_at", sa.BigInteger()),
        sa.Column("device_id", BIG),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_sealed_key_device_id")),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_sealed_key")),
    )
    op.create_index(op.f("ix_sealed_key_device_id"), "sealed_key", ["device_id"])

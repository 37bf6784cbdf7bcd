"""Operators of the console, their passkeys and sessions, and the acts that they sign."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "operator",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("handle", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.BigInteger()),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_operator")),
        sa.UniqueConstraint("handle", name=op.f("uq_operator_handle")),
    )
    op.create_table(
        "operator_link",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger()),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_operator_link")),
    )
    op.create_index("ix_operator_link_operator", "operator_link", ["operator"])
    op.create_table(
        "passkey",
        sa.Column("credential_id", sa.LargeBinary(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sign_count", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("credential_id", name=op.f("pk_passkey")),
    )
    op.create_index("ix_passkey_operator", "passkey", ["operator"])
    op.create_table(
        "operator_session",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("challenge", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_operator_session")),
        sa.UniqueConstraint("challenge", name=op.f("uq_operator_session_challenge")),
    )
    op.create_index("ix_operator_session_operator", "operator_session", ["operator"])
    op.create_table(
        "act_request",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("session", sa.LargeBinary(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger()),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_act_request")),
    )
    op.create_table(
        "pending_approval",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("needed", sa.Integer(), nullable=False),
        sa.Column("signatures", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_pending_approval")),
        sa.UniqueConstraint("subject", name=op.f("uq_pending_approval_subject")),
    )

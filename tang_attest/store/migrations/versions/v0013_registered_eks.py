"""EKs that an operator registers before their machines enroll."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "registered_ek",
        sa.Column("ek_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("without_token", sa.Boolean(), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.Text(), nullable=False),
        sa.Column("used_at", sa.BigInteger()),
        sa.Column("seal", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("ek_sha256", name=op.f("pk_registered_ek")),
        sa.UniqueConstraint("name", name=op.f("uq_registered_ek_name")),
    )

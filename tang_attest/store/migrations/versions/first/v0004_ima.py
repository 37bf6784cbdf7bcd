"""IMA's measurement lists are verified."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "ima_requirement",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_ima_requirement")),
    )
    op.create_table(
        "ima_progress",
        sa.Column("device_id", BIG, nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_ima_progress_device_id_device")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_ima_progress")),
    )

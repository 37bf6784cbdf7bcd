"""Devices that are only verified may share an AK."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("device", sa.Column("shared_ak_spki", sa.LargeBinary()))
    op.create_index(op.f("ix_device_shared_ak_spki"), "device", ["shared_ak_spki"])

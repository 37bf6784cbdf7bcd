"""Rows that decide something have a seal (authentic.py); ``store/maintenance/resealing.py`` makes those of the rows that are here."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TABLES = (
    "admin_token",
    "device",
    "ek_root",
    "evidence",
    "ima_progress",
    "ima_requirement",
    "notification",
    "observation",
    "policy",
    "reference_state",
    "rollout",
    "rollout_device",
    "sealed_key",
    "token",
)


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("seal", sa.LargeBinary(), nullable=True))

"""Signers of a policy, and the signed state that permitted a device's last unlock."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("policy", sa.Column("signers", sa.Text()))
    op.add_column("device", sa.Column("signed", sa.Text()))

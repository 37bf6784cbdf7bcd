"""A boot that was learned opens nothing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("device", sa.Column("learned_reset_count", sa.BigInteger()))

"""A token may enroll several machines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("token", sa.Column("machines", sa.Integer()))
    op.add_column("token", sa.Column("uses", sa.Integer()))

"""Parts of a boot that nothing covers may be accepted, and a token may leave the selection to the machine's event log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reference_state", sa.Column("accepted_uncovered", sa.Text()))
    op.add_column("token", sa.Column("accepted_uncovered", sa.Text()))
    op.add_column("token", sa.Column("proposes", sa.Boolean()))

"""The registry has a version, which triggers change with every row that an appraisal rests on (versioned.py)."""

from __future__ import annotations

from alembic import op

from tang_attest.store.database import versioned

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    versioned.create(connection)
    for table in ("policy", "reference_state", "rollout", "sealed_key"):
        versioned.watch(connection, table)

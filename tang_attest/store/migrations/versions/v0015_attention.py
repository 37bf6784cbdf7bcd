"""Indexes for pages that people look at: what wants a person, and the users of a state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _partial("ix_device_refused", "device", "last_seen_at", "last_code IS NOT NULL AND last_code <> 'ok'")
    _partial("ix_device_suspended", "device", "suspended_at", "suspended_at IS NOT NULL")
    _partial("ix_device_unwell", "device", "outcome_since", "outcome IS NOT NULL AND outcome <> 'verified'")
    _partial("ix_reference_state_proposed", "reference_state", "created_at", "life = 'proposed'")
    _partial("ix_rollout_stopped", "rollout", "under_way", "under_way IS NOT NULL AND status = 'stopped'")
    op.create_index("ix_device_policy_id_last_state", "device", ["policy_id", "last_state", "name"])
    op.create_index("ix_rollout_device_outcome", "rollout_device", ["rollout_id", "outcome"])


def _partial(name: str, table: str, column: str, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)

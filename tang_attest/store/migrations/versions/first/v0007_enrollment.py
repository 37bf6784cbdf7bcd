"""Tokens can be revoked; EK roots are looked up by subject."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tang_attest.errors import Malformed
from tang_attest.protocol.endorsement.endorsement import subject_digest

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("token") as batch:
        batch.add_column(sa.Column("revoked_at", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("ek_root") as batch:
        batch.add_column(sa.Column("subject", sa.LargeBinary(), nullable=True))
    op.create_index(op.f("ix_ek_root_subject"), "ek_root", ["subject"])
    root = sa.table(
        "ek_root",
        sa.column("fingerprint"),
        sa.column("der", sa.LargeBinary),
        sa.column("subject", sa.LargeBinary),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(root.c.fingerprint, root.c.der)).all():
        try:
            subject = subject_digest(row.der)
        except Malformed:
            continue
        connection.execute(root.update().where(root.c.fingerprint == row.fingerprint).values(subject=subject))

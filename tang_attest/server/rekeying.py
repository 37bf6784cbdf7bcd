"""The exchange of the key-encryption key in file and database; it can be continued after an interruption
anywhere.

The new secret is on the disk before the database is moved to it, and replaces the old one afterwards.  An
interruption in between leaves both files; the database shows which of the two it is under.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tang_attest import store
from tang_attest.config import Settings
from tang_attest.errors import NotFound
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import FILE_NAME, ServerSecret, load_new_secret, load_secret, replace_secret
from tang_attest.ports.audit import AuditEntry
from tang_attest.protocol.audit_chain import KEY_LABEL, Seal
from tang_attest.server.compose import World, wrong_secret
from tang_attest.store.maintenance.rekeying import Rekeyed


@dataclass(frozen=True, slots=True)
class Rotated:
    """The number of rows moved, the number that were not ours, the chain's heads as text, and the old
    secret's path.
    """

    rows: int
    foreign: int
    old_head: str | None
    new_head: str | None
    kept: Path


async def rotate_secret(settings: Settings, world: World) -> Rotated:
    """Exchange the secret of the installation that *settings* name.

    Raises ``state-missing``, ``setting-invalid`` (a credential of the service manager, which has to be
    exchanged where it comes from, or a secret that is not the database's), ``audit-changed``, and what the
    store raises.
    """
    old, new = _secrets(settings)
    moved = await _move(settings.database_url, old, new, world)
    kept = replace_secret(settings.state)
    if moved is None:
        return Rotated(0, 0, None, None, kept)
    return Rotated(moved.rows, moved.foreign, _text(moved.old_head), _text(moved.new_head), kept)


def _secrets(settings: Settings) -> tuple[ServerSecret, ServerSecret]:
    """Return the secret of now, and the one to come, which is on the disk already."""
    if not os.path.lexists(settings.state / FILE_NAME):
        raise NotFound("state-missing", f"There is no key-encryption key at {settings.state / FILE_NAME}.")
    return load_secret(settings.state), load_new_secret(settings.state)


def _text(head: Seal | None) -> str | None:
    return None if head is None else head.head


async def _move(url: str, old: ServerSecret, new: ServerSecret, world: World) -> Rekeyed | None:
    """Move the database from *old* to *new*; ``None`` when an interrupted run has done that."""
    if not await is_under(url, old):
        if await is_under(url, new):
            return None
        raise wrong_secret()
    keys, new_keys = EncryptedKeys(old), EncryptedKeys(new)
    entry = AuditEntry(world.clock.now(), "keys rotate-kek", f"operator:{world.operator}", "done")
    return await store.rekey(url, _side(old), _side(new), lambda text: keys.rewrap(text, new_keys), entry)


def _side(secret: ServerSecret) -> store.Side:
    return store.Side(store.Authenticity(secret.derive(store.KEY_LABEL)), secret.derive(KEY_LABEL))


async def is_under(url: str, secret: ServerSecret) -> bool:
    """Return True if the database at *url* is sealed under *secret*, or has no keys yet."""
    opened = await store.open_store(url, secret.derive(store.KEY_LABEL))
    try:
        there, ours = await opened.keys.count_signing_keys()
    finally:
        await opened.close()
    return not there or ours > 0

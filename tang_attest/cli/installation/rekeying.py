"""The key-encryption key is exchanged: file and database, so that an interruption anywhere can be gone on from.

The new secret is on the disk before the database is moved to it, and replaces the old one afterwards.  Whoever is
interrupted in between has both files, and the database says which of the two it is under.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from tang_attest import store
from tang_attest.cli.progress import shown
from tang_attest.cli.state import SystemClock, operator_name
from tang_attest.config import Settings
from tang_attest.errors import Malformed, NotFound
from tang_attest.keys.sealed import EncryptedKeys
from tang_attest.keys.secret import FILE_NAME, ServerSecret, load_new_secret, load_secret, replace_secret
from tang_attest.ports.audit import AuditEntry
from tang_attest.protocol.audit_chain import KEY_LABEL


@dataclass(frozen=True, slots=True)
class Rotated:
    """The number of rows moved, the number that were not ours, the chain's heads as text, and where the old secret is."""

    rows: int
    foreign: int
    old_head: str | None
    new_head: str | None
    kept: Path


def rotate_secret(settings: Settings) -> Rotated:
    """Exchange the secret of the state that *settings* name.

    Raises ``state-missing``, ``setting-invalid`` (a credential of the service manager, which has to be exchanged where
    it comes from, or a secret that is not the database's), ``audit-changed``, and what the store raises.
    """
    if not os.path.lexists(settings.state / FILE_NAME):
        raise NotFound("state-missing", f"There is no key-encryption key at {settings.state / FILE_NAME}.")
    old, new = load_secret(settings.state), load_new_secret(settings.state)
    done = asyncio.run(_rotate(settings.database_url, old, new))
    kept = replace_secret(settings.state)
    return Rotated(*done, kept)


async def _rotate(url: str, old: ServerSecret, new: ServerSecret) -> tuple[int, int, str | None, str | None]:
    if not await _is_under(url, old):
        if await _is_under(url, new):
            return 0, 0, None, None  # it was moved before somebody interrupted us
        raise Malformed(
            "setting-invalid",
            "Setting state: its key-encryption key is not the one that the database was made with.",
        )
    keys, new_keys = EncryptedKeys(old), EncryptedKeys(new)
    entry = AuditEntry(SystemClock().now(), "keys rotate-kek", f"operator:{operator_name()}", "done")
    async with shown("moving"):
        done = await store.rekey(url, _side(old), _side(new), lambda text: keys.rewrap(text, new_keys), entry)
    heads = (seal.head if seal is not None else None for seal in (done.old_head, done.new_head))
    return (done.rows, done.foreign, *heads)  # type: ignore[return-value]  # two of them


def _side(secret: ServerSecret) -> store.Side:
    return store.Side(store.Authenticity(secret.derive(store.KEY_LABEL)), secret.derive(KEY_LABEL))


async def _is_under(url: str, secret: ServerSecret) -> bool:
    opened = await store.open_store(url, secret.derive(store.KEY_LABEL))
    try:
        there, ours = await opened.count_signing_keys()
    finally:
        await opened.close()
    return not there or ours > 0

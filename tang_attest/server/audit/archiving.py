"""Archives of the audit record: made, and checked with the record or alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from tang_attest import store
from tang_attest.config import Settings
from tang_attest.errors import Conflict, Reason, Refused, TangAttestError
from tang_attest.files import read_file
from tang_attest.keys.secret import FILE_NAME, ServerSecret, load_secret, parse_secret
from tang_attest.ports.audit import Archive, AuditEntry
from tang_attest.protocol.audit_chain import KEY_LABEL as CHAIN_LABEL
from tang_attest.protocol.audit_chain import Row
from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.server.compose import World

#: The label of the key that authenticates archives.
_ARCHIVE_LABEL: Final = "audit archive"
#: Bytes of a file with a key-encryption key.
_MAX_SECRET: Final = 1024

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Archived:
    """Result of a run: ``archive`` is what was taken out, ``None`` if nothing was old enough; ``resumed`` is true if
    an earlier run had written the file.
    """

    archive: Archive | None
    resumed: bool = False


async def archive(
    settings: Settings, path: Path, before: datetime, world: World, progress: Progress
) -> Archived:
    """Move the sealed entries from before *before* into the file *path*.

    An interrupted run is finished by another with the same *path*.  Raises ``file-exists`` for any other file there,
    ``audit-changed``, and errors of the secret and of the store.
    """
    secret = load_secret(settings.state)
    row_key, keys = secret.derive(store.KEY_LABEL), _keys(secret)
    url, by = settings.database_url, f"operator:{world.operator}"
    resumed = await asyncio.to_thread(os.path.lexists, path)
    if not resumed and not await store.write_archive(url, row_key, path, keys, before, by, progress):
        return Archived(None)
    stretch = await _own(settings, path, secret, keys, resumed=resumed)
    if isinstance(stretch, Archive):
        return Archived(stretch, resumed=True)
    details = {
        "file": path.name,
        "sha256": stretch.sha256.hex(),
        "first_seal": stretch.first.seq,
        "head": stretch.head.head,
        "rows": stretch.rows,
    }
    entry = AuditEntry(world.clock.now(), "audit archive", by, "done", details=details)
    return Archived(await store.take_out(url, row_key, stretch, path.name, entry), resumed)


async def _own(
    settings: Settings, path: Path, secret: ServerSecret, keys: store.ArchiveKeys, *, resumed: bool
) -> store.Stretch | Archive:
    """Read the file again; the note of it if an earlier run ended after it took the rows out."""
    try:
        stretch = store.read_archive(path, [keys])
    except TangAttestError:
        if not resumed:
            raise
        sentence = f"There is a file {path} already, which is no archive of this record."
        raise Conflict("file-exists", sentence) from None
    opened = await store.open_store(settings.database_url, secret.derive(store.KEY_LABEL))
    try:
        noted = await opened.audit.list_archives()
    finally:
        await opened.close()
    return next(
        (each for each in noted if each.head == stretch.head or each.sha256 == stretch.sha256), stretch
    )


def check_archives(
    state: Path,
    files: Sequence[Path],
    keks: Sequence[Path],
    progress: Progress,
    expected: tuple[int, bytes] | None = None,
    *,
    signatures: SignatureCheck | None = None,
) -> tuple[list[store.Stretch], list[Reason]]:
    """Check each of *files* and that they follow each other; return their stretches in order, and the findings.

    *signatures* looks at what operators signed; it needs their public keys, which are in the database.

    They are checked with the key-encryption key in *state*, if there is one, and those in the files *keks*.  Raises
    ``file-unreadable``, and errors of the secret.
    """
    candidates = [
        _keys(parse_secret(read_file(kek, _MAX_SECRET).decode("ascii", "replace"), str(kek))) for kek in keks
    ]
    if not keks or (state / FILE_NAME).exists():
        candidates.append(_keys(load_secret(state)))
    stretches: list[store.Stretch] = []
    findings: list[Reason] = []

    def look(row: Row) -> None:
        if signatures is not None and (reason := signatures.look(row)) is not None:
            findings.append(reason)

    seq = expected[0] if expected else None
    for path in files:
        try:
            stretches.append(store.read_archive(path, candidates, progress, wanted=seq, look=look))
        except (Refused, Conflict) as error:
            findings.append(Reason(error.code, f"{path}: {error.sentence}"))
    stretches.sort(key=lambda stretch: stretch.first.seq)
    for one, two in pairwise(stretches):
        if two.previous != one.head.head:
            findings.append(_gap(one.head.head, two.first.seq))
    return stretches, findings


def compare(stretches: Sequence[store.Stretch], archives: Sequence[Archive]) -> list[Reason]:
    """Return the findings about files and the record's own notes of them: each file is one that was archived."""
    noted = {each.head.head for each in archives}
    return [
        Reason(
            "archive-elsewhere", f"Seals {each.first.seq} to {each.head.seq} are not noted as archived here."
        )
        for each in stretches
        if each.head.head not in noted
    ]


def met(stretches: Sequence[store.Stretch], expected: tuple[int, bytes]) -> bool:
    """True when one of *stretches* has the seal *expected*."""
    return any(each.noted == expected[1] for each in stretches)


def _gap(head: str, seq: int) -> Reason:
    return Reason(
        "archive-elsewhere", f"The archive that begins with seal {seq} does not go on after {head[:24]}..."
    )


def _keys(secret: ServerSecret) -> store.ArchiveKeys:
    return store.ArchiveKeys(secret.derive(CHAIN_LABEL), secret.derive(_ARCHIVE_LABEL))

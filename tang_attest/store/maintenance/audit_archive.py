"""Old seals of the audit record and the rows under them, in a file of their own.

A file has the form of archive_file.py, compressed by gzip:

    {"format": "tang-attest audit archive", "version": 1, "archived_by": ..., "previous": "SEQ:HASH" or ""}
    {"seal": [SEQ, FIRST_ID, LAST_ID, ROWS, "HASH", SEALED_AT]}         each seal, in order
    [ID, AT, EVENT, ACTOR, VERDICT, CODE, DEVICE, ...]                  the rows under it, as they were sealed
    {"rows": 7, "seals": 2, "head": "SEQ:HASH"}                         the foot
    {"sha256": "<hex>", "hmac": "<hex>"}                                over every line before

Rules of this module:

* Each seal is checked while it is written, and the file is read again and checked before a row is deleted.
* Rows are deleted in one transaction with the note of the file (`audit_archive`), which is sealed like other rows
  and from whose hash the chain goes on.
* The newest seal stays: the next one follows it.
* Versions of rows that archived entries have are kept in `audit_version` (row_check.py): without them, a row of
  before could be put back.
* A complete file that an interrupted run left is used by the next run.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final, cast

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound, Refused
from tang_attest.files import NamedFile, writing
from tang_attest.ports.audit import Archive, AuditEntry
from tang_attest.protocol.audit_chain import Row, Seal, SealCheck
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.authentic import REMOVED
from tang_attest.store.database.types import EPOCH, MICROSECOND
from tang_attest.store.maintenance import row_check
from tang_attest.store.maintenance.archive import Progress
from tang_attest.store.maintenance.archive_file import FileKind, Reader, Writer
from tang_attest.store.records import audit_chain, audit_log

ARCHIVE: Final = FileKind(
    "tang-attest audit archive",
    "archived_by",
    "archive",
    "archive-damaged",
    foreign="archive-foreign",
)
#: Seals, and rows, of one query.
_PAGE: Final = 1000
#: Versions in one row of `audit_version`.
_VERSIONS: Final = 1000

_audit = tables.audit
_seal = tables.audit_seal
_archives = tables.audit_archive
_versions = tables.audit_version


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one secret: of the chain, and of files."""

    chain: bytes
    file: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The seals in one file: ``previous`` is the head before them, ``SEQ:HASH`` or nothing."""

    previous: str
    first: Seal
    head: Seal
    seals: int
    rows: int
    sha256: bytes
    archived_by: str
    #: The hash of the seal that was asked for, if it is among them.
    noted: bytes | None


def write(
    connection: sa.Connection, path: Path, keys: Keys, before: datetime, by: str, progress: Progress
) -> bool:
    """Write the seals from before *before* to the new file *path*; return False when there is none.

    The file is on the disk on return.  Raises ``audit-changed`` for a seal that does not hold, ``file-exists``, and
    ``file-unreadable``.
    """
    archived = audit_chain.archives(connection)
    previous = archived[-1].head if archived else None
    newest = audit_chain.newest_seal(connection)
    first = next(iter(audit_chain.seals(connection, previous.seq if previous else 0, 1)), None)
    if first is None or newest is None or first.seq >= newest.seq or first.sealed_at >= before:
        return False
    with _new_file(path) as file:
        writer = Writer(file)
        writer.head(ARCHIVE, {"archived_by": by, "previous": previous.head if previous else ""})
        seals = rows = 0
        head = previous
        for seal in _seals(connection, previous, newest, before):
            check = SealCheck(keys.chain, head, seal)
            writer.line({"seal": _dump(seal)})
            for row in _rows(connection, head.last_id if head else None, seal.last_id):
                check.add(row)
                writer.line(list(row))
            if seal.seq != (head.seq + 1 if head else 1) or not check.holds():
                raise Refused("audit-changed", f"The rows up to seal {seal.seq} are not what was sealed.")
            head, seals, rows = seal, seals + 1, rows + check.rows
            progress(rows, 0)
        assert head is not None  # noqa: S101 - for the type checker: there is a first
        writer.line({"rows": rows, "seals": seals, "head": head.head})
        writer.end(keys.file)
    return True


def _seals(connection: sa.Connection, after: Seal | None, newest: Seal, before: datetime) -> Iterator[Seal]:
    seq = after.seq if after else 0
    while page := audit_chain.seals(connection, seq, _PAGE):
        for seal in page:
            if seal.seq >= newest.seq or seal.sealed_at >= before:
                return
            yield seal
        seq = page[-1].seq


def _rows(connection: sa.Connection, after: int | None, up_to: int) -> Iterator[Row]:
    while page := audit_chain.rows(connection, after, up_to, _PAGE):
        yield from page
        after = page[-1][0]


def _dump(seal: Seal) -> list[object]:
    at = (seal.sealed_at - EPOCH) // MICROSECOND
    return [seal.seq, seal.first_id, seal.last_id, seal.rows, seal.hash.hex(), at]


def _load(value: object) -> Seal:
    match value:
        case [int(seq), int(first_id), int(last_id), int(rows), str(text), int(at)]:
            with suppress(ValueError, OverflowError):
                return Seal(
                    seq, first_id, last_id, rows, bytes.fromhex(text), sealed_at=EPOCH + at * MICROSECOND
                )
    raise ARCHIVE.error("a seal is not what a seal can be")


# --- reading ------------------------------------------------------------------------------------------------


def read(
    path: Path,
    candidates: Sequence[Keys],
    progress: Progress = lambda _done, _total: None,
    *,
    wanted: int | None = None,
    look: Callable[[Row], None] = lambda _row: None,
) -> Stretch:
    """Check the file *path* with the one of *candidates* that it was made with; return its stretch of the chain,
    with the hash of the seal *wanted*.  Each row is given to *look*, before the seal over it is checked.

    Raises ``archive-damaged``, ``archive-foreign``, ``file-unreadable``, and ``audit-changed`` for a seal that does
    not hold.  It is read twice: only its end shows which keys are its own.
    """
    with _opened(path) as file:
        reader = Reader(file, ARCHIVE)
        for _ in reader.content():
            pass
        key = reader.check_end(*(keys.file for keys in candidates))
        sha256 = reader.sha256
    chain = next(keys.chain for keys in candidates if keys.file == key)
    with _opened(path) as file:
        return _check(Reader(file, ARCHIVE), chain, sha256, progress, wanted=wanted, look=look)


def _check(
    reader: Reader,
    key: bytes,
    sha256: bytes,
    progress: Progress,
    *,
    wanted: int | None,
    look: Callable[[Row], None],
) -> Stretch:
    previous = str(reader.head.get("previous"))
    head, check = _previous(previous), None
    first: Seal | None = None
    noted: bytes | None = None
    rows = seals = 0
    for value in reader.content():
        if isinstance(value, list):
            if check is None:
                raise ARCHIVE.error("a row is under no seal")
            check.add(value)
            look(value)
            rows += 1
            continue
        _require(check, head)
        if "rows" in value:
            break
        seal = _load(value.get("seal"))
        if seal.seq != (head.seq + 1 if head else 1):
            raise Refused(
                "audit-changed", f"Seal {seal.seq} of the archive does not follow the one before it."
            )
        check, head, first = SealCheck(key, head, seal), seal, first or seal
        seals += 1
        noted = seal.hash if seal.seq == wanted else noted
        progress(rows, 0)
    if first is None or head is None:
        raise ARCHIVE.error("it has no seal")
    by = str(reader.head["archived_by"])
    return Stretch(
        previous=previous,
        first=first,
        head=head,
        seals=seals,
        rows=rows,
        sha256=sha256,
        archived_by=by,
        noted=noted,
    )


def _require(check: SealCheck | None, seal: Seal | None) -> None:
    if check is not None and seal is not None and not check.holds():
        raise Refused(
            "audit-changed", f"The rows under seal {seal.seq} of the archive are not what was sealed."
        )


def _previous(text: str) -> Seal | None:
    """The seal of a head ``SEQ:HASH``, with its number and hash only."""
    if not text:
        return None
    seq, _, digest = text.partition(":")
    with suppress(ValueError):
        return Seal(int(seq), 0, 0, 0, bytes.fromhex(digest), sealed_at=EPOCH)
    raise ARCHIVE.error("it follows no head")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ARCHIVE.error("it is cut off, or not compressed by gzip") from None
    except OSError as error:
        raise NotFound("file-unreadable", f"File {path} cannot be read: {error.strerror}.") from None


# --- moving -------------------------------------------------------------------------------------------------


def take_out(connection: sa.Connection, stretch: Stretch, file: str, entry: AuditEntry) -> Archive:
    """Delete the seals of *stretch* and the rows under them, and note its file, with *entry*.

    Raises ``archive-elsewhere`` unless the chain goes on with this stretch, and ``audit-changed`` when other rows or
    seals are there than the file has.
    """
    archived = audit_chain.archives(connection)
    head = archived[-1].head.head if archived else ""
    known = next(iter(audit_chain.seals(connection, stretch.head.seq - 1, 1)), None)
    if head != stretch.previous or known is None or known.hash != stretch.head.hash:
        raise Conflict("archive-elsewhere", f"File '{file}' does not go on where the record begins.")
    _keep_versions(connection, stretch.head.last_id)
    deleted = connection.execute(_audit.delete().where(_audit.c.id <= stretch.head.last_id)).rowcount
    seals = connection.execute(_seal.delete().where(_seal.c.seq <= stretch.head.seq)).rowcount
    if (deleted, seals) != (stretch.rows, stretch.seals):
        sentence = f"{deleted} rows under {seals} seals are there, and {stretch.rows} under {stretch.seals} in the file."
        raise Refused("audit-changed", sentence)
    row = {
        "seq": stretch.head.seq,
        "first_seq": stretch.first.seq,
        "first_id": stretch.first.first_id,
        "last_id": stretch.head.last_id,
        "rows": stretch.rows,
        "hash": stretch.head.hash,
        "sealed_at": stretch.head.sealed_at,
        "file": file,
        "sha256": stretch.sha256,
        "archived_at": entry.at,
        "archived_by": entry.actor,
    }
    if authentic.insert(connection, _archives, row) is None:
        raise Conflict("archive-elsewhere", "Another run archived these rows meanwhile.")
    audit_log.append(connection, entry)
    return audit_chain.archives(connection)[-1]


def _keep_versions(connection: sa.Connection, up_to: int) -> None:
    """Keep the last version that entries up to the id *up_to*, or archived ones, have of each row.

    Rows of `audit_version` itself are left out: all of before are replaced here, and the entry of the archive names
    the new ones.
    """
    known = row_check.checked_archived(connection)
    after: int | None = None
    while page := row_check.page_of(connection, after, up_to):
        known |= row_check.read_page(page)
        after = page[-1].id
    authentic.delete(connection, _versions, sa.true())
    listed = [
        [row.table, row.key, serial, 0 if row.version == REMOVED else row.version]
        for serial, row in known.items()
        if row.table != _versions.name
    ]
    for start in range(0, len(listed), _VERSIONS):
        authentic.insert(connection, _versions, {"versions": listed[start : start + _VERSIONS]})


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """*path*, compressed, only its owner's, and on the disk after the block; gone when the block raises."""
    part = path.with_name(f"{path.name}.part")
    try:
        descriptor = os.open(
            part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except PermissionError as error:
        # The command of the package goes on as the service's user, who writes to few places.
        sentence = f"Cannot create {part}: {error.strerror}. Name a directory of the service's user."
        raise NotFound("file-unreadable", sentence) from None
    except OSError as error:
        raise NotFound("file-unreadable", f"Cannot create {part}: {error.strerror}.") from None
    try:
        with writing(part), os.fdopen(descriptor, "wb") as raw:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
                yield cast(BinaryIO, NamedFile(cast(BinaryIO, file), part))
            raw.flush()
            os.fsync(raw.fileno())
        _publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    """Give the complete file its name, durably, unless that is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise Conflict("file-exists", f"There is a file {path} already.") from None
    except OSError as error:
        raise NotFound("file-unreadable", f"Cannot create {path}: {error.strerror}.") from None
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

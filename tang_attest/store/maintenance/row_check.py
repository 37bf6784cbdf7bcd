"""A check of sealed rows: each has a valid seal, none is missing, and each is as new as the audit record
says.

Each change of such a row adds the new version to the record, in its own transaction (audit_log.py).  The
record is sealed, so an attacker who replaces a row by an older one has to change the record as well.

Not checked here: the record itself (``audit verify`` does), tables whose rows come and go with every boot
(:data:`tang_attest.store.database.authentic.UNRECORDED`), and a database that was restored as a whole, with
its record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.store.database import authentic, tables
from tang_attest.store.database.authentic import REMOVED, Authenticity
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.types import BIG
from tang_attest.store.maintenance import resealing
from tang_attest.store.records.audit_log import ROWS

_audit = tables.audit
#: Entries of one query: some ten milliseconds.
_PAGE: Final = 10_000
#: The text that only entries with rows have: a key in compact JSON.
_MARK: Final = f'%"{ROWS}":%'


@dataclass(frozen=True, slots=True)
class Recorded:
    """The last version that the audit record has of a row; a version of :data:`REMOVED` says that it was
    removed.
    """

    table: str
    key: str
    version: int


@dataclass(frozen=True, slots=True)
class RowFinding:
    """A row that decides nothing, or should: one sentence."""

    table: str
    key: str
    sentence: str


@dataclass(frozen=True, slots=True)
class RowCheck:
    """The number of rows with a valid seal, and the faults of the others."""

    rows: int
    findings: tuple[RowFinding, ...]


def compare(connection: sa.Connection, authenticity: Authenticity) -> RowCheck:
    """Check every row that needs a seal.  The connection has to see one moment."""
    ours, foreign = resealing.look(connection, authenticity)
    found = [_finding(row.table, row.key, "is not what this server wrote") for row in foreign]
    said = recorded(connection)
    for row in ours:
        known = said.pop(row.serial, None)
        if known is None or known.version <= row.version:
            continue
        if known.version == REMOVED:
            found.append(_finding(row.table, row.key, "was removed, and is there again"))
        else:
            how = f"is older than the audit record says: version {row.version}, not {known.version}"
            found.append(_finding(row.table, row.key, how))
    changed = {(row.table, row.key) for row in foreign}
    for known in said.values():
        if known.version != REMOVED and (known.table, known.key) not in changed:
            found.append(_finding(known.table, known.key, "is missing, and nobody removed it"))
    return RowCheck(len(ours), tuple(found))


def recorded(connection: sa.Connection) -> dict[str, Recorded]:
    """Return the last versions in the whole audit record, archived entries included, by the row's serial (hex)."""
    said = archived(connection)
    after: int | None = None
    while page := page_of(connection, after):
        said |= read_page(page)
        after = page[-1].id
    return said


def archived(connection: sa.Connection) -> dict[str, Recorded]:
    """Return the last versions that archived entries have, by the row's serial (hex).

    The seals of the rows that hold them are checked by the caller; what cannot be read is skipped.
    """
    texts = connection.scalars(sa.select(sa.type_coerce(tables.audit_version.c.versions, sa.Text())))
    return {
        serial: Recorded(table, key, version or REMOVED)
        for text in texts
        for table, key, serial, version in _listed(text)
    }


def checked_archived(connection: sa.Connection) -> dict[str, Recorded]:
    """Return :func:`archived`, after the seals of its rows were checked.  Raises ``registry-tampered``."""
    authentic.load(connection, tables.audit_version)
    return archived(connection)


def authentic_archived(connection: sa.Connection) -> dict[str, Recorded]:
    """Return :func:`archived` of the rows that have a valid seal; the others are logged and counted."""
    said: dict[str, Recorded] = {}
    for values in connection.execute(sa.select(*authentic.form(tables.audit_version).raw)):
        with suppress(Tampered):
            row = authentic.check(connection, tables.audit_version, values)
            for table, key, serial, version in _each(row["versions"]):
                said[serial] = Recorded(table, key, version or REMOVED)
    return said


def page_of(connection: sa.Connection, after: int | None, up_to: int | None = None) -> Sequence[Any]:
    """Return the next entries after the id *after*, and not above *up_to*: their ids, and the details of those
    that list rows.

    All entries count, so that a page takes as long even if few of them list rows.
    """
    details = sa.type_coerce(_audit.c.details, sa.Text())
    told = sa.case((details.like(_MARK), details), else_=sa.null()).label("details")
    query = sa.select(_audit.c.id, told).order_by(_audit.c.id)
    if after is not None:
        query = query.where(_audit.c.id > sa.literal(after, BIG))
    if up_to is not None:
        query = query.where(_audit.c.id <= sa.literal(up_to, BIG))
    return connection.execute(query.limit(_PAGE)).all()


def read_page(page: Sequence[Any]) -> dict[str, Recorded]:
    """Return the last version that a page has of each row.  Unreadable entries are skipped."""
    said: dict[str, Recorded] = {}
    for entry in page:
        for table, key, serial, version in _rows_of(entry.details):
            said[serial] = Recorded(table, key, version or REMOVED)
    return said


def _rows_of(details: object) -> Iterator[tuple[str, str, str, int]]:
    try:
        yield from _each(json.loads(details)[ROWS] if isinstance(details, str) else [])
    except (ValueError, RecursionError, KeyError, TypeError):
        return


def _listed(text: object) -> Iterator[tuple[str, str, str, int]]:
    try:
        yield from _each(json.loads(text) if isinstance(text, str) else [])
    except (ValueError, RecursionError):
        return


def _each(listed: object) -> Iterator[tuple[str, str, str, int]]:
    for each in listed if isinstance(listed, list) else []:
        match each:
            case [str(table), str(key), str(serial), int(version)]:
                yield table, key, serial, version


def _finding(table: str, key: str, how: str) -> RowFinding:
    return RowFinding(table, key, f"Row '{key}' of table {table} {how}.")

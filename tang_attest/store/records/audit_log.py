"""The audit record.

The first entry that a transaction appends lists, beside its own details, the sealed rows that the transaction
changed, with their versions (authentic.py).  The list is for ``audit verify``, and left out when entries are
read.

Searches read an index, or walk the record backwards from its end.  Entries of unlocks are most of the record, so
that the indexes of events and actors leave them out, and the index of codes leaves ``ok`` out
(:data:`tang_attest.store.database.tables.audit`): a search repeats these conditions, or no database uses the
index.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.audit import EVERYTHING, AuditEntry, AuditSearch
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.batched import Batched, Insertion
from tang_attest.store.database.sql import full_page
from tang_attest.store.database.types import BIG
from tang_attest.store.names import spans
from tang_attest.store.records.operators import claims

_audit = tables.audit

#: The member of an entry's details that lists rows: table, key, serial (hex), version; version 0: it was
#: removed.
ROWS: Final = "sealed_rows"
#: Kinds of actors that have a name.
_KINDS: Final = ("operator", "console", "token", "device")

#: Append entries, as :func:`rows` has them.
APPEND: Final = Insertion(_audit, *(column.name for column in _audit.c if column.name != "id"))
_APPEND: Final = Batched(APPEND)
#: Reads entries.
READ: Final = authentic.PlainForm(_audit)


def append(connection: sa.Connection, *entries: AuditEntry) -> None:
    """Append *entries* in their order, and use up what they claim.  Raises as :func:`claims.use`."""
    _APPEND.write(connection, rows(connection, *entries))


def rows(connection: sa.Connection, *entries: AuditEntry) -> list[dict[str, Any]]:
    """Return the rows of *entries*, which the caller appends last; see :func:`append`."""
    for entry in entries:
        if entry.claim is not None:
            claims.use(connection, entry.claim)
    found = [entry.members() for entry in entries]
    if changes := authentic.changes(connection):
        found[0]["details"] = {**entries[0].details, ROWS: changes}
    return found


def newest(
    connection: sa.Connection,
    device: str | None,
    limit: int,
    before: int | None = None,
    search: AuditSearch = EVERYTHING,
) -> list[tuple[int, AuditEntry]]:
    """The newest entries that meet *search*, with their row numbers; see :class:`~tang_attest.ports.audit.AuditStore`.

    Entries that no program of ours can have written are left out: ``audit verify`` names them.
    """
    query = sa.select(*READ.raw).order_by(_audit.c.id.desc()).where(*_conditions(connection, search))
    if device is not None:
        query = query.where(sa.or_(*(span.condition() for span in spans(connection, device, search.until))))

    def read(last: Any, count: int) -> Sequence[Any]:
        end = before if last is None else last.id
        older = query if end is None else query.where(_audit.c.id < sa.literal(end, BIG))
        return connection.execute(older.limit(count)).all()

    return full_page(read, lambda found: list(READ.readable(connection, found, read_entry)), limit)


def _conditions(connection: sa.Connection, search: AuditSearch) -> list[sa.ColumnElement[bool]]:
    compared = (
        (_audit.c.at, operator.ge, search.since),
        (_audit.c.at, operator.lt, search.until),
        (_audit.c.kid, operator.eq, search.kid),
        (_audit.c.verdict, operator.eq, search.verdict),
    )
    found = [compare(column, value) for column, compare, value in compared if value is not None]
    if search.codes:
        found.append(_audit.c.code.in_(search.codes))
        if "ok" not in search.codes:
            found.append(tables.REFUSED_CODE)
    if search.events:
        found.append(sa.or_(*(_is_event(connection, words) for words in search.events)))
        if "unlock" not in search.events:
            found.append(tables.NO_UNLOCK)
    if search.actors:
        actors = [name for actor in search.actors for name in _actors(actor)]
        found.append(_audit.c.actor.in_(actors))
        if not any(actor == "server" or actor.startswith("device:") for actor in actors):
            found.append(tables.NO_UNLOCK)
    return found


def _is_event(connection: sa.Connection, words: str) -> sa.ColumnElement[bool]:
    """True for the event *words*, and for those of which they are the first words.

    In SQLite as a range of bytes, a space being followed by ``!``: its LIKE reads no index.
    """
    if connection.dialect.name == "sqlite":
        return sa.and_(_audit.c.event >= words, _audit.c.event < f"{words}!")
    return sa.or_(_audit.c.event == words, _audit.c.event.startswith(f"{words} ", autoescape=True))


def _actors(actor: str) -> list[str]:
    named = ":" in actor or actor == "server"
    return [actor] if named else [f"{kind}:{actor}" for kind in _KINDS]


def read_entry(row: Mapping[str, Any]) -> tuple[int, AuditEntry]:
    """Return a row's number and its entry.  Raises AttributeError for one whose details are no object."""
    fields = dict(row)
    fields["details"] = {name: value for name, value in fields["details"].items() if name != ROWS}
    return fields.pop("id"), AuditEntry(**fields)

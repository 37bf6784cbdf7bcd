"""The stretches of the audit record that are about one machine, under each name that it had.

Entries name machines by name, and are sealed: a machine that is renamed keeps the old name in its old entries.
The record itself says when a name began and ended to be a machine's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.store.database import tables

_audit = tables.audit

#: The event of a machine that gets another name.  Two entries: of the old name, with the new one as ``to``, and
#: of the new name, with the old one as ``from``.
RENAME: Final = "device rename"
_LIVES: Final = ("device register", RENAME, "device remove")
#: Names of one machine that are followed back.
_MOST: Final = 50
_RAW: Final = (
    _audit.c.id,
    _audit.c.event,
    sa.type_coerce(_audit.c.details, sa.Text()).label("details"),
)


@dataclass(frozen=True, slots=True)
class Span:
    """Entries about *name* with a number above *after*, and below *before* if that is given."""

    name: str
    after: int
    before: int | None

    def condition(self) -> sa.ColumnElement[bool]:
        """The condition that these entries meet."""
        found = sa.and_(_audit.c.device == self.name, _audit.c.id > self.after)
        return found if self.before is None else sa.and_(found, _audit.c.id < self.before)


def spans(connection: sa.Connection, name: str, until: datetime | None = None) -> list[Span]:
    """Return the stretches about the machine that has *name*, had it last, or had it *until*; newest first."""
    found: list[Span] = []
    before: int | None = None
    while len(found) < _MOST:
        span, earlier = _span(connection, name, before, until)
        found.append(span)
        if earlier is None:
            break
        name, before = earlier, span.after + 1
    return found


def _span(
    connection: sa.Connection, name: str, before: int | None, until: datetime | None
) -> tuple[Span, str | None]:
    """Return the newest stretch of *name*, and the name that the machine had before it."""
    end = before
    ended = False
    for row in connection.execute(_lives(name, before, until)).all():
        details = _details(row.details)
        if row.event == RENAME and isinstance(earlier := details.get("from"), str):
            return Span(name, row.id - 1, end), earlier
        if row.event in ("device remove", RENAME):
            if ended:  # the end of another machine, whose beginning is in an archive
                return Span(name, row.id, end), None
            ended = True
            continue
        return Span(name, _end_before(connection, name, row.id), end), None
    return Span(name, 0, end), None


def _lives(name: str, before: int | None, until: datetime | None) -> sa.Select[Any]:
    """Beginnings and ends of *name*, newest first."""
    began = sa.and_(_audit.c.event == "enroll", _audit.c.verdict == "done")
    query = sa.select(*_RAW).where(_audit.c.device == name, sa.or_(_audit.c.event.in_(_LIVES), began))
    if before is not None:
        query = query.where(_audit.c.id < before)
    if until is not None:
        query = query.where(_audit.c.at < until)
    return query.order_by(_audit.c.id.desc()).limit(3)


def _end_before(connection: sa.Connection, name: str, begin: int) -> int:
    """Return the number of the entry with which an earlier machine lost *name*, or 0.

    Entries between it and *begin*, such as refused enrollments, are about the machine that was to come.
    """
    for row in connection.execute(_lives(name, begin, None)).all():
        if row.event == "device remove" or (row.event == RENAME and "to" in _details(row.details)):
            return int(row.id)
    return 0


def _details(text: object) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""Every seal of a database at once: to look at them, and to make them when the schema or the secret changes.

Rules of this module:

* A schema from before there were seals proves nothing about its rows: all are sealed, and counted, so that
  the operator learns the extent of their trust.
* Later schemas prove it: rows without a valid seal before have none afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.ports.keys import OPEN, EncryptedKey, holder
from tang_attest.store.database import authentic, schema, tables
from tang_attest.store.database.authentic import SEAL, SEALED, Authenticity, Form
from tang_attest.store.database.types import BIG

#: The first schema that has seals.
_FIRST: Final = "0008"
#: Rows of one SELECT.  The longest rows have an event log of 128 KiB.
_PAGE: Final = 200

#: Encrypts a key anew, so that it names its holder; returns its JWE.  Raises ``internal`` when it does not open.
Rebind = Callable[[EncryptedKey], str]


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A row with a valid seal: ``key`` is for people, ``serial`` and ``version`` are its seal's."""

    table: str
    key: str
    serial: str
    version: int


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """A row that this server did not write."""

    table: str
    key: str


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The schema before (``None``: there was none) and after; how many rows got their first seal, and which
    did not.
    """

    before: str | None
    after: str
    sealed: int = 0
    foreign: tuple[ForeignRow, ...] = ()


def upgrade(connection: sa.Connection, authenticity: Authenticity, rebind: Rebind | None = None) -> Upgraded:
    """Upgrade schema and seals for this program.  Raises ``schema-new``, and ``setting-invalid`` (the
    secret).

    *rebind* is for keys from before they named their holder; without it, a database that has some is
    ``schema-old``.
    """
    schema.take_turns(connection)
    before = schema.revision(connection)
    if before == schema.REVISION:
        return Upgraded(before, before)
    if before is None or before >= _FIRST:
        known = set() if before is None else set(_foreign(connection, authenticity))
        schema.upgrade(connection)
        return Upgraded(before, schema.REVISION, 0, tuple(_seal_all(connection, authenticity, known)[1]))
    schema.upgrade(connection)
    unopened = _rebind_keys(connection, rebind)
    sealed, foreign = _seal_all(connection, authenticity, unopened)
    return Upgraded(before, schema.REVISION, sealed, tuple(foreign))


def look(connection: sa.Connection, authenticity: Authenticity) -> tuple[list[SealedRow], list[ForeignRow]]:
    """Return every row that needs a seal: those with a valid seal that are recorded, and those without."""
    ours: list[SealedRow] = []
    foreign: list[ForeignRow] = []
    for form in SEALED.values():
        for raw in _rows(connection, form):
            seal = authentic.genuine(authenticity, form, raw)
            if seal is None:
                foreign.append(ForeignRow(form.name, form.describe(raw)))
            elif form.name not in authentic.UNRECORDED:
                ours.append(SealedRow(form.name, form.describe(raw), *authentic.parts(seal)))
    return ours, foreign


def reseal(
    connection: sa.Connection,
    old: Authenticity,
    new: Authenticity,
    converted: Mapping[str, Mapping[str, Callable[[str], str]]],
) -> int:
    """Seal rows with a valid seal under *old* under *new* instead, with the same serial and version; return
    their number.

    *converted* has, by table and column, the function from a text of before to one of now.
    """
    count = 0
    for form in SEALED.values():
        for raw in _rows(connection, form):
            if (seal := authentic.genuine(old, form, raw)) is not None:
                changes = {name: make(raw[name]) for name, make in converted.get(form.name, {}).items()}
                made = authentic.made_again(new, form, raw | changes, seal)
                connection.execute(
                    form.table.update().where(form.is_row(raw)).values({**changes, SEAL: made})
                )
                count += 1
    return count


def _foreign(connection: sa.Connection, authenticity: Authenticity) -> Iterator[tuple[Any, ...]]:
    for form in SEALED.values():
        for raw in _rows(connection, form):
            if authentic.genuine(authenticity, form, raw) is None:
                yield _identity(form, raw)


def _seal_all(
    connection: sa.Connection, authenticity: Authenticity, without: set[tuple[Any, ...]]
) -> tuple[int, list[ForeignRow]]:
    """Seal every row but those *without*; how many, and which not."""
    count, foreign = 0, []
    for form in SEALED.values():
        for raw in _rows(connection, form):
            if _identity(form, raw) in without:
                foreign.append(ForeignRow(form.name, form.describe(raw)))
                continue
            _write(connection, form, raw, authentic.made_again(authenticity, form, raw, raw[SEAL]))
            count += 1
    return count, foreign


def _write(connection: sa.Connection, form: Form, raw: dict[str, Any], seal: bytes) -> None:
    connection.execute(form.table.update().where(form.is_row(raw)).values({SEAL: seal}))


def _rebind_keys(connection: sa.Connection, rebind: Rebind | None) -> set[tuple[Any, ...]]:
    """Let every key name its holder; those that do not open."""
    key, device = tables.sealed_key, tables.device
    query = sa.select(key, device.c.ak_name, device.c.ak_spki).outerjoin_from(key, device)
    rows = connection.execute(query).mappings().all()
    if rows and rebind is None:
        raise Unavailable("schema-old", "The database has keys from before they named their machines.")
    unopened: set[tuple[Any, ...]] = set()
    for row in rows:
        assert rebind is not None  # noqa: S101 - for the type checker
        try:
            text = rebind(_sealed_key(row))
        except (
            TangAttestError,
            AttributeError,
            TypeError,
        ):  # the last two: a value that no column of the schema holds
            unopened.add((key.name, row["kid"]))
        else:
            connection.execute(key.update().where(key.c.kid == row["kid"]).values(sealed=text))
    if rows and len(unopened) == len(rows):
        raise Unavailable(
            "setting-invalid",
            "Setting state: its key-encryption key is not the one that the database was made with.",
        )
    return unopened


def _sealed_key(row: sa.RowMapping) -> EncryptedKey:
    return EncryptedKey(
        row["kid"],
        row["use"],
        row["curve"],
        row["public"],
        row["sealed"],
        created_at=row["created_at"],
        rotated_at=row["rotated_at"],
        holder=OPEN if row["device_id"] is None else holder(row["ak_name"], row["ak_spki"]),
    )


def _identity(form: Form, raw: dict[str, Any]) -> tuple[Any, ...]:
    return (form.name, *(raw[key] for key in form.keys))


def _rows(connection: sa.Connection, form: Form) -> Iterator[dict[str, Any]]:
    """Every row as the columns hold it, NULL for columns that the schema does not have yet.

    A table that it does not have yet has no rows.
    """
    if not sa.inspect(connection).has_table(form.name):
        return
    there = {column["name"] for column in sa.inspect(connection).get_columns(form.name)}
    columns = [
        sa.type_coerce(column, sa.types.NullType()).label(column.name)
        if column.name in there
        else sa.null().label(column.name)
        for column in form.table.c
    ]
    keys = [form.table.c[name] for name in form.keys]
    query = sa.select(*columns).order_by(*keys).limit(_PAGE)
    page: Sequence[Any] = connection.execute(query).all()
    while page:
        for row in page:
            yield dict(zip(form.names, row, strict=True))
        last = [_literal(getattr(page[-1], name)) for name in form.keys]
        page = connection.execute(query.where(sa.tuple_(*keys) > sa.tuple_(*last))).all()


def _literal(value: Any) -> sa.BindParameter[Any]:
    number = isinstance(value, int) and not isinstance(value, bool)
    return sa.literal(value, BIG) if number else sa.literal(value)

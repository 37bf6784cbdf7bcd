"""Seals of rows: a row decides something only if this server wrote it.

An attacker who can write to the database must not open a disk with that.  Each row that a decision reads has
a seal, made here with every write and checked here with every read:

    seal     = serial (8 random bytes) || version (8 bytes, big endian) || HMAC-SHA-256 under a key of the server's secret
    the HMAC = over ["tang-attest row", 1, TABLE, "SERIAL", VERSION, {COLUMN: VALUE, ...}], compact JSON in ASCII

Values are as the columns hold them, by the columns' names in order, bytes as ``{"b": "<hex>"}``.  A column
that is NULL is left out: a column that a migration adds changes no seal until it is set.

Rules of this module:

* Every column is sealed unless :data:`OUTSIDE` names it, and every table unless :data:`NOT_SEALED` does.
* A write reads the row first, under its lock, and checks it, so that no foreign change is sealed along with
  its own.
* A row is read as its columns hold it and checked before its types read it.
* A row that this server did not write is logged and counted.  It ends the read of that one row, and no listing.
* ``version`` rises with each change that is not only :data:`MOVING`.  Changes are reported to the audit
  record (audit_log.py), which is sealed: a row that is older than the record says was restored
  (row_check.py). A process refuses, besides, a row that is older than one it has seen.

Not checked here: removed rows, and whole rows that were restored from before this process began.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator

from tang_attest.store.database import tables
from tang_attest.store.database.failures import Tampered, UnreadableValue

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

#: Names the key's purpose; the key is 32 bytes.
KEY_LABEL: Final = "registry"

#: Tables whose rows are not sealed, with the reason.
NOT_SEALED: Final = {
    "nonce": "taken away, it lets the same evidence get the same Y for the same X once more, within its time",
    "audit": "its chain seals it (audit_chain.py)",
    "audit_seal": "it is a seal itself",
    "verification": "history for people",
    "notice_cursor": "a place in the audit record: moved, messages to people are missing or come again",
    "notice_group": "messages to people, who look at the console or the server before they act",
    "delivery": "as notice_group",
}
#: Columns that are not sealed, with the reason.
OUTSIDE: Final[Mapping[str, Mapping[str, str]]] = {
    "device": {
        "grade": "shown to people",
        "evidence_digest": "saves a write; the evidence itself is sealed",
    },
}
#: Columns that every boot or round moves.  An older value of these permits no more.
MOVING: Final[Mapping[str, frozenset[str]]] = {
    "device": frozenset(
        {
            "clock",
            "reset_count",
            "restart_count",
            "clock_safe",
            "last_seen_at",
            "last_code",
            "opened_reset_count",
            "last_state",
            "signed",
            "verified_at",
            "outcome",
            "outcome_code",
            "outcome_since",
            "answered_at",
            "wanted_at",
            "told",
        }
    ),
    "operator_session": frozenset({"used_at"}),
}
#: Tables whose rows come and go with every boot: the audit record does not list their versions.
UNRECORDED: Final = frozenset({"observation", "evidence", "ima_progress", "rollout_device", "notification"})

SEAL: Final = "seal"
_SERIAL: Final = 8
_VERSION: Final = 8
_SIZE: Final = _SERIAL + _VERSION + 32
_OPTION: Final = "tang_attest_rows"
#: Rows of which a process remembers the newest version.
_REMEMBERED: Final = 100_000
#: Rows of these tables are remembered, so many of them in all; others are long, or read once.
_KEPT: Final = frozenset({"policy", "reference_state", "device", "sealed_key", "rollout"})
_KNOWN: Final = 1024
#: Seconds after which a row that is read each second is logged again.
_TOLD_AGAIN_S: Final = 60.0
#: A version that no row reaches: that of one that was removed.
REMOVED: Final = 1 << 62

_log: Final = logging.getLogger(__name__)


class Row(dict[str, Any]):
    """A row with a valid seal: values by column, as their types read them; ``raw`` as the columns hold them.

    It may be shared: copy it before changing a value.
    """

    __slots__ = ("raw", "serial", "version")

    def __init__(self, typed: Mapping[str, Any], raw: dict[str, Any], serial: bytes, version: int) -> None:
        super().__init__(typed)
        self.raw, self.serial, self.version = raw, serial, version


class Authenticity:
    """The seals of one database: *key* makes and checks them."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        # serial -> the newest version seen, and when; rows that never changed are not here.
        self._floors: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._found: Counter[str] = Counter()
        # sentence -> when it was logged
        self._told: dict[str, float] = {}
        #: Rows with a valid seal, by the contents of all their columns: most requests read the same rows
        #: again.
        self.known: dict[tuple[str, tuple[Any, ...]], Row] = {}

    def __repr__(self) -> str:
        return "Authenticity(...)"

    def bind(self, work: Work[T]) -> tuple[Work[T], Transaction]:
        """Return *work* bound to the state that this module keeps for one transaction."""
        transaction = Transaction(self)

        def bound(connection: sa.Connection) -> T:
            transaction.begin()
            try:
                return work(connection.execution_options(**{_OPTION: transaction}))
            except UnreadableValue as error:  # of a column that is read without its row
                self.report("other", f"{error}.")
                raise Tampered("registry-tampered", f"{error}.") from error

        return bound, transaction

    def digest(self, form: Form, serial: bytes, version: int, raw: Mapping[str, Any]) -> bytes:
        """The HMAC over a row."""
        values = {name: raw[name] for name in form.sealed if raw[name] is not None}
        for name in form.booleans:  # PostgreSQL has a type of its own for them
            if name in values:
                values[name] = _number(values[name])
        return self.mac(["tang-attest row", 1, form.name, serial.hex(), version, values])

    def mac(self, content: Sequence[object]) -> bytes:
        """The HMAC over *content*, JSON whose first member names its kind."""
        return hmac.digest(self._key, _ENCODER.encode(content).encode("ascii"), "sha256")

    def is_older(self, serial: bytes, version: int, since: float) -> bool:
        """True for a row older than one that was seen before *since* (monotonic seconds)."""
        newest, seen = self._floors.get(serial, (0, 0.0))
        return version < newest and seen < since

    def saw(self, serial: bytes, version: int) -> None:
        """The row has been of this version."""
        if version > 1 and version > self._floors.get(serial, (0, 0.0))[0]:
            self._floors[serial] = (version, time.monotonic())
            if len(self._floors) > _REMEMBERED:
                self._floors.popitem(last=False)

    def keep(self, name: tuple[str, tuple[Any, ...]], row: Row) -> None:
        """Remember a row with a valid seal.  No order is kept, so that threads need no lock."""
        if len(self.known) >= _KNOWN:
            self.known.clear()
        self.known[name] = row

    def report(self, table: str, sentence: str) -> None:
        """Count a row of *table* that this server did not write, and log *sentence*, once in :data:`_TOLD_AGAIN_S`."""
        self._found[table] += 1
        now = time.monotonic()
        if now - self._told.get(sentence, -_TOLD_AGAIN_S) < _TOLD_AGAIN_S:
            return
        if len(self._told) >= _KNOWN:
            self._told.clear()
        self._told[sentence] = now
        _log.error("registry-tampered: %s", sentence)

    def sentences(self) -> list[str]:
        """Return a sentence on each row that was reported lately, once."""
        return list(self._told)

    def found(self) -> dict[str, int]:
        """Count the reads of rows that this server did not write, by table; every table is there."""
        return dict.fromkeys(tables.metadata.tables, 0) | self._found


class Transaction:
    """Reads and changes of one transaction."""

    def __init__(self, authenticity: Authenticity) -> None:
        self.authenticity = authenticity
        self.begin()

    def begin(self) -> None:
        """The work begins, perhaps again."""
        self.began = time.monotonic()
        self._changed: dict[bytes, tuple[str, str, int]] = {}
        self._untold: dict[bytes, tuple[str, str, int]] = {}

    def note(self, form: Form, raw: Mapping[str, Any], serial: bytes, version: int) -> None:
        """The row is of this version once the transaction is committed."""
        if form.name not in UNRECORDED:
            self._changed[serial] = self._untold[serial] = (form.name, form.describe(raw), version)

    def saw(self, serial: bytes, version: int) -> None:
        """Note the version of a row that was read, unless this transaction changed the row."""
        if serial not in self._changed:
            self.authenticity.saw(serial, version)

    def take(self) -> list[list[object]]:
        """Return the changes since this was last asked: table, key, serial and version; version 0 is a row
        removed.
        """
        untold, self._untold = self._untold, {}
        return [
            [table, key, serial.hex(), 0 if version == REMOVED else version]
            for serial, (table, key, version) in untold.items()
        ]

    def commit(self) -> None:
        """It is committed: nothing older counts from now on."""
        for serial, (_, _, version) in self._changed.items():
            self.authenticity.saw(serial, version)


class Form:
    """Seals and reads a table's rows."""

    def __init__(self, table: sa.Table) -> None:
        self.table, self.name = table, table.name
        self.names = tuple(column.name for column in table.c)
        self.keys = tuple(column.name for column in table.primary_key.columns)
        outside = {SEAL, *OUTSIDE.get(table.name, ())}
        self.sealed = tuple(sorted(name for name in self.names if name not in outside))
        self.moving = MOVING.get(table.name, frozenset())
        self.booleans = tuple(c.name for c in table.c if isinstance(c.type, sa.Boolean))
        self.typed: tuple[tuple[str, TypeDecorator[Any]], ...] = tuple(
            (column.name, column.type) for column in table.c if isinstance(column.type, TypeDecorator)
        )
        #: The columns without their types: foreign contents must not fail before they are checked.
        self.raw = tuple(sa.type_coerce(column, sa.types.NullType()).label(column.name) for column in table.c)
        self.lock = sa.select(*self.raw).order_by(*table.primary_key.columns).with_for_update(key_share=True)

    def labelled(self, prefix: str) -> list[sa.Label[Any]]:
        """``raw`` with other names, for a query over several tables."""
        return [sa.type_coerce(c, sa.types.NullType()).label(f"{prefix}{c.name}") for c in self.table.c]

    def describe(self, raw: Mapping[str, Any]) -> str:
        """Return the row's name for people, or else its key."""
        parts = [raw[name] for name in ("name", "label") if raw.get(name) is not None][:1] or [
            raw[key] for key in self.keys
        ]
        words = " ".join(part.hex()[:16] if isinstance(part, bytes) else str(part) for part in parts)
        return words.encode(errors="backslashreplace").decode()  # SQLite holds texts that are not UTF-8

    def is_row(self, raw: Mapping[str, Any]) -> Any:
        """The condition that only this row meets."""
        return sa.and_(*(self.table.c[key] == self.decode(key, raw[key]) for key in self.keys))

    def decode(self, name: str, value: Any) -> Any:
        """A column's value as its type reads it."""
        kind = self.table.c[name].type
        if value is None or not isinstance(kind, TypeDecorator | sa.Boolean):
            return value
        return bool(value) if isinstance(kind, sa.Boolean) else kind.process_result_value(value, _NO_DIALECT)

    def encode(self, name: str, value: Any) -> Any:
        """A value as the column will hold it."""
        kind = self.table.c[name].type
        if isinstance(kind, TypeDecorator):
            return kind.process_bind_param(value, _NO_DIALECT)
        return _number(value) if isinstance(kind, sa.Boolean) else value

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row as its types read it.  Raises the errors of the types."""
        typed = dict(raw)
        for name, kind in self.typed:
            if typed[name] is not None:
                typed[name] = kind.process_result_value(typed[name], _NO_DIALECT)
        for name in self.booleans:
            typed[name] = None if typed[name] is None else bool(typed[name])
        return typed


_NO_DIALECT: Any = None  # our types look the same everywhere (types.py)


def _encode_bytes(value: object) -> object:
    """Encode bytes, and values that no column of the schema holds, as objects; no sealed value is an object."""
    if isinstance(value, bytes | memoryview):
        return {"b": bytes(value).hex()}
    return {type(value).__name__: str(value)}


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), default=_encode_bytes)

SEALED: Final[Mapping[str, Form]] = {
    table.name: Form(table) for table in tables.metadata.sorted_tables if table.name not in NOT_SEALED
}


def form(table: sa.Table) -> Form:
    """The form of *table*."""
    return SEALED[table.name]


# --- reading ------------------------------------------------------------------------------------------------


def check(connection: sa.Connection, table: sa.Table, values: Sequence[Any]) -> Row:
    """The row that has *values*, those of :attr:`Form.raw`.  Raises ``registry-tampered``."""
    transaction = _transaction(connection)
    authenticity, name = transaction.authenticity, (table.name, tuple(values))
    row = authenticity.known.get(name) if table.name in _KEPT else None
    if row is None:
        row = _verify(connection, form(table), values)
        if table.name in _KEPT:
            authenticity.keep(name, row)
    if authenticity.is_older(row.serial, row.version, transaction.began):
        raise tampered(connection, form(table), row.raw, "is older than this server has seen it")
    transaction.saw(row.serial, row.version)
    return row


def _verify(connection: sa.Connection, shape: Form, values: Sequence[Any]) -> Row:
    raw = dict(zip(shape.names, values, strict=True))
    if (seal := genuine(_transaction(connection).authenticity, shape, raw)) is None:
        raise tampered(connection, shape, raw, "is not what this server wrote")
    return Row(
        _read(connection, shape, raw),
        raw,
        seal[:_SERIAL],
        int.from_bytes(seal[_SERIAL : _SERIAL + _VERSION], "big"),
    )


def is_ours(connection: sa.Connection, table: sa.Table, values: Sequence[Any]) -> bool:
    """Return True if :func:`check` would accept the row, however old; nothing is logged."""
    shape = form(table)
    raw = dict(zip(shape.names, values, strict=True))
    return genuine(_transaction(connection).authenticity, shape, raw) is not None


def _read(connection: sa.Connection, shape: Form, raw: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return shape.read(raw)
    except Exception as error:  # a column outside of the seal; its type reports the error
        raise tampered(connection, shape, raw, "cannot be read") from error


def _seal(raw: Mapping[str, Any]) -> bytes | None:
    seal = raw[SEAL]
    return bytes(seal) if isinstance(seal, bytes | memoryview) and len(seal) == _SIZE else None


def tampered(connection: sa.Connection, shape: Form, raw: Mapping[str, Any], why: str) -> Tampered:
    """Return the error about a row that this server did not write; log and count it."""
    sentence = f"Row '{shape.describe(raw)}' of table {shape.name} {why}."
    _transaction(connection).authenticity.report(shape.name, sentence)
    return Tampered("registry-tampered", sentence)


def load(
    connection: sa.Connection,
    table: sa.Table,
    *where: sa.ColumnElement[bool],
    order_by: Sequence[Any] = (),
    lock: bool = False,
) -> list[Row]:
    """Return the rows that meet *where*.  Raises ``registry-tampered`` when one of them has no valid seal."""
    query = form(table).lock if lock else sa.select(*form(table).raw)
    return rows(connection, query.where(*where).order_by(*order_by), table)


def ours(
    connection: sa.Connection, table: sa.Table, found: Iterable[Sequence[Any]]
) -> Iterator[tuple[Row, Any]]:
    """Yield each row of *found*, whose first columns are :attr:`Form.raw` of *table*, with its values.

    Rows without a valid seal are logged, counted and left out: a listing, a message or a round of others goes on.
    """
    width = len(form(table).names)
    for values in found:
        try:
            row = check(connection, table, values[:width])
        except Tampered:
            continue
        yield row, values


def load_ours(
    connection: sa.Connection,
    table: sa.Table,
    *where: sa.ColumnElement[bool],
    order_by: Sequence[Any] = (),
) -> list[Row]:
    """Return the rows that meet *where* and have a valid seal; see :func:`ours`."""
    query = sa.select(*form(table).raw).where(*where).order_by(*order_by)
    return [row for row, _ in ours(connection, table, connection.execute(query))]


def rows(
    connection: sa.Connection, query: Any, table: sa.Table, bound: Mapping[str, Any] | None = None
) -> list[Row]:
    """Return the rows of a *query* whose first columns are :attr:`Form.raw` of *table*.  Raises
    ``registry-tampered``.
    """
    width = len(form(table).names)
    return [check(connection, table, values[:width]) for values in connection.execute(query, bound or {})]


def one(connection: sa.Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> Row | None:
    """The one row that meets *where*, if there is one.  Raises ``registry-tampered``."""
    found = load(connection, table, *where)
    return found[0] if found else None


# --- rows without seals -------------------------------------------------------------------------------------


class PlainForm(Form):
    """Reads a table whose rows have no seals: history and messages for people, which decide nothing."""

    def readable(
        self, connection: sa.Connection, found: Iterable[Any], make: Callable[[dict[str, Any]], T]
    ) -> Iterator[T]:
        """Yield what *make* makes of each row of *found*, whose columns are ``raw``.

        A row that no program of ours can have written is logged, counted and left out: what its columns hold, or
        a ValueError, KeyError, TypeError or AttributeError of *make*, shows that.
        """
        for values in found:
            raw = dict(zip(self.names, values, strict=True))
            try:
                made = make(self.read(raw))
            except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
                tampered(connection, self, raw, "was not written by this server")
            else:
                yield made

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row as its types read it.  Raises the errors of the types."""
        for value in raw.values():
            if isinstance(value, str):
                value.encode()  # SQLite holds texts that are not UTF-8
        typed = super().read(raw)
        for column in self.table.c:
            if (value := typed[column.name]) is None:
                readable = column.nullable
            elif isinstance(column.type, sa.Text):
                readable = isinstance(value, str)
            elif isinstance(column.type, sa.Integer):
                readable = isinstance(value, int)
            else:
                readable = True  # its type has read it
            if not readable:
                raise ValueError(column.name)
        return typed


# --- writing ------------------------------------------------------------------------------------------------


def insert(connection: sa.Connection, table: sa.Table, values: Mapping[str, object]) -> Row | None:
    """Insert *values* unless a unique constraint forbids it; return the row, or ``None``.

    A look before the insertion would leave a moment for another transaction.  ``ON CONFLICT DO NOTHING`` has
    none: it waits for a transaction that is inserting the same, and then has one row or none.
    """
    shape = form(table)
    found = connection.execute(_insertion(table, connection.dialect.name), values).one_or_none()
    if found is None:
        return None
    raw = dict(zip(shape.names, found, strict=True))
    serial = os.urandom(_SERIAL)
    _transaction(connection).note(shape, raw, serial, 1)
    seal = _sign(connection, shape, raw, serial, 1)
    connection.execute(table.update().where(shape.is_row(raw)).values({SEAL: seal}))
    return Row(shape.read(raw), raw | {SEAL: seal}, serial, 1)


@cache
def _insertion(table: sa.Table, dialect: str) -> Any:
    into = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return into(table).on_conflict_do_nothing().returning(*form(table).raw)


def update(
    connection: sa.Connection,
    table: sa.Table,
    where: sa.ColumnElement[bool],
    changes: Mapping[str, object] | Callable[[Row], Mapping[str, object]],
) -> int:
    """Change the rows that meet *where*; return their number.

    Raises ``registry-tampered`` when one of them has no valid seal.  The rows are locked before they are
    read, and *where* was true under the lock: a compare-and-set compares the number to learn if it won.
    """
    found = load(connection, table, where, lock=True)
    for row in found:
        wanted = changes(row) if callable(changes) else changes
        changed = resealed(connection, table, row, wanted)
        connection.execute(table.update().where(form(table).is_row(row.raw)).values(changed))
    return len(found)


def resealed(
    connection: sa.Connection, table: sa.Table, row: Row, changes: Mapping[str, object]
) -> dict[str, object]:
    """*changes* of *row*, which is locked, with the seal that it has with them.  *row* is as before."""
    raw, _ = _reseal(connection, form(table), row, changes)
    return {**changes, SEAL: raw[SEAL]}


def after(connection: sa.Connection, table: sa.Table, row: Row, changes: Mapping[str, object]) -> Row:
    """*row*, which is locked, as it is with *changes* and the seal that it has with them.

    Its next reader need not check the seal that was just made.
    """
    shape, authenticity = form(table), _transaction(connection).authenticity
    raw, version = _reseal(connection, shape, row, changes)
    typed = dict(row) | {name: shape.decode(name, raw[name]) for name in (*changes, SEAL)}
    written = Row(typed, raw, row.serial, version)
    authenticity.known.pop((table.name, tuple(row.raw.values())), None)
    authenticity.keep((table.name, tuple(raw.values())), written)
    return written


def _reseal(
    connection: sa.Connection, shape: Form, row: Row, changes: Mapping[str, object]
) -> tuple[dict[str, Any], int]:
    """Return *row* with *changes* and their seal, as its columns hold it, and its version."""
    raw = row.raw | {name: shape.encode(name, value) for name, value in changes.items()}
    version = row.version
    if not shape.moving.issuperset(changes):
        version += 1
        _transaction(connection).note(shape, raw, row.serial, version)
    return raw | {SEAL: _sign(connection, shape, raw, row.serial, version)}, version


def delete(connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> int:
    """Delete the rows that meet *where*, with a valid seal or without; return their number."""
    shape, transaction = form(table), _transaction(connection)
    if shape.name not in UNRECORDED:
        for values in connection.execute(shape.lock.where(where)):
            raw = dict(zip(shape.names, values, strict=True))
            if (seal := genuine(transaction.authenticity, shape, raw)) is not None:
                transaction.note(shape, raw, seal[:_SERIAL], REMOVED)
    return connection.execute(table.delete().where(where)).rowcount


def _sign(
    connection: sa.Connection, shape: Form, raw: Mapping[str, Any], serial: bytes, version: int
) -> bytes:
    digest = _transaction(connection).authenticity.digest(shape, serial, version, raw)
    return serial + version.to_bytes(_VERSION, "big") + digest


def genuine(authenticity: Authenticity, shape: Form, raw: Mapping[str, Any]) -> bytes | None:
    """Return the seal of a row if it is valid, however old; nothing is logged."""
    if (seal := _seal(raw)) is None:
        return None
    version = int.from_bytes(seal[_SERIAL : _SERIAL + _VERSION], "big")
    digest = authenticity.digest(shape, seal[:_SERIAL], version, raw)
    return seal if hmac.compare_digest(digest, seal[-32:]) else None


def made_again(authenticity: Authenticity, shape: Form, raw: Mapping[str, Any], seal: bytes | None) -> bytes:
    """The seal of a row with the serial and version of *seal*, or new ones."""
    known = (
        seal
        if seal is not None and len(seal) == _SIZE
        else os.urandom(_SERIAL) + (1).to_bytes(_VERSION, "big")
    )
    serial, version = known[:_SERIAL], int.from_bytes(known[_SERIAL : _SERIAL + _VERSION], "big")
    return known[: _SERIAL + _VERSION] + authenticity.digest(shape, serial, version, raw)


def parts(seal: bytes) -> tuple[str, int]:
    """A seal's serial (hex) and version."""
    return seal[:_SERIAL].hex(), int.from_bytes(seal[_SERIAL : _SERIAL + _VERSION], "big")


def _transaction(connection: sa.Connection) -> Transaction:
    found = connection.get_execution_options().get(_OPTION)
    if not isinstance(found, Transaction):
        raise RuntimeError("rows that decide need a transaction that can authenticate them")  # noqa: TRY004 - a bug
    return found


def changes(connection: sa.Connection) -> list[list[object]]:
    """Return the changes of this transaction that the audit record has not heard yet
    (:meth:`Transaction.take`).
    """
    found = connection.get_execution_options().get(_OPTION)
    return found.take() if isinstance(found, Transaction) else []

"""The file that ``backup`` writes and ``restore`` reads."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime

import sqlalchemy as sa

from tang_attest.keys.secret import parse_secret
from tang_attest.store import Reader
from tang_attest.store.database import schema, tables
from tang_attest.store.maintenance import archive
from tang_attest.store.maintenance.archive_file import Writer, decode
from tests.fuzz.target import Parser, Target

KEY = bytes(range(32))


def file(data: bytes) -> None:
    """Every change is noticed: only what was written with the key is read to its end."""
    reader = Reader(io.BytesIO(data))
    for value in reader.content():
        for column in value if isinstance(value, list) else ():
            decode(column)
    reader.check_end(KEY)
    assert data in _WRITTEN, "a backup that nobody wrote was accepted"


def rows(data: bytes) -> None:
    """Lines that somebody with the key ends properly, into an empty database: it takes them, or says what is wrong."""
    lines = data if data.endswith(b"\n") else data + b"\n"
    end = io.BytesIO()
    digest = hashlib.sha256(lines).digest()
    Writer(end).line({"sha256": digest.hex(), "hmac": hmac.digest(KEY, digest, "sha256").hex()})
    reader = Reader(io.BytesIO(lines + end.getvalue()))
    with _ENGINE.begin() as connection:
        try:
            archive.load(connection, reader, KEY, lambda _done, _total: None)
        finally:
            connection.rollback()


def secret(data: bytes) -> None:
    """The key-encryption key that a backup may have, or a file."""
    assert len(parse_secret(data, "it").derive("x")) == 32


def _written() -> Iterator[bytes]:
    """A backup of an empty database, and of one with some rows."""
    with _ENGINE.begin() as connection:
        for number in range(2):
            file = io.BytesIO()
            archive.dump(connection, file, KEY, {"program": "x"}, lambda _done, _total: None)
            yield file.getvalue()
            row = {"fingerprint": f"{number:064x}", "label": "Vendor", "der": bytes(range(256))}
            connection.execute(
                tables.ek_root.insert(), [row | {"added_at": datetime(2026, 1, 1, tzinfo=UTC)}]
            )
        connection.rollback()


def _in_memory() -> sa.Engine:
    """A database of which a rollback leaves nothing, tables neither: Python's driver would begin too late for that."""
    engine = sa.create_engine("sqlite://")
    sa.event.listen(engine, "connect", lambda raw, _record: setattr(raw, "isolation_level", None))
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


_ENGINE = _in_memory()
with _ENGINE.begin() as _connection:
    schema.upgrade(_connection)
_WRITTEN = frozenset(_written())


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Bytes that were written."""
    for data in sorted(_WRITTEN):
        yield file, data
        yield rows, data[: data.rindex(b"\n", 0, -1) + 1]
    yield secret, json.dumps({"kty": "oct"}).encode()


# A restore looks at the tables several times: some ten in a second.
TARGET = Target([file, rows, secret], seeds, smoke_runs=200)

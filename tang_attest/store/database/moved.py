"""The mark of a database that was copied to another one: no command and no server uses it any longer.

Rules of this module:

* The mark is a table of its own, made by the copy in the transaction that reads the rows, and dropped when the
  database is taken back.  It is no part of the schema: a database of an older schema is copied, too, and no
  backup or copy has a mark.
* The mark refuses, whatever its seal says.  The seal, under the key of the rows' seals, shows that the new place
  was named by this server: an attacker could otherwise send an operator to a database with rows of before.

Not checked here: a mark that an attacker removed.  Such a database is as one that was restored from a backup.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

import sqlalchemy as sa

from tang_attest.errors import Conflict, TangAttestError, Unavailable
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.database.engine import parse_url

_TABLE: Final = sa.Table(
    "moved",
    sa.MetaData(),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("seal", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class MovedMark:
    """The URL of the new database, without a password, and the time of the copy (RFC 3339)."""

    place: str
    at: str
    seal: bytes

    def error(self) -> TangAttestError:
        """Return the refusal of this database."""
        moved = datetime.fromisoformat(self.at).astimezone(UTC)
        sentence = (
            f"This database was copied to {self.place} on {moved:%Y-%m-%d %H:%M} UTC, and is out of use."
        )
        return Conflict("database-moved", sentence)


def place_of(url: str) -> str:
    """Return *url* as an operator may write it into the settings, without a password.  Raises ``setting-invalid``."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        # By hand, because SQLAlchemy before 2.1 escapes nothing in a path.
        return f"sqlite:///{quote(str(Path(parsed.database or '').absolute()), safe=' +/')}"
    return parsed.set(drivername="postgresql").render_as_string(hide_password=True)


def mark(connection: sa.Connection, authenticity: Authenticity, place: str, at: datetime) -> None:
    """Put the mark on this database: it was copied to *place*."""
    when = at.astimezone(UTC).isoformat(timespec="seconds")
    _TABLE.create(connection)
    seal = _seal(authenticity, place, when)
    connection.execute(_TABLE.insert().values(place=place, at=when, seal=seal))


def find(connection: sa.Connection) -> MovedMark | None:
    """Return the mark, or ``None`` for a database in use; its seal is not checked."""
    if not sa.inspect(connection).has_table(_TABLE.name):
        return None
    row = connection.execute(sa.select(_TABLE)).first()
    return None if row is None else MovedMark(row.place, row.at, row.seal)


def refuse(connection: sa.Connection, authenticity: Authenticity | None) -> None:
    """Raise ``database-moved`` for a database with a mark.

    Raises ``registry-tampered`` instead if the mark is not ours; without *authenticity* its seal is not checked.
    """
    found = find(connection)
    if found is None:
        return
    if authenticity is not None and not hmac.compare_digest(
        found.seal, _seal(authenticity, found.place, found.at)
    ):
        sentence = "The mark that this database was copied away is not this server's own."
        authenticity.report(_TABLE.name, sentence)
        raise Unavailable("registry-tampered", sentence)
    raise found.error()


def remove(connection: sa.Connection) -> MovedMark | None:
    """Take the mark away; return it, or ``None`` if there was none."""
    found = find(connection)
    if found is not None:
        _TABLE.drop(connection)
    return found


def _seal(authenticity: Authenticity, place: str, at: str) -> bytes:
    return authenticity.mac(["tang-attest moved", 1, place, at])

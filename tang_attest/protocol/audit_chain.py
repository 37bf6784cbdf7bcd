"""The chain over the audit record: seals, each an HMAC over the one before it and the rows that came since.

Seal *n* covers the rows whose id is above the last of seal *n - 1* and not above its own last; the first seal
begins at the lowest id.  Its hash is HMAC-SHA-256, under a key of the server's secret, over lines of UTF-8,
each ended by LF:

    ["tang-attest audit seal",1,SEQ,"PREVIOUS HASH",FIRST_ID,LAST_ID,ROWS,SEALED_AT]
    [ID,AT,EVENT,ACTOR,VERDICT,CODE,DEVICE,KID,ADDRESS,REQUEST_ID,DETAILS]      each row, by id

A line is compact JSON in ASCII (RFC 8259, others escaped), so no two rows and no two seals have the same
bytes. Hashes are lower-case hex, the first seal's previous hash is ``""``; times are microseconds since 1970,
UTC; DETAILS is the text as the column holds it, so that no other text which means the same passes for it.

Not checked here: whether the chain ends where it once ended, and whether somebody who has the key made it
anew.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

#: Names the key's purpose; the key is 32 bytes.
KEY_LABEL: Final = "audit chain"
#: The columns of a row, in this order.
COLUMNS: Final = (
    "id",
    "at",
    "event",
    "actor",
    "verdict",
    "code",
    "device",
    "kid",
    "address",
    "request_id",
    "details",
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: A row's values as the columns hold them: numbers, texts and nothing.  SQLite keeps what else somebody
#: writes there.
Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Seal:
    """One link: ``rows`` rows, from ``first_id`` to ``last_id``; ``hash`` is 32 bytes, ``sealed_at`` aware,
    UTC.
    """

    seq: int
    first_id: int
    last_id: int
    rows: int
    hash: bytes
    _: KW_ONLY
    sealed_at: datetime

    @property
    def head(self) -> str:
        """``SEQ:HASH``, to be kept elsewhere."""
        return f"{self.seq}:{self.hash.hex()}"


class SealCheck:
    """Check of one seal: made with the seal before it, then fed every present row, by id."""

    def __init__(self, key: bytes, previous: Seal | None, seal: Seal) -> None:
        self.rows = 0
        self._expected = seal.hash
        self._mac = hmac.new(key, digestmod="sha256")
        self._mac.update(
            _line(
                [
                    "tang-attest audit seal",
                    1,
                    seal.seq,
                    previous.hash.hex() if previous else "",
                    seal.first_id,
                    seal.last_id,
                    seal.rows,
                    (seal.sealed_at - _EPOCH) // timedelta(microseconds=1),
                ]
            )
        )

    def add(self, row: Row) -> None:
        """The next row."""
        self.rows += 1
        self._mac.update(_line(list(row)))

    def digest(self) -> bytes:
        """The hash that a seal over these rows has."""
        return self._mac.digest()

    def holds(self) -> bool:
        """True when the rows, and the seal itself, are what was sealed."""
        return hmac.compare_digest(self.digest(), self._expected)


def make_seal(key: bytes, previous: Seal | None, rows: Sequence[Row], at: datetime) -> Seal:
    """The seal that follows *previous*, over *rows* (at least one, by id, all above the last of *previous*)."""
    seq = previous.seq + 1 if previous else 1
    first_id, last_id = rows[0][0], rows[-1][0]
    check = SealCheck(key, previous, Seal(seq, first_id, last_id, len(rows), b"", sealed_at=at))
    for row in rows:
        check.add(row)
    return Seal(seq, first_id, last_id, len(rows), check.digest(), sealed_at=at)


def _line(values: Sequence[object]) -> bytes:
    return json.dumps(values, separators=(",", ":"), default=_foreign).encode("ascii") + b"\n"


def _foreign(value: object) -> object:
    """Encode a value that no column of ours holds as an object, which no row of ours has."""
    return {type(value).__name__: value.hex() if isinstance(value, bytes) else str(value)}

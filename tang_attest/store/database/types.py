"""Column types.  Values are equal on SQLite and PostgreSQL, and sort by meaning."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from tang_attest.protocol.rules import RuleSet, parse_rules
from tang_attest.protocol.signed_values.signer import Signers, load_signers
from tang_attest.protocol.values.pcr import Selection
from tang_attest.store.database.failures import UnreadableValue

#: SQLite makes only an INTEGER PRIMARY KEY count by itself; both hold 64 bits.
BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
_OFFSET: Final = 1 << 63
#: Made once: a decision writes some of these, and `json.dumps` makes one for each.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


class Instant(TypeDecorator[datetime]):
    """A time, as microseconds since 1970: an integer compares alike everywhere; SQLite has no type for times."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """An aware datetime to microseconds."""
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Microseconds to an aware datetime, UTC."""
        if value is None:
            return None
        try:
            return EPOCH + value * MICROSECOND
        except (TypeError, OverflowError) as error:
            raise UnreadableValue("A time in the database") from error


class Unsigned64(TypeDecorator[int]):
    """An unsigned 64-bit number, 2^63 lower, so that it fits a signed column and keeps its order.

    A TPM's clock has 64 bits, and nothing keeps a hostile one from using the highest.
    """

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """0 becomes -2^63."""
        return None if value is None else value - _OFFSET

    def process_result_value(self, value: int | None, dialect: Dialect) -> int | None:
        """-2^63 becomes 0."""
        return None if value is None else value + _OFFSET


class JsonText(TypeDecorator[Any]):
    """JSON as text: any tool shows it, and no database parses it differently."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        """A JSON-compatible value to text."""
        return None if value is None else _ENCODER.encode(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Text to a JSON-compatible value."""
        if value is None:
            return None
        try:
            return json.loads(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise UnreadableValue("A JSON text in the database") from error


class PcrText(TypeDecorator[Mapping[int, bytes]]):
    """PCR values: ``{"4":"<hex>","7":"<hex>"}``."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[int, bytes] | None, dialect: Dialect) -> str | None:
        """Values by PCR to text."""
        return None if value is None else json.dumps(dump_pcrs(value), separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Mapping[int, bytes] | None:
        """Text to values by PCR."""
        return None if value is None else load_pcrs(json.loads(value))


class RulesText(TypeDecorator[RuleSet]):
    """Rules over event logs, as the document that they were read from."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: RuleSet | None, dialect: Dialect) -> str | None:
        """Rules to text."""
        return None if value is None else json.dumps(value.as_json(), separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> RuleSet | None:
        """Text to rules."""
        return None if value is None else _load_rules(value)


@functools.lru_cache(maxsize=64)
def _load_rules(text: str) -> RuleSet:
    """Compiling the patterns takes longer than a query, and each unlock asks."""
    return parse_rules(json.loads(text))


class SignersText(TypeDecorator[Signers]):
    """The signers of a policy; NULL is none of them, no retired label and no statement."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Signers | None, dialect: Dialect) -> str | None:
        """Signers to text."""
        if value is None or value == Signers():
            return None
        return json.dumps(value.as_json(), separators=(",", ":"), sort_keys=True)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Signers | None:
        """Text to signers."""
        return None if value is None else _load_signers(value)


@functools.lru_cache(maxsize=64)
def _load_signers(text: str) -> Signers:
    """Each unlock under the policy asks."""
    return load_signers(json.loads(text))


class SelectionText(TypeDecorator[Selection]):
    """A selection, as in ``sha256:0,2,4,7``."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Selection | None, dialect: Dialect) -> str | None:
        """A selection to text."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Selection | None:
        """Text to a selection."""
        return None if value is None else Selection.parse(value)


def dump_pcrs(values: Mapping[int, bytes]) -> dict[str, str]:
    """Values by PCR, JSON-compatible."""
    return {str(pcr): value.hex() for pcr, value in sorted(values.items())}


def load_pcrs(values: Mapping[str, str]) -> dict[int, bytes]:
    """Rebuild values from the output of :func:`dump_pcrs`."""
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}

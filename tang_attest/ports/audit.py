"""The audit record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Final, Protocol

from tang_attest.ports.claims import ActClaim
from tang_attest.protocol.audit_chain import Row, Seal


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One decision or change.

    * ``event``: a short verb phrase (``unlock``, ``enroll``, ``device remove``);
    * ``actor``: an operator at the server (``operator:NAME``) or at the console (``console:NAME``), a token's
      holder (``token:NAME``), a device (``device:NAME``), or ``server``;
    * ``verdict``: ``permitted``, ``refused`` or ``done``;
    * ``code``: a code of :mod:`tang_attest.errors`, or ``ok``;
    * ``details``: JSON-compatible, without secrets;
    * ``claim``: the request of a signed act, which is used up with the entry; it is not stored.
    """

    at: datetime
    event: str
    actor: str
    verdict: str
    code: str = "ok"
    _: KW_ONLY
    device: str | None = None
    kid: str | None = None
    address: str | None = None
    request_id: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    claim: ActClaim | None = None

    def members(self) -> dict[str, object]:
        """Return every stored member by its name, which is that of its column and of its JSON member too."""
        return {
            "at": self.at,
            "event": self.event,
            "actor": self.actor,
            "verdict": self.verdict,
            "code": self.code,
            "device": self.device,
            "kid": self.kid,
            "address": self.address,
            "request_id": self.request_id,
            "details": dict(self.details),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSearch:
    """Conditions on entries, all of which an entry has to meet; an empty one is met by every entry.

    * ``since``, ``until``: times, the first inclusive, the second exclusive;
    * ``events``: events, or their first words: ``token`` is met by ``token create``;
    * ``actors``: actors, or their names: ``alice`` is met by ``operator:alice`` and ``token:alice``.
    """

    since: datetime | None = None
    until: datetime | None = None
    codes: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    kid: str | None = None
    verdict: str | None = None


EVERYTHING: Final = AuditSearch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A stretch of the record that is in a file: the seals from ``first_seq`` to ``head``, over ``rows`` rows.

    ``file`` is the file's name when it was made, ``sha256`` the digest of its lines (32 bytes).
    """

    first_seq: int
    first_id: int
    head: Seal
    rows: int
    file: str
    sha256: bytes
    archived_at: datetime
    archived_by: str


class AuditStore(Protocol):
    """The audit record and the chain of seals over it (protocol/audit_chain.py)."""

    async def append(self, entry: AuditEntry) -> None:
        """Append one entry."""

    async def list_audit(
        self,
        device: str | None = None,
        limit: int = 100,
        before: int | None = None,
        search: AuditSearch = EVERYTHING,
    ) -> Sequence[tuple[int, AuditEntry]]:
        """Return entries with their row numbers, newest first; with *before*, only those with a lower number.

        *device* is the machine that has this name, had it last, or had it at the end of *search*: its entries
        under earlier names are there too, and those of earlier machines with this name are not.
        """

    async def list_archives(self) -> Sequence[Archive]:
        """Return the stretches that are in files, oldest first: the chain goes on after the last of them.

        Raises ``registry-tampered``.
        """

    async def newest_seal(self) -> Seal | None:
        """Return the head of the chain.  Raises ``audit-changed`` for a row that cannot be a seal."""

    async def list_seals(self, after: int, limit: int) -> Sequence[Seal]:
        """Return seals with a number above *after*, in order.  Raises ``audit-changed`` for a row that cannot
        be a seal.
        """

    async def add_seal(self, seal: Seal) -> bool:
        """Add *seal*; return False when there is one of its number."""

    async def final_audit_id(self, after: int | None) -> int | None:
        """Return an id above *after* up to which every row is visible and none can still be added.

        ``None`` when there is no row above *after*, or when a transaction has been writing for too long: ask
        again later.
        """

    async def list_audit_rows(self, after: int | None, up_to: int, limit: int) -> Sequence[Row]:
        """Return rows as they are sealed, with an id above *after* and not above *up_to*, by id."""

    async def unsealed_audit(self, after: int | None) -> tuple[int, datetime | None]:
        """Return the number of rows with an id above *after*, and the time of the oldest."""

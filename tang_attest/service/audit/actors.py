"""Actors of the audit record: callers, and authors of changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.claims import ActClaim
from tang_attest.protocol.passkeys.record import CONSOLE, SIGNED


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's network address (text, ``None`` on a Unix socket) and the id its log lines carry."""

    address: str | None
    request_id: str

    def entry(self, at: datetime, event: str, device: str, kid: str) -> AuditEntry:
        """Return the audit entry of a request of *device* with its key: ``refused``, until the request is
        permitted.
        """
        return AuditEntry(
            at,
            event,
            f"device:{device}",
            "refused",
            device=device,
            kid=kid,
            address=self.address,
            request_id=self.request_id,
        )


@dataclass(frozen=True, slots=True)
class Author:
    """Author of a change: ``actor`` is an operator at the server (``operator:NAME``) or at the console
    (``console:NAME``), or a token's holder (``token:NAME``).

    ``caller`` is ``None`` for an operator at the server itself.  ``signed`` are the signatures of console
    operators for the audit record, JSON-compatible, one an operator; ``claim`` uses up the request of the
    last of them.
    """

    actor: str
    caller: Caller | None = None
    _: KW_ONLY
    signed: Sequence[Mapping[str, object]] = ()
    claim: ActClaim | None = None

    @classmethod
    def operator(cls, name: str) -> Author:
        """Return the author for an operator at the server."""
        return cls(f"operator:{name}")

    @property
    def at_server(self) -> bool:
        """True for an operator at the server, who can read the kek anyway."""
        return self.actor.startswith("operator:")

    @classmethod
    def at_console(
        cls,
        name: str,
        caller: Caller | None,
        *,
        signed: Sequence[Mapping[str, object]] = (),
        claim: ActClaim | None = None,
    ) -> Author:
        """Return the author for an operator at the console."""
        return cls(f"{CONSOLE}{name}", caller, signed=signed, claim=claim)

    def entry(
        self, at: datetime, event: str, device: str | None, details: Mapping[str, object]
    ) -> AuditEntry:
        """Return the audit entry of a change that was made."""
        address, request_id = (self.caller.address, self.caller.request_id) if self.caller else (None, None)
        return AuditEntry(
            at,
            event,
            self.actor,
            "done",
            device=device,
            address=address,
            request_id=request_id,
            details={**details, SIGNED: list(self.signed)} if self.signed else details,
            claim=self.claim,
        )

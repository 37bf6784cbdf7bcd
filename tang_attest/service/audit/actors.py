"""Actors of the audit record: callers, and authors of changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tang_attest.ports.audit import AuditEntry


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
    """Author of a change: ``actor`` is an operator (``operator:NAME``) or a token's holder (``token:NAME``).

    ``caller`` is ``None`` for an operator at the server itself.
    """

    actor: str
    caller: Caller | None = None

    @classmethod
    def operator(cls, name: str) -> Author:
        """Return the author for an operator at the server."""
        return cls(f"operator:{name}")

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
            details=details,
        )

"""The claim of a signed act: its request is used up in the transaction that does the act."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ActClaim:
    """Uses up the request of a signed act, so that of two workers with the same assertion one does it.

    ``sign_count`` is that of the assertion by the passkey ``credential_id``; ``roles`` are the operator's
    possible roles.  ``completes`` is the id of the pending approval that the act completes, if it does.
    """

    request: str
    operator: str
    credential_id: bytes
    sign_count: int
    roles: frozenset[str]
    at: datetime
    completes: str | None = None

"""Acts that a passkey signs, from their canonical text to the use case that runs them, once.

The challenge of an act's assertion is the SHA-256 of a text that says what is done, with a nonce of this
server and the time.  The assertion is kept in the audit record, where ``audit verify`` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tang_attest.service.audit.actors import Caller
from tang_attest.service.operators.acts import Act
from tang_attest.service.operators.sign_in import OperatorSession


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request for an assertion: ``options`` are those of ``PublicKeyCredential.parseRequestOptionsFromJSON``.

    ``text`` is the canonical text that is signed; it is JSON, one member a line.
    """

    id: str
    text: str
    options: Mapping[str, object]
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingApproval:
    """An approval that waits for further operators: ``needed`` of them in all, ``signed_by`` so far."""

    id: str
    policy: str
    act: Act
    text: str
    signed_by: tuple[str, ...]
    needed: int
    signed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ActOutcome:
    """Result of an act: ``done`` is one sentence for the page.

    ``pending`` is the approval that waits for further operators, if it does.  ``token`` is the text of a
    token that was created, shown once.
    """

    done: str
    pending: PendingApproval | None = None
    token: str | None = None


class SignedActs:
    """Prepares and runs acts of console operators."""

    async def prepare(self, session: OperatorSession, act: Act) -> SignedRequest:
        """Return the request for a signature of *act*; it expires after five minutes.

        Raises ``role-missing``, ``operator-same`` (they signed the pending approval already), and, as the use
        case, ``not-found``, ``observation-missing``, ``not-suspended``, ``request-malformed``.
        """
        raise NotImplementedError

    async def perform(
        self,
        session: OperatorSession,
        request_id: str,
        credential: Mapping[str, object],
        caller: Caller | None = None,
    ) -> ActOutcome:
        """Check the assertion *credential* over the request, and run its act exactly once.

        Raises ``act-unknown``, ``act-expired``, ``act-used``, ``passkey-unknown``, ``passkey-invalid``,
        ``role-missing``, and what the use case raises.
        """
        raise NotImplementedError

    async def pending(self) -> Sequence[PendingApproval]:
        """Return the approvals that wait for further operators, oldest first."""
        raise NotImplementedError

"""Registration of passkeys, sign-in with them, and sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tang_attest.errors import Refused
from tang_attest.ports.operators import OperatorRole
from tang_attest.service.audit.actors import Author, Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSession:
    """An open session.  ``digest`` is the SHA-256 of its secret, ``csrf`` the token that its forms carry.

    ``ends_at`` is the time at which it ends even if it is used.
    """

    digest: bytes
    name: str
    role: OperatorRole
    csrf: str
    ends_at: datetime

    def require(self, role: OperatorRole) -> None:
        """Raise ``role-missing`` unless the operator has the rights of *role*."""
        if not self.role.includes(role):
            raise Refused("role-missing", f"Operator '{self.name}' is {self.role}, and this takes {role}.")

    def author(self, caller: Caller | None = None) -> Author:
        """Return the author of this operator's changes for the audit record."""
        return Author(f"console:{self.name}", caller)


class SignIn:
    """Passkeys and sessions.  User verification (PIN, fingerprint) is required every time.

    A *credential* is the JSON of ``PublicKeyCredential.toJSON()``.
    """

    async def registration_options(self, link_token: str) -> dict[str, object]:
        """Return options for ``PublicKeyCredential.parseCreationOptionsFromJSON``.

        Raises ``link-invalid``, ``link-used``, ``link-expired``.
        """
        raise NotImplementedError

    async def register(
        self, link_token: str, credential: Mapping[str, object], caller: Caller | None = None
    ) -> str:
        """Register a passkey, once a link; return the operator's name.

        Raises as :meth:`registration_options`, and ``passkey-invalid``.
        """
        raise NotImplementedError

    async def assertion_options(self) -> dict[str, object]:
        """Return options for ``PublicKeyCredential.parseRequestOptionsFromJSON``; nothing is written."""
        raise NotImplementedError

    async def sign_in(
        self, credential: Mapping[str, object], caller: Caller | None = None
    ) -> tuple[str, OperatorSession]:
        """Open a session; return its secret (43 characters, for the cookie) and the session.

        Raises ``passkey-unknown``, ``passkey-invalid``.
        """
        raise NotImplementedError

    async def session(self, secret: str) -> OperatorSession:
        """Return the open session of *secret*, and note that it is used.  Raises ``sign-in-required``."""
        raise NotImplementedError

    async def sign_out(self, session: OperatorSession, caller: Caller | None = None) -> None:
        """End a session for good; one that is over stays so."""
        raise NotImplementedError

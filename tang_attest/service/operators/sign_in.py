"""Registration of passkeys, sign-in with them, and sessions."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tang_attest.errors import Conflict, NotFound, Refused
from tang_attest.ports.operators import (
    Operator,
    OperatorRole,
    OperatorStore,
    Passkey,
    RegistrationLink,
    StoredSession,
)
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.passkeys.assertion import Assertion, read_assertion
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.audit.actors import Author, Caller
from tang_attest.service.enrollment.enroll import token_digest
from tang_attest.service.operators import ceremonies
from tang_attest.service.operators.address import ConsoleAddress
from tang_attest.service.operators.sessions import LIFE, NOTED, SKEW, why_over

#: Names the purpose of the key under which challenges are made.
KEY_LABEL: Final = "operators"
_REGISTER, _SIGN_IN = "register", "sign in"
_RANDOM: Final = 16


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

    def check_csrf(self, token: str) -> None:
        """Raise ``sign-in-required`` unless *token* is that of this session's forms; in constant time."""
        if not hmac.compare_digest(self.csrf.encode(), token.encode()):
            raise Refused("sign-in-required", "The form is of another session.")

    def author(self, caller: Caller | None = None) -> Author:
        """Return the author of this operator's changes for the audit record."""
        return Author.at_console(self.name, caller)


class SignIn:
    """Passkeys and sessions.  User verification (PIN, fingerprint) is required every time.

    A *credential* is the JSON of ``PublicKeyCredential.toJSON()``.  *key* is derived with ``KEY_LABEL``.
    """

    def __init__(
        self, store: OperatorStore, address: ConsoleAddress, key: bytes, clock: Clock, random: Randomness
    ) -> None:
        self._store, self._address, self._clock, self._random = store, address, clock, random
        self._challenges = ceremonies.ConsoleChallenges(key)

    # --- registration ---------------------------------------------------------------------------------------

    async def registration_options(self, link_token: str) -> dict[str, object]:
        """Return options for ``PublicKeyCredential.parseCreationOptionsFromJSON``.

        Raises ``link-invalid``, ``link-used``, ``link-expired``.
        """
        link, operator = await self._link(link_token)
        known = [
            each.credential_id
            for each in await self._store.list_passkeys()
            if each.operator == operator.name and each.revoked_at is None
        ]
        challenge = self._challenge(_REGISTER, link.digest)
        return ceremonies.creation_options(self._address, operator, challenge, known)

    async def register(
        self, link_token: str, credential: Mapping[str, object], caller: Caller | None = None
    ) -> str:
        """Register a passkey, once a link; return the operator's name.

        Raises as :meth:`registration_options`, ``request-malformed``, and ``passkey-invalid``.
        """
        link, operator = await self._link(link_token)
        credential = ceremonies.require_mapping(credential)
        challenge = ceremonies.challenge_in(credential)
        self._challenges.check(_REGISTER, link.digest, self._clock.now(), challenge)
        made = ceremonies.verify_creation(self._address, credential, challenge)
        now = self._clock.now()
        passkey = Passkey(
            credential_id=made.id,
            operator=operator.name,
            public_key=made.public_key,
            sign_count=made.sign_count,
            created_at=now,
        )
        details = {"credential": b64u(made.id), "public_key": b64u(made.public_key)}
        entry = Author.at_console(operator.name, caller).entry(now, "operator register", None, details)
        await self._store.add_passkey(link.digest, passkey, entry)
        return operator.name

    async def _link(self, text: str) -> tuple[RegistrationLink, Operator]:
        """Return a link that can be used now, and its operator."""
        link = await self._store.find_link(digest_of(text))
        if link is None:
            raise Refused("link-invalid", "There is no such link.")
        if link.used_at is not None:
            raise Conflict("link-used", "This link was used before, or a newer one replaced it.")
        now = self._clock.now()
        if now >= link.expires_at:
            raise Refused("link-expired", "This link is older than 15 minutes.")
        if now < link.created_at - SKEW:
            raise Refused(
                "link-expired", "This link was made in the future: the server's clock was set back."
            )
        try:
            return link, await self._store.get_operator(link.operator)
        except NotFound:
            raise Refused("link-invalid", "The operator of this link was removed.") from None

    # --- sign-in --------------------------------------------------------------------------------------------

    async def assertion_options(self) -> dict[str, object]:
        """Return options for ``PublicKeyCredential.parseRequestOptionsFromJSON``; nothing is written."""
        return ceremonies.request_options(self._address, self._challenge(_SIGN_IN, b""))

    async def sign_in(
        self, credential: Mapping[str, object], caller: Caller | None = None
    ) -> tuple[str, OperatorSession]:
        """Open a session; return its secret (43 characters, for the cookie) and the session.

        Raises ``request-malformed``, ``passkey-unknown``, ``passkey-invalid``.
        """
        assertion = read_assertion(credential)
        passkey, operator = await self._passkey(assertion)
        challenge = assertion.challenge
        self._challenges.check(_SIGN_IN, b"", self._clock.now(), challenge)
        ceremonies.verify_assertion(self._address, assertion, passkey, challenge)
        now, secret = self._clock.now(), b64u(self._random.bytes(32))
        session = StoredSession(
            digest=token_digest(secret),
            operator=operator.name,
            challenge=hashlib.sha256(challenge).digest(),
            created_at=now,
            used_at=now,
        )
        opened = _opened(session, operator, secret)
        entry = opened.author(caller).entry(
            now, "operator sign-in", None, {"credential": b64u(passkey.credential_id)}
        )
        await self._store.add_session(session, passkey.credential_id, assertion.sign_count, entry)
        return secret, opened

    async def _passkey(self, assertion: Assertion) -> tuple[Passkey, Operator]:
        passkey = await self._store.find_passkey(assertion.credential_id)
        if passkey is None or passkey.revoked_at is not None:
            raise Refused("passkey-unknown", "This passkey is not registered here, or was revoked.")
        try:
            operator = await self._store.get_operator(passkey.operator)
        except NotFound:
            raise Refused("passkey-unknown", "The operator of this passkey was removed.") from None
        if assertion.user_handle is not None and assertion.user_handle != operator.handle:
            raise Refused("passkey-invalid", "The passkey names another operator than it is registered for.")
        return passkey, operator

    def _challenge(self, purpose: str, subject: bytes) -> bytes:
        return self._challenges.make(purpose, subject, self._clock.now(), self._random.bytes(_RANDOM))

    # --- sessions -------------------------------------------------------------------------------------------

    async def session(self, secret: str, *, used: bool = True) -> OperatorSession:
        """Return the open session of *secret*, and note that it is *used*.  Raises ``sign-in-required``.

        A page that renews itself uses no session: it would keep one open before an empty chair.
        """
        found = await self._store.find_session(digest_of(secret))
        if found is None:
            raise Refused("sign-in-required", "There is no such session.")
        session, operator = found
        now = self._clock.now()
        if (why := why_over(session, now)) is not None:
            raise Refused("sign-in-required", f"The session {why}.")
        if operator.removed_at is not None:
            raise Refused("sign-in-required", f"Operator '{operator.name}' was removed.")
        if used and now - session.used_at >= NOTED:
            await self._store.use_session(session.digest, now)
        return _opened(session, operator, secret)

    async def sign_out(self, session: OperatorSession, caller: Caller | None = None) -> None:
        """End a session for good; one that is over stays so."""
        entry = session.author(caller).entry(self._clock.now(), "operator sign-out", None, {})
        try:
            await self._store.end_session(session.digest, entry)
        except NotFound:
            return


def _opened(session: StoredSession, operator: Operator, secret: str) -> OperatorSession:
    csrf = hashlib.sha256(b"tang-attest console v1 csrf\n" + secret.encode()).digest()
    return OperatorSession(
        digest=session.digest,
        name=operator.name,
        role=operator.role,
        csrf=b64u(csrf),
        ends_at=session.created_at + LIFE,
    )


def digest_of(text: str) -> bytes:
    """Return the digest of a text from a link or a cookie; one that is not ASCII is none of ours."""
    return token_digest(text if text.isascii() else "")

"""Acts that a passkey signs, from their canonical text to the use case that runs them, once.

The challenge of an act's assertion is the SHA-256 of a text that says what is done, with a nonce of this
server and the time (protocol/passkeys/text.py).  The request is used up in the transaction of the act, so that
of two workers with the same assertion one does it.  The assertion is kept in the audit record, where ``audit
verify`` checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from tang_attest.errors import Conflict, NotFound, Refused
from tang_attest.ports.claims import ActClaim
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.operators import ActRequest, OperatorRole, Passkey, StoredApproval
from tang_attest.ports.store import (
    HasDevices,
    HasEnrollment,
    HasOperators,
    HasPolicies,
    HasSignedActs,
)
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.passkeys.assertion import Assertion, read_assertion
from tang_attest.protocol.passkeys.text import ActText, challenge_of, read_text, subject_digest
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.audit.actors import Author, Caller
from tang_attest.service.operators import ceremonies
from tang_attest.service.operators.acts import Act, check_act, members_of, read_act
from tang_attest.service.operators.address import ConsoleAddress
from tang_attest.service.operators.doing import Doing
from tang_attest.service.operators.sessions import SKEW
from tang_attest.service.operators.sign_in import OperatorSession
from tang_attest.service.operators.subjects import Subjects, policies_of

#: The time in which a request has to be signed, and in which further operators have to sign an approval.
REQUEST_LIFE: Final = timedelta(minutes=5)
APPROVAL_LIFE: Final = timedelta(days=1)


class ActStore(HasDevices, HasEnrollment, HasOperators, HasPolicies, HasSignedActs, Protocol):
    """The roles of the store that signed acts need."""


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
    """An approval that waits for further operators: ``needed`` of them in all, ``signed_by`` so far.

    ``subject`` is what is signed, JSON-compatible; ``policies`` are those that it concerns.
    """

    id: str
    act: Act
    subject: Mapping[str, Any]
    policies: tuple[str, ...]
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

    def __init__(
        self, store: ActStore, keys: KeyStore, address: ConsoleAddress, clock: Clock, random: Randomness
    ) -> None:
        self._store, self._address, self._clock, self._random = store, address, clock, random
        self._subjects = Subjects(store)
        self._doing = Doing(store, keys, clock, random)

    # --- the question ---------------------------------------------------------------------------------------

    async def prepare(self, session: OperatorSession, act: Act) -> SignedRequest:
        """Return the request for a signature of *act*; it expires after five minutes.

        Raises ``role-missing``, ``operator-same`` (they signed the pending approval already), and, as the use
        case, ``not-found``, ``observation-missing``, ``not-suspended``, ``request-malformed``.
        """
        session.require(act.role)
        check_act(act)
        subject = (await self._subjects.of(act)).members
        waiting = await self._waiting(subject)
        if waiting is not None and session.name in _signers(waiting):
            raise Conflict("operator-same", f"Operator '{session.name}' signed this approval already.")
        now = self._clock.now()
        text = ActText(
            console=self._address.origin,
            operator=session.name,
            subject=subject,
            nonce=b64u(self._random.bytes(16)),
            time=now,
        ).dump()
        request = ActRequest(
            number=b64u(self._random.bytes(16)),
            operator=session.name,
            session=session.digest,
            act=members_of(act),
            text=text,
            created_at=now,
        )
        allowed = [
            each.credential_id
            for each in await self._store.operators.list_passkeys()
            if each.operator == session.name and each.revoked_at is None
        ]
        options = ceremonies.request_options(self._address, challenge_of(text), allowed)
        await self._store.signed_acts.add_request(request)
        return SignedRequest(request.number, text, options, now + REQUEST_LIFE)

    # --- the answer -----------------------------------------------------------------------------------------

    async def perform(
        self,
        session: OperatorSession,
        request_id: str,
        credential: Mapping[str, object],
        caller: Caller | None = None,
    ) -> ActOutcome:
        """Check the assertion *credential* over the request, and run its act exactly once.

        Raises ``act-unknown``, ``act-expired``, ``act-used``, ``act-changed`` (the machine, the observation or
        the policy), ``request-malformed``, ``passkey-unknown``, ``passkey-invalid``, ``role-missing``, and what
        the use case raises; then nothing was changed.
        """
        request = await self._request(session, request_id)
        act = read_act(request.act)
        session.require(act.role)
        assertion = read_assertion(credential)
        passkey = await self._passkey(session, assertion)
        ceremonies.verify_assertion(self._address, assertion, passkey, challenge_of(request.text))
        subject = await self._subjects.of(act)
        if subject_digest(subject.members) != _signed_subject(request.text):
            raise Conflict("act-changed", "The machine, the policy or the observation was changed meanwhile.")
        signature = _signature(session.name, request.text, assertion)
        claim = ActClaim(
            request=request.number,
            operator=session.name,
            credential_id=passkey.credential_id,
            sign_count=assertion.sign_count,
            roles=frozenset(role.value for role in OperatorRole if role.includes(act.role)),
            at=self._clock.now(),
        )
        author = Author.at_console(session.name, caller, signed=(signature,), claim=claim)
        if subject.operators > 1:
            found = await self._store.signed_acts.find_approval(subject_digest(subject.members))
            waiting = self._unless_expired(found)
            if waiting is not None and session.name in _signers(waiting):
                raise Conflict("operator-same", f"Operator '{session.name}' signed this approval already.")
            others = await self._still_good(waiting, act.role)
            if len(others) + 1 < subject.operators:
                return await self._wait(act, subject.members, subject.operators, found, others, author)
            completes = None if waiting is None else waiting.number
            author = replace(author, signed=(*others, signature), claim=replace(claim, completes=completes))
        done, token = await self._doing.do(act, author)
        return ActOutcome(done=done, token=token)

    async def _request(self, session: OperatorSession, number: str) -> ActRequest:
        request = await self._store.signed_acts.find_request(number) if number.isascii() else None
        if request is None or request.session != session.digest or request.operator != session.name:
            raise Refused("act-unknown", "This session has no such request for a signature.")
        if request.used_at is not None:
            raise Conflict("act-used", "This signature was used before.")
        now = self._clock.now()
        if not request.created_at - SKEW <= now < request.created_at + REQUEST_LIFE:
            raise Refused("act-expired", "The signature came more than five minutes after the question.")
        return request

    async def _passkey(self, session: OperatorSession, assertion: Assertion) -> Passkey:
        passkey = await self._store.operators.find_passkey(assertion.credential_id)
        if passkey is None or passkey.revoked_at is not None or passkey.operator != session.name:
            raise Refused("passkey-unknown", f"This is no passkey of operator '{session.name}'.")
        return passkey

    # --- several operators ----------------------------------------------------------------------------------

    async def pending(self) -> Sequence[PendingApproval]:
        """Return the approvals that wait for further operators, oldest first."""
        now = self._clock.now()
        return [
            _pending(each)
            for each in await self._store.signed_acts.list_approvals()
            if now < each.created_at + APPROVAL_LIFE
        ]

    async def withdraw(
        self, session: OperatorSession, approval_id: str, caller: Caller | None = None
    ) -> None:
        """Forget a pending approval.  Raises ``role-missing``, ``not-found``."""
        session.require(OperatorRole.APPROVER)
        details = {"approval": approval_id}
        entry = session.author(caller).entry(self._clock.now(), "approval withdraw", None, details)
        await self._store.signed_acts.withdraw_approval(approval_id, entry)

    async def _waiting(self, subject: Mapping[str, Any]) -> StoredApproval | None:
        """Return the pending approval of *subject* unless it expired."""
        return self._unless_expired(await self._store.signed_acts.find_approval(subject_digest(subject)))

    def _unless_expired(self, approval: StoredApproval | None) -> StoredApproval | None:
        expired = approval is not None and self._clock.now() >= approval.created_at + APPROVAL_LIFE
        return None if expired else approval

    async def _still_good(
        self, waiting: StoredApproval | None, role: OperatorRole
    ) -> list[Mapping[str, object]]:
        """Return the signatures of operators who still have *role* and the passkey that signed."""
        good = []
        for signature in waiting.signatures if waiting is not None else ():
            try:
                operator = await self._store.operators.get_operator(str(signature["operator"]))
            except NotFound:
                continue
            keys = await self._store.operators.list_passkeys()
            there = {b64u(each.credential_id) for each in keys if each.revoked_at is None}
            if operator.role.includes(role) and signature["credential"] in there:
                good.append(signature)
        return good

    async def _wait(
        self,
        act: Act,
        subject: Mapping[str, Any],
        needed: int,
        found: StoredApproval | None,
        others: Sequence[Mapping[str, object]],
        author: Author,
    ) -> ActOutcome:
        """Keep the signature of *author* and *others* in the place of *found*, until further operators sign.

        *found* may have expired, or its signers may be gone.  It is the approval that *others* were taken from:
        a signature that arrived after that look is not replaced, and ``act-changed`` is raised.
        """
        now = self._clock.now()
        approval = StoredApproval(
            number=b64u(self._random.bytes(16)),
            subject=subject_digest(subject),
            act=members_of(act),
            needed=needed,
            signatures=[*others, *author.signed],
            created_at=found.created_at if found is not None and others else now,
        )
        details = {"approval": approval.number, "needed": needed, "signed_by": list(_signers(approval))}
        entry = author.entry(now, "approval sign", None, details)
        await self._store.signed_acts.save_approval(approval, found, entry)
        left = needed - len(approval.signatures)
        more = "another operator" if left == 1 else f"{left} other operators"
        return ActOutcome(done=f"Signed; it waits for {more} to sign the same.", pending=_pending(approval))


def _signers(approval: StoredApproval) -> tuple[str, ...]:
    return tuple(str(signature["operator"]) for signature in approval.signatures)


def _pending(stored: StoredApproval) -> PendingApproval:
    subject = read_text(str(stored.signatures[0]["text"])).subject
    return PendingApproval(
        id=stored.number,
        act=read_act(stored.act),
        subject=subject,
        policies=policies_of(subject),
        signed_by=_signers(stored),
        needed=stored.needed,
        signed_at=stored.created_at,
        expires_at=stored.created_at + APPROVAL_LIFE,
    )


def _signed_subject(text: str) -> bytes:
    return subject_digest(read_text(text).subject)


def _signature(operator: str, text: str, assertion: Assertion) -> dict[str, object]:
    """Return a signature in the form of the audit record."""
    return {
        "operator": operator,
        "text": text,
        "credential": b64u(assertion.credential_id),
        "authenticator_data": b64u(assertion.authenticator_data),
        "client_data": b64u(assertion.client_data),
        "signature": b64u(assertion.signature),
    }

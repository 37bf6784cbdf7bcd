"""Enroll: from a token to a device with an exchange key of its own (docs/protocol.md, section 4)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from tang_attest.errors import Conflict, Malformed, NotFound, Refused, TangAttestError
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import NewEvidence, Snapshot
from tang_attest.ports.enrollment import Enrollment, Token
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.machines import Device, Learning, NewDevice
from tang_attest.protocol import tpm
from tang_attest.protocol.challenge import Challenge, Purpose
from tang_attest.protocol.coverage import BootPart, acceptance, assess, propose, read_boot, require_covered
from tang_attest.protocol.endorsement.endorsement import EndorsementKey, trim_certificate
from tang_attest.protocol.enrollment import (
    SECRET_SIZE,
    Activation,
    EnrolledDevice,
    accept_ak,
    begin_activation,
    check_activation,
    enrollment_digest,
    matches,
)
from tang_attest.protocol.eventlog import parse
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.quote import Evidence, VerifiedQuote, verify_quote
from tang_attest.protocol.reference_state import (
    MOVING_PCRS,
    ReferenceState,
    moving_pcrs,
    reference_state,
    uncapped,
)
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.values.points import DEFAULT_CURVE
from tang_attest.service.audit.actors import Caller
from tang_attest.service.audit.refusals import Refusals, describe_refusal
from tang_attest.service.enrollment.admission import (
    REGISTERED,
    Admission,
    Admissions,
    AdmittingStore,
    check_usable,
)
from tang_attest.service.enrollment.endorsing import endorse
from tang_attest.service.unlock.appraisal import grade_of
from tang_attest.service.unlock.challenges import Challenges

#: After a token was used, a machine that lost the answer may ask for it again this long.
ANSWERED_AGAIN_FOR: Final = timedelta(hours=24)


class SessionCipher(Protocol):
    """Encrypts a session for its device to carry."""

    def encrypt(self, payload: bytes) -> str:
        """Return *payload*, encrypted, as text."""

    def decrypt(self, text: str) -> bytes | None:
        """Return the payload, or ``None`` if it was not encrypted here."""


@dataclass(frozen=True, slots=True)
class Application:
    """A machine's application: a device name (:func:`check_name`), a token, TPM2B_PUBLIC twice, and (perhaps padded) DER.

    Without a token its EK has to be registered for that.
    """

    name: str
    token: str | None
    ak: bytes
    ek: bytes
    ek_certificate: bytes | None


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer to an application; ``log_wanted``: an event log would be answered with a selection that fits
    it.
    """

    session: str
    activation: Activation
    challenge: Challenge
    log_wanted: bool = False


class _Session(BaseModel):
    """Session that the device carries, encrypted, from the first request to the second."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    name: str
    token: bytes | None
    ak: bytes
    ek: bytes
    ek_certificate: bytes | None
    ek_issuer: str | None
    ek_verified: bool
    secret: bytes
    nonce: str
    selection: str


class Enroll:
    """Answers ``POST /attest/enroll`` and ``POST /attest/enroll/finish``."""

    def __init__(
        self,
        store: AdmittingStore,
        keys: KeyStore,
        sessions: SessionCipher,
        challenges: Challenges,
        refusals: Refusals,
        *,
        curve: str = DEFAULT_CURVE,
    ) -> None:
        self._store, self._keys, self._sessions = store, keys, sessions
        self._challenges, self._refusals, self._curve = challenges, refusals, curve
        self._admissions = Admissions(store)

    async def begin(self, application: Application, caller: Caller) -> Begun:
        """Check the token, the AK and the EK; wrap a secret for the TPM that has both.  Nothing is stored."""
        now, name = self._challenges.now(), application.name
        try:
            shown = None if application.token is None else await self._token(application.token, name, now)
            ak, ek = accept_ak(application.ak), tpm.parse_ek(application.ek)
            admission = await self._admissions.admit(shown, name, ek.spki, now)
            token = admission.token
            endorsement = await self._endorse(ek, application.ek_certificate, admission, now)
            selection, cap_pcr = await self._pcrs(token)
        except Refused as refusal:
            await self._audit_refusal(name, refusal, now, caller)
            raise
        secret = self._challenges.random.bytes(SECRET_SIZE)
        nonce = self._challenges.make(Purpose.ENROLL, name)
        session = _Session(
            name=name,
            token=None if shown is None else shown.digest,
            ak=application.ak,
            ek=application.ek,
            ek_certificate=endorsement.certificate,
            ek_issuer=endorsement.issuer or (REGISTERED if admission.registered else None),
            ek_verified=endorsement.verified or admission.registered is not None,
            secret=secret,
            nonce=nonce,
            selection=str(selection),
        )
        return Begun(
            self._sessions.encrypt(session.model_dump_json().encode()),
            begin_activation(ek, ak, secret),
            Challenge(nonce, selection, self._challenges.ttl_s, cap_pcr=cap_pcr),
            log_wanted=token.proposes,
        )

    async def propose(self, session_text: str, event_log: bytes) -> tuple[str, Selection, tuple[str, ...]]:
        """Return the session over the selection that fits *event_log*, that selection, and sentences that say
        why.

        Nothing of the log is proven yet: :meth:`finish` judges by the quote and the log that comes with it.
        Raises ``session-invalid``, the codes of a token that cannot be used, ``nonce-expired``, and
        ``selection-invalid`` when the operator chose the selection.
        """
        session, now = self._open(session_text), self._challenges.now()
        token = await self._find(session)
        if token is not None:
            check_usable(token, now)
        self._challenges.check(Purpose.ENROLL, session.name, session.nonce, now)
        if token is None or not token.proposes:
            raise Refused("selection-invalid", "The selection of this token is not left to the event log.")
        # The sender of the log chose how long it takes to read, so nobody else waits for that.
        selection, reasons = await asyncio.to_thread(fitting, event_log, token)
        again = session.model_copy(update={"selection": str(selection)})
        return self._sessions.encrypt(again.model_dump_json().encode()), selection, reasons

    async def check_token(self, text: object) -> None:
        """Raise ``token-invalid`` unless *text* is a token of this server."""
        if not isinstance(text, str) or await self._store.enrollment.find_token(token_digest(text)) is None:
            raise Refused("token-invalid", "The token is unknown, or was made for another name.")

    def check_session(self, text: object) -> None:
        """Raise ``session-invalid`` unless *text* was encrypted by this server."""
        self._open(text if isinstance(text, str) else "")

    async def finish(self, session_text: str, proof: str, evidence: Evidence, caller: Caller) -> Device:
        """Check the proof and the first quote, then add the device; counts a use of the token.

        A machine that lost the answer sends the same again, and gets the device that it has.  So does a
        machine that enrolls again with a token for several machines: that is no other use.
        *evidence.nonce* is ignored: the nonce is the session's.
        """
        now = self._challenges.now()
        session = self._open(session_text)
        try:
            admission = await self._admissions.admit(
                await self._find(session), session.name, tpm.parse_ek(session.ek).spki, now
            )
            token = admission.token
            known = await self._known(session, token)
            if known is not None and _may_be_lost(known, token, now):
                check_activation(session.nonce, session.secret, proof)
                return known
            check_usable(token, now)
            quote = self._verify(session, proof, evidence, now)
            if known is not None:
                return known
            enrollment = await self._compose(session, admission, quote, evidence.event_log, now, caller)
            try:
                return await self._store.enrollment.enroll(enrollment)
            except Conflict:
                # The same request may have been answered meanwhile, by another worker.
                known = await self._known(session, await self._find(session) or token)
                if known is None:
                    raise
                return known
        except TangAttestError as error:
            await self._audit_refusal(session.name, error, now, caller)
            raise

    # --- begin ---

    async def _token(self, text: str, name: str, now: datetime) -> Token:
        """Return the token for a machine of that *name*, if it can be used."""
        token = await self._store.enrollment.find_token(token_digest(text))
        if token is None or (token.name is not None and not matches(token.name, name)):
            raise Refused("token-invalid", "The token is unknown, or was made for another name.")
        check_usable(token, now)
        return token

    async def _endorse(
        self, ek: tpm.EkPublic, certificate: bytes | None, admission: Admission, now: datetime
    ) -> EndorsementKey:
        """Return the EK, verified by its certificate, or unverified if the token allows that, or if the
        operator registered the EK.
        """
        unverified = admission.token.allow_unverified_ek or admission.registered is not None
        if certificate is None:
            if unverified:
                return EndorsementKey(ek.spki)
            raise Refused("ek-untrusted", "The TPM has no EK certificate, and the token asks for one.")
        try:
            return await endorse(self._store.enrollment, certificate, ek.spki, now)
        except (Malformed, Refused):
            # The operator's opt-out covers every fault of a certificate, also one that cannot be read.
            if unverified:
                return EndorsementKey(ek.spki, certificate=_readable(certificate))
            raise

    async def _pcrs(self, token: Token) -> tuple[Selection, int]:
        """Return the selection and the cap PCR of the policy that the device will have."""
        if token.policy is None:
            return token.selection, token.cap_pcr
        policy = await self._store.policies.get_policy(token.policy)
        return policy.selection, policy.cap_pcr

    # --- finish ---

    async def _find(self, session: _Session) -> Token | None:
        """Return the token of *session*, or None if it needs none.  Raises ``token-invalid``."""
        if session.token is None:
            return None
        token = await self._store.enrollment.find_token(session.token)
        if token is None:
            raise Refused("token-invalid", "The token was withdrawn.")
        return token

    def _open(self, text: str) -> _Session:
        payload = self._sessions.decrypt(text)
        try:
            if payload is not None:
                return _Session.model_validate_json(payload)
        except ValidationError:
            pass  # encrypted by another version of this program
        raise Refused("session-invalid", "The enrollment session is not one of this server's.")

    def _verify(self, session: _Session, proof: str, evidence: Evidence, now: datetime) -> VerifiedQuote:
        self._challenges.check(Purpose.ENROLL, session.name, session.nonce, now)
        check_activation(session.nonce, session.secret, proof)
        binding = enrollment_digest(session.nonce, session.name, proof)
        device = EnrolledDevice(session.name, accept_ak(session.ak))
        return verify_quote(device, evidence, Selection.parse(session.selection), binding)

    async def _known(self, session: _Session, token: Token) -> Device | None:
        """Return the device that the session's machine is already, by its name, its AK and its EK.

        A token for one machine that was not used makes another device, so it knows none.
        """
        if token.machines == 1 and token.used_at is None:
            return None
        try:
            device = await self._store.devices.get_device(session.name)
        except NotFound:
            return None
        same = (accept_ak(session.ak).name, tpm.parse_ek(session.ek).spki)
        return device if (device.ak_name, device.ek_spki) == same else None

    async def _compose(
        self,
        session: _Session,
        admission: Admission,
        quote: VerifiedQuote,
        event_log: bytes,
        now: datetime,
        caller: Caller,
    ) -> Enrollment:
        token = admission.token
        under = None if token.policy is None else await self._store.policies.get_policy(token.policy)
        cap_pcr = token.cap_pcr if under is None else under.cap_pcr
        loose = {cap_pcr, *MOVING_PCRS}
        found = await asyncio.to_thread(assess, event_log, quote.selection, quote.values, loose=loose)
        known = under.accepted(session.name, now) if under else ()
        require_covered(found, (*token.accepted_uncovered, *known))
        accepted = acceptance(found, token.accepted_uncovered)
        states, learning = record(quote, token, now, accepted) if token.record else ((), None)
        ak, ek = quote.device.ak, tpm.parse_ek(session.ek)
        device = NewDevice(
            name=session.name,
            ak_public=ak.public,
            ak_name=ak.name,
            ak_spki=ak.spki,
            ak_scheme=ak.scheme,
            ak_hash=ak.hash_name,
            ek_spki=ek.spki,
            ek_certificate=session.ek_certificate,
            ek_verified=session.ek_verified,
            ek_issuer=session.ek_issuer,
            origin="enrolled",
            enrolled_at=now,
            clock=quote.clock,
            learning=learning,
            opened_reset_count=quote.clock.reset_count,
            labels=admission.labels,
        )
        key = await self._keys.create_exchange(self._curve, now, device.holder)
        policy = (
            ReferencePolicy(session.name, quote.selection, token.cap_pcr, tuple(states))
            if token.record
            else None
        )
        details: dict[str, object] = {"coverage": found.line()}
        if accepted:
            details["accepted_uncovered"] = [part.value for part in accepted]
        if admission.registered is not None:
            details["registered_ek"] = admission.registered.ek_sha256.hex()
        return Enrollment(
            session.token,
            device,
            key,
            _entry(session.name, "done", now, caller, kid=key.kid, details=details),
            new_policy=policy,
            policy=token.policy,
            evidence=first_evidence(
                quote, event_log, cap_pcr, ek_verified=session.ek_verified, accepted=(*accepted, *known)
            ),
            registered_ek=admission.unused,
        )

    async def _audit_refusal(self, name: str, error: TangAttestError, now: datetime, caller: Caller) -> None:
        details = describe_refusal(error)
        await self._refusals.note(_entry(name, "refused", now, caller, code=error.code, details=details))


def _readable(certificate: bytes) -> bytes | None:
    """Return the DER in *certificate*, if it holds some."""
    try:
        return trim_certificate(certificate)
    except Malformed:
        return None


def _may_be_lost(device: Device, token: Token, now: datetime) -> bool:
    """Return True if the answer to the enrollment of *device* is told again without a fresh quote.

    The proof shows its AK and its EK as before.  Any client that knows the kid may ask for the same answer.
    """
    return (
        now - (token.used_at if token.machines == 1 and token.used_at else device.enrolled_at)
        < ANSWERED_AGAIN_FOR
    )


def fitting(event_log: bytes, token: Token) -> tuple[Selection, tuple[str, ...]]:
    """Return the selection that fits the boot chain of *event_log*, and why; the token's where that is
    unknown.
    """
    try:
        proposal = propose(
            read_boot(parse(event_log), token.selection.bank), token.selection.bank, token.cap_pcr
        )
    except Malformed as error:
        return token.selection, (f"the event log is of no use ({error.sentence.rstrip('.')})",)
    if proposal is None:
        return token.selection, ("the boot chain is unknown, so the default selection is used",)
    return proposal.selection, proposal.reasons


def record(
    quote: VerifiedQuote, token: Token, now: datetime, accepted: tuple[BootPart, ...] = ()
) -> tuple[Sequence[ReferenceState], Learning | None]:
    """Derive from a first quote, made in the running system, the values of the initrd of the same boot.

    The cap PCR is taken as zero.  If the selection holds PCRs that move after the initrd, nothing is
    recorded yet: one learning use is armed, in which every other PCR has to be as it is now.  Raises
    ``values-all-zero`` unless the token says ``force``.
    """
    values = uncapped(quote.values, token.cap_pcr)
    label = f"recorded {now:%Y-%m-%d %H:%M:%S}"
    state = reference_state(
        quote.selection, label, values, "recorded", cap_pcr=token.cap_pcr, force=token.force
    )
    moving = moving_pcrs(quote.selection)
    if not moving:
        actor = f"device:{quote.device.name}"
        return (replace(state, created_at=now, created_by=actor, accepted=accepted),), None
    stable = {pcr: value for pcr, value in values.items() if pcr not in moving}
    return (), Learning(now + timedelta(seconds=token.learn_for_s), stable, accepted)


def first_evidence(
    quote: VerifiedQuote,
    event_log: bytes,
    cap_pcr: int,
    *,
    ek_verified: bool,
    accepted: tuple[BootPart, ...] = (),
) -> NewEvidence | None:
    """Return the values that the initrd of the same boot would have quoted; None if a selected PCR moves
    after it.
    """
    if moving_pcrs(quote.selection):
        return None
    snapshot = Snapshot(quote.selection, uncapped(quote.values, cap_pcr), event_log)
    found = grade_of(snapshot, ek_verified=ek_verified, cap_pcr=cap_pcr, accepted=accepted)
    return NewEvidence(snapshot, permitted=True, grade=found)


def token_digest(text: str) -> bytes:
    """Digest of a token for the store: tokens carry 256 random bits, so a plain SHA-256 is enough."""
    return hashlib.sha256(text.encode()).digest()


def _entry(
    name: str,
    verdict: str,
    now: datetime,
    caller: Caller,
    *,
    code: str = "ok",
    kid: str | None = None,
    details: Mapping[str, object] | None = None,
) -> AuditEntry:
    return AuditEntry(
        at=now.astimezone(UTC),
        event="enroll",
        actor=f"device:{name}",
        verdict=verdict,
        code=code,
        device=name,
        kid=kid,
        address=caller.address,
        request_id=caller.request_id,
        details=details or {},
    )

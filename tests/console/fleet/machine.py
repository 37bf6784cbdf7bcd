"""A machine of the fleet: a TPM in software with an EK certificate, at the use cases that answer machines."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import TangAttestError
from tang_attest.protocol.challenge import announce_digest, unlock_digest
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.compose import Attestation
from tang_attest.service.audit.actors import Caller
from tang_attest.service.enrollment.enroll import Application
from tang_attest.service.policies.announce import Announcement
from tests.attester import Attester, members
from tests.protocol.endorsement import ek_pki

_LONG_AGO: Final = datetime(2025, 1, 1, tzinfo=UTC)


@cache
def vendor() -> ek_pki.Issued:
    """Return the certificate authority of the vendor of these TPMs."""
    return ek_pki.ca("TPM Works EK Root", not_before=_LONG_AGO)


class Machine:
    """One machine; *address* is where its requests come from."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.kid = name, ""
        self.tpm = Attester()
        self._caller = Caller(address, "0123456789abcdef")
        self._ek = ek_pki.ek(vendor(), key=self.tpm.ek, not_before=_LONG_AGO + timedelta(days=1))

    def copy(self) -> Machine:
        """Return the machine as it is now, with PCRs and clock of its own."""
        twin = copy.copy(self)
        twin.tpm = copy.copy(self.tpm)
        twin.tpm.pcrs = {bank: dict(values) for bank, values in self.tpm.pcrs.items()}
        return twin

    def boot(self, log: bytes) -> None:
        """Reset the TPM, and measure what *log* says."""
        self.tpm.boot_log(log)

    async def enroll(self, attestation: Attestation, token: str) -> None:
        """Enroll with *token*; the machine has booted before."""
        tpm, enroll = self.tpm, attestation.enroll
        application = Application(self.name, token, tpm.ak_public, tpm.ek_public, self._ek.der)
        begun = await enroll.begin(application, self._caller)
        credential = begun.activation
        secret = tpm.activate(
            credential.credential_blob, credential.encrypted_secret, parse_ak(tpm.ak_public).name
        )
        proof = activation_proof(begun.challenge.nonce, secret)
        binding = enrollment_digest(begun.challenge.nonce, self.name, proof)
        evidence = self._evidence("", binding, begun.challenge.selection)
        enrolled = await enroll.finish(begun.session, proof, evidence, self._caller)
        self.kid = enrolled.kids[0]

    async def unlock(self, attestation: Attestation) -> str:
        """Try to unlock; return ``ok`` or the code of the refusal."""
        unlock = attestation.unlock
        challenge = await unlock.challenge(self.kid)
        x = dict(members(ec.generate_private_key(ec.SECP521R1())))
        binding = unlock_digest(challenge.nonce, self.kid, thumbprint(x))
        evidence = self._evidence(challenge.nonce, binding, challenge.selection)
        try:
            await unlock.respond(self.kid, x, evidence, self._caller)
        except TangAttestError as error:
            return error.code
        return "ok"

    async def announce(self, attestation: Attestation, next_boot: bytes, label: str, *notes: str) -> None:
        """Announce the values of a boot that will be as *next_boot* says."""
        challenge = await attestation.announce.challenge(self.kid)
        twin = Attester()
        twin.boot_log(next_boot)
        values = twin.values(str(challenge.selection))
        binding = announce_digest(challenge.nonce, self.kid, values, label)
        evidence = self._evidence(challenge.nonce, binding, challenge.selection)
        await attestation.announce.announce(
            self.kid, Announcement(label, values, notes), evidence, self._caller
        )

    def _evidence(self, nonce: str, binding: bytes, selection: Selection) -> Evidence:
        quote = self.tpm.attest(binding, str(selection))
        return Evidence(
            nonce, quote, self.tpm.sign(quote), self.tpm.values(str(selection)), self.tpm.event_log
        )

"""``boot-applications``: what the firmware and shim started is on a list, or signed by keys on a list."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from tang_attest.protocol.rules.document import DocumentPosition
from tang_attest.protocol.rules.judgement import RuleFinding, RuleResult, shown_list
from tang_attest.protocol.rules.proven import ProvenEvent, ProvenLog, is_image
from tang_attest.protocol.rules.secure_boot import PCR as SECURE_BOOT_PCR
from tang_attest.protocol.rules.secure_boot import SecureBoot, Variable

_IMAGE_PCRS: Final = frozenset({2, 4})
_SHIM: Final = "605dab50-e046-4300-abb6-3dd810dd8b23"
_OWNER: Final = 16
"""EFI_SIGNATURE_DATA (UEFI, "Signature Database"): the owner's GUID, then the certificate."""


@dataclass(frozen=True, slots=True)
class BootApplications:
    """Passes when every image of PCR 4 (and PCR 2, if it is judged by events) is allowed.

    ``digests`` are what the log has for the images (Authenticode hashes, not those of the files).

    ``signed_by`` are SHA-256 of DER certificates.  It holds when Secure Boot was on (as ``secure-boot``
    proves it) and every authority in PCR 7 is one of them, of which there must be one.  That proves that
    firmware and shim refused every image that none of these keys had signed or vouched for.  It does not
    prove which image ran: anything they ever signed passes, revoked or not, as does a certificate's whole CA
    when the certificate is one.

    With both, an image passes by its digest, or all do by ``signed_by``.
    """

    digests: tuple[str, ...]
    signed_by: tuple[str, ...]
    image_pcrs: frozenset[int]

    key = "boot-applications"

    @classmethod
    def parse(cls, value: object, place: DocumentPosition, judged: frozenset[int]) -> BootApplications:
        """``{digests: [sha256:...], signed-by: [sha256:...]}``, one or both; *judged* has PCR 4."""
        body = place.mapping(value, ("digests", "signed-by"))
        if 4 not in judged:
            raise place.error("PCR 4 is not in judge-by-events, so this would decide nothing")
        signed_by = place.at("signed-by").digests(body["signed-by"]) if "signed-by" in body else ()
        if any(not fingerprint.startswith("sha256:") for fingerprint in signed_by):
            raise place.at("signed-by").error("a certificate is named by its sha256")
        digests = place.at("digests").digests(body["digests"]) if "digests" in body else ()
        return cls(digests, signed_by, judged & _IMAGE_PCRS)

    @property
    def pcrs(self) -> frozenset[int]:
        """As :class:`~tang_attest.protocol.rules.judgement.Rule` says."""
        return self.image_pcrs | ({SECURE_BOOT_PCR} if self.signed_by else set())

    def as_json(self) -> object:
        """As :meth:`parse` reads it."""
        body = {"digests": list(self.digests), "signed-by": list(self.signed_by)}
        return {key: entries for key, entries in body.items() if entries}

    def judge(self, log: ProvenLog) -> RuleResult:
        """The events it accepts and what it found; the class says when it passes."""
        listed = log.listed(self.digests)
        images = [event for event in log.events if event.event.pcr in self.image_pcrs and is_image(event)]
        accepted = frozenset(event.number for event in images if event.digest in listed)
        if not any(event.event.pcr == 4 for event in images):
            return RuleResult(findings=(RuleFinding("PCR 4 has no boot application"),))
        unlisted = [event for event in images if event.number not in accepted]
        if not self.signed_by:
            return RuleResult(accepted, tuple(map(self._not_listed, unlisted)))
        signed = self._signed(log)
        if not signed.findings:
            accepted |= signed.accepted | {event.number for event in images}
            return RuleResult(accepted)
        return RuleResult(accepted, signed.findings if unlisted else ())

    def _not_listed(self, event: ProvenEvent) -> RuleFinding:
        allowed = shown_list(self.digests)
        return RuleFinding(
            f"{event.shown} is not allowed (allowed: {allowed})", event, event.digest.hex(), self.digests
        )

    def _signed(self, log: ProvenLog) -> RuleResult:
        """Check that Secure Boot was on, and only for listed certificates; accept its events in PCR 7."""
        secure_boot = SecureBoot().judge(log)
        if secure_boot.findings:
            return secure_boot
        separator = max(secure_boot.accepted)
        events = [event for event in log.in_pcr(SECURE_BOOT_PCR) if event.number > separator]
        authorities = [event for event in events if not _is_level(event)]
        findings = tuple(finding for event in authorities if (finding := self._authority(event)))
        if not authorities:
            findings = (
                RuleFinding("PCR 7 names nothing that images were checked with", allowed=self.signed_by),
            )
        return RuleResult(frozenset(event.number for event in events), findings)

    def _authority(self, event: ProvenEvent) -> RuleFinding | None:
        variable = Variable.measured_by(event)
        if variable is None:
            return RuleFinding(f"what images were checked with is not known: {event.shown}", event)
        # EFI_SIGNATURE_DATA; shim before 16 measures its own certificate without an owner.
        candidates = [variable.value[_OWNER:], variable.value]
        fingerprints = [f"sha256:{hashlib.sha256(certificate).hexdigest()}" for certificate in candidates]
        if any(fingerprint in self.signed_by for fingerprint in fingerprints):
            return None
        what = f"images were checked with {fingerprints[0]}, which is not allowed ({event.shown})"
        return RuleFinding(what, event, fingerprints[0], self.signed_by)


def _is_level(event: ProvenEvent) -> bool:
    """Shim's revocation level, the only thing it measures there that lets nothing in (shim, SBAT)."""
    variable = Variable.measured_by(event)
    return variable is not None and (variable.guid, variable.name) == (_SHIM, "SbatLevel")

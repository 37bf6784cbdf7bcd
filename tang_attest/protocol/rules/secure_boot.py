"""``secure-boot: on``: the firmware enforced Secure Boot before it started anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from tang_attest.protocol.eventlog.describe import split_variable
from tang_attest.protocol.rules.document import DocumentPosition
from tang_attest.protocol.rules.judgement import RuleFinding, RuleResult
from tang_attest.protocol.rules.proven import ProvenEvent, ProvenLog

EFI_GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
PCR: Final = 7

_DEBUGGING: Final = (b"UEFI Debug Mode", b"DMA Protection Disabled")
"""Firmware measures these into PCR 7 when its protection has a hole (PFP, PCR 7 usage)."""


class Variable(NamedTuple):
    """UEFI_VARIABLE_DATA, out of bytes that were measured."""

    guid: str
    name: str
    value: bytes

    @classmethod
    def measured_by(cls, event: ProvenEvent) -> Variable | None:
        """The variable that *event* proves; ``None`` when its bytes are unknown or something else."""
        if event.measured is None:
            return None
        try:
            variable = cls(*split_variable(event.measured))
        except ValueError:
            return None
        return (
            variable if variable.encoded() == event.measured else None
        )  # nothing after its end, no odd name

    def encoded(self) -> bytes:
        """As firmware hashes it (PFP "UEFI_VARIABLE_DATA")."""
        name = self.name.encode("utf-16-le")
        sizes = (len(name) // 2).to_bytes(8, "little") + len(self.value).to_bytes(8, "little")
        return UUID(self.guid).bytes_le + sizes + name + self.value


@dataclass(frozen=True, slots=True)
class SecureBoot:
    """Passes when PCR 7 proves that ``SecureBoot`` was 1, once, before the first separator.

    Firmware measures the Secure Boot variables before anything else of PCR 7 and before it starts an image,
    so no software can come earlier; what comes later could be added by anyone.  Each event before the
    separator must therefore be known by its bytes: an unknown one could be ``SecureBoot`` = 0 under another
    name.

    Accepts that event and the separator.  NOT checked: whose keys are enrolled (``signed-by``, or the value
    of PCR 7), that the revocation list is new, and what shim was told to ignore (PCR 14).
    """

    key = "secure-boot"

    @classmethod
    def parse(cls, value: object, place: DocumentPosition) -> SecureBoot:
        """``on``; also ``true``, which is what YAML 1.1 makes of it."""
        if value != "on" and value is not True:
            raise place.error("this can only be on")
        return cls()

    @property
    def pcrs(self) -> frozenset[int]:
        """As :class:`~tang_attest.protocol.rules.judgement.Rule` says."""
        return frozenset({PCR})

    def as_json(self) -> object:
        """As :meth:`parse` reads it."""
        return "on"

    def judge(self, log: ProvenLog) -> RuleResult:
        """The events it accepts and what it found; the class says when it passes."""
        events = log.in_pcr(PCR)
        on, off, harmful = self._digests(log)
        separator = log.first_separator(PCR)
        if separator is None:
            return RuleResult(
                findings=(RuleFinding("PCR 7 has no separator, so the firmware never finished it"),)
            )
        findings = [
            RuleFinding(f"Secure Boot is off: {e.shown}", e, "off", ("on",))
            for e in events
            if e.digest in off
        ]
        findings += [
            RuleFinding(f"the firmware is open: {e.shown}", e) for e in events if e.digest in harmful
        ]
        before = [event for event in events if event.number < separator.number]
        findings += [finding for event in before if (finding := self._unknown(event))]
        if [event.digest for event in before].count(on) != 1 or [e.digest for e in events].count(on) != 1:
            what = "PCR 7 does not prove exactly one SecureBoot = 1 before its separator"
            findings.append(RuleFinding(what, found="nothing or more", allowed=("on",)))
        accepted = {event.number for event in before if event.digest == on}
        return RuleResult(frozenset({*accepted, separator.number}), tuple(findings))

    @staticmethod
    def _unknown(event: ProvenEvent) -> RuleFinding | None:
        variable = Variable.measured_by(event)
        if variable is None and event.measured is None:
            return RuleFinding(
                f"what was measured before PCR 7's separator is not known: {event.shown}", event
            )
        if (
            variable
            and (variable.guid, variable.name) == (EFI_GLOBAL, "SecureBoot")
            and variable.value != b"\x01"
        ):
            return RuleFinding(f"Secure Boot is off: {event.shown}", event, "off", ("on",))
        return None

    @staticmethod
    def _digests(log: ProvenLog) -> tuple[bytes, set[bytes], set[bytes]]:
        def digest(name: str, value: bytes) -> bytes:
            return log.digest_of(Variable(EFI_GLOBAL, name, value).encoded())

        off = {digest("SecureBoot", b"\x00"), digest("SecureBoot", b"")}
        setup = {digest("PK", b""), digest("SetupMode", b"\x01"), digest("AuditMode", b"\x01")}
        return digest("SecureBoot", b"\x01"), off, setup | {log.digest_of(text) for text in _DEBUGGING}

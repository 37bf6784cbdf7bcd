"""A log that replays to quoted PCRs, reduced to what that proves."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.eventlog import (
    Event,
    EventLog,
    EventType,
    describe,
    measured_data,
    parse,
)
from tang_attest.protocol.eventlog.constants import ACTIONS, NORMAL_SEPARATORS
from tang_attest.protocol.eventlog.phases import INITRD_WORDS, unexplained
from tang_attest.protocol.eventlog.subject import SECTION_NAMES

_HARMLESS: Final[Mapping[int, tuple[bytes, ...]]] = {
    **dict.fromkeys(range(8), NORMAL_SEPARATORS),
    4: (*NORMAL_SEPARATORS, *ACTIONS),
    5: (*NORMAL_SEPARATORS, *ACTIONS),
    11: tuple(f"{name}\0".encode() for name in SECTION_NAMES),
}
"""Bytes that every boot measures and that are no software; their digest can be nothing else."""


@dataclass(frozen=True, slots=True)
class ProvenEvent:
    """One extend: ``digest`` is what was extended, ``measured`` the bytes that hash to it when the log holds
    them.

    ``event`` is what the sender says about it.
    """

    event: Event
    digest: bytes
    measured: bytes | None

    @property
    def number(self) -> int:
        """Its place in the log, from 0."""
        return self.event.index

    @property
    def shown(self) -> str:
        """``event 36 of PCR 8, claims: EV_IPL "linux /vmlinuz"``, for people."""
        claim = f"{self.event.type_name} {describe(self.event)}"
        return f"event {self.number} of PCR {self.event.pcr} ({self.digest.hex()[:12]}..., claims: {claim})"


@dataclass(frozen=True, slots=True)
class ProvenLog:
    """The extends of one bank in PCRs that replay to their quoted values."""

    bank: str
    pcrs: frozenset[int]
    events: tuple[ProvenEvent, ...]

    @classmethod
    def of(cls, log: EventLog, bank: str, quoted: Mapping[int, bytes], pcrs: Collection[int]) -> ProvenLog:
        """Return the proof of *log* about *pcrs*, whose values in *bank* are authentic.

        The words that systemd extends in an initrd after the log are constants, and are accepted after it.

        Raises :class:`Refused`: ``log-replay-mismatch`` for each of *pcrs* that is not quoted or to whose
        value the log does not lead, ``eventlog-bank-missing`` when the log does not have *bank*.
        """
        missing = [pcr for pcr in sorted(pcrs) if pcr not in quoted]
        if missing:
            raise Refused.because(
                *(_mismatch(pcr, "was not quoted, so its events prove nothing") for pcr in missing)
            )
        try:
            mismatches = unexplained(log, bank, {pcr: quoted[pcr] for pcr in pcrs}, INITRD_WORDS)
        except Malformed as error:
            raise Refused.because(*error.reasons) from None
        if mismatches:
            what = "is {} in the quote, but the event log leads to {} by {} events"
            raise Refused.because(
                *(
                    _mismatch(
                        m.pcr, what.format(m.quoted.hex(), m.replayed.hex(), m.events), m.quoted, m.replayed
                    )
                    for m in mismatches
                )
            )
        events = tuple(
            ProvenEvent(event, event.digests[bank], measured_data(event, bank))
            for event in log.events
            if event.extends and event.pcr in pcrs
        )
        return cls(bank, frozenset(pcrs), events)

    def in_pcr(self, pcr: int) -> tuple[ProvenEvent, ...]:
        """The events of *pcr* in their order."""
        return tuple(event for event in self.events if event.event.pcr == pcr)

    def first_separator(self, pcr: int) -> ProvenEvent | None:
        """Return the first separator of *pcr*, zeros or ones: what comes before it, the firmware measured at
        its start.
        """
        digests = {self.digest_of(value) for value in NORMAL_SEPARATORS}
        return next((event for event in self.in_pcr(pcr) if event.digest in digests), None)

    def digest_of(self, data: bytes) -> bytes:
        """Return the digest of *data* in this bank."""
        return hashlib.new(self.bank, data).digest()

    def listed(self, digests: Collection[str]) -> frozenset[bytes]:
        """Those of *digests* (``sha256:<hex>``) that are of this bank."""
        prefix = f"{self.bank}:"
        return frozenset(bytes.fromhex(d.removeprefix(prefix)) for d in digests if d.startswith(prefix))

    def harmless(self) -> frozenset[int]:
        """The numbers of separators, firmware actions and section names, by their digests."""
        known = {
            pcr: {self.digest_of(data) for data in _HARMLESS[pcr]} for pcr in self.pcrs & _HARMLESS.keys()
        }
        return frozenset(
            event.number for event in self.events if event.digest in known.get(event.event.pcr, ())
        )


def read_log(data: bytes | None) -> EventLog:
    """*data* as a log.  Raises :class:`Refused` ``log-missing`` and ``eventlog-malformed``."""
    if not data:
        raise Refused("log-missing", "The policy judges an event log, and none was sent.")
    try:
        return parse(data)
    except Malformed as error:
        raise Refused.because(*error.reasons) from None


def is_image(event: ProvenEvent) -> bool:
    """Return True if *event* claims to be an image that firmware or shim started."""
    return event.event.type in (
        EventType.EV_EFI_BOOT_SERVICES_APPLICATION,
        EventType.EV_EFI_BOOT_SERVICES_DRIVER,
        EventType.EV_EFI_RUNTIME_SERVICES_DRIVER,
    )


def _mismatch(pcr: int, what: str, quoted: bytes | None = None, replayed: bytes | None = None) -> Reason:
    data: tuple[tuple[str, object], ...] = (("pcr", pcr),)
    if quoted is not None and replayed is not None:
        data += (("got", quoted.hex()), ("replayed", replayed.hex()))
    return Reason("log-replay-mismatch", f"PCR {pcr} {what}.", data)

"""EventLog -> PCR values, and what the quoted PCRs hold that the log does not explain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog.structures import HASH_ALGORITHMS, EventLog

REPLAYABLE: Final = tuple(name for name, _ in HASH_ALGORITHMS.values() if name != "sm3_256")
"""Banks whose hash Python always has; SM3 depends on how OpenSSL was built."""

_DRTM_PCRS: Final = range(17, 23)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One quoted PCR that the log does not explain.

    ``quoted`` is the authentic value, ``replayed`` what the log leads to, ``events`` how many of its events
    were extended into this PCR.  ``events == 0`` is the usual sign of an extend that firmware logs never show
    (IMA in PCR 10, systemd in 11 and 15, this program's cap): the caller decides whether that is acceptable.
    """

    pcr: int
    quoted: bytes
    replayed: bytes
    events: int


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """The PCR values that *log* leads to in *bank* (``sha256``), ascending.

    Only PCRs into which at least one event is extended, and PCR 0 if the log tells its startup locality.
    EV_NO_ACTION is never extended (PFP "EV_NO_ACTION").  Initial values: see :func:`initial_value`.

    Raises :class:`Malformed` ``eventlog-bank-missing`` if the log has no such bank or its hash is not
    available. NOT checked: whether a TPM has these values; that is :func:`replays_to` over quoted ones.
    """
    _require(log, bank)
    values: dict[int, bytes] = {}
    if log.startup_locality is not None:
        values[0] = initial_value(log, bank, 0)
    for event in log.events:
        if event.extends:
            before = values.get(event.pcr) or initial_value(log, bank, event.pcr)
            values[event.pcr] = hashlib.new(bank, before + event.digests[bank]).digest()
    return dict(sorted(values.items()))


def replays_to(log: EventLog, bank: str, quoted: Mapping[int, bytes]) -> tuple[Mismatch, ...]:
    """Return the *quoted* PCRs (index -> raw value in *bank*) that the log does not explain, ascending; empty
    is good.

    A PCR without events is explained if it still has its initial value.  Reports rather than decides, because
    the operating system extends PCRs after the firmware's log ends.

    Raises :class:`Malformed` as :func:`replay`.  NOT checked: that *quoted* is authentic, and that it covers
    every PCR of the log (events of PCRs that were not quoted are unproven).
    """
    values = replay(log, bank)
    counts: dict[int, int] = {}
    for event in log.events:
        if event.extends:
            counts[event.pcr] = counts.get(event.pcr, 0) + 1
    mismatches = []
    for pcr in sorted(quoted):
        replayed = values.get(pcr) or initial_value(log, bank, pcr)
        if quoted[pcr] != replayed:  # public values: no need for constant time
            mismatches.append(Mismatch(pcr, quoted[pcr], replayed, counts.get(pcr, 0)))
    return tuple(mismatches)


def initial_value(log: EventLog, bank: str, pcr: int) -> bytes:
    """Return the value of *pcr* after TPM2_Startup(CLEAR): zeros; ones for 17 to 22; the locality in PCR 0's
    last byte.

    (TPM 2.0 Part 3 "TPM2_Startup"; PC Client Platform TPM Profile "PCR Attributes".)  A dynamic launch
    (D-RTM) resets 17 to 22 to zeros instead; firmware logs end before one.
    """
    size = next(algorithm.size for algorithm in log.algorithms if algorithm.name == bank)
    if pcr in _DRTM_PCRS:
        return b"\xff" * size
    locality = log.startup_locality or 0
    return (locality if pcr == 0 else 0).to_bytes(size, "big")


def _require(log: EventLog, bank: str) -> None:
    banks = [algorithm.name for algorithm in log.algorithms]
    if bank not in banks:
        raise Malformed(
            "eventlog-bank-missing", f"the log has no {bank} bank, only {', '.join(banks)}", bank=bank
        )
    if bank not in REPLAYABLE:
        raise Malformed("eventlog-bank-missing", f"the {bank} bank cannot be replayed here", bank=bank)

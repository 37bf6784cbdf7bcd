"""Progress through a machine's IMA list and its findings: each entry travels, and is appraised, once a boot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from tang_attest.errors import Reason, Refused
from tang_attest.protocol.ima.entries import PCR, Entry, read_entries
from tang_attest.protocol.ima.requirement import ImaFinding, Requirement, show
from tang_attest.protocol.values.pcr import BANK_SIZES, PcrValues
from tang_attest.protocol.values.sizes import MAX_IMA_PART

MAX_FINDINGS: Final = 8
"""Entries that are named; the others are counted."""

_AGGREGATE: Final = b"boot_aggregate"


class Mode(StrEnum):
    """Digest with which Linux extends PCR 10 of a bank."""

    #: The bank's own hash over the template data: Linux 5.8 and later.
    BANK = "bank"
    #: SHA-1 over the template data, padded with zeros: earlier kernels.
    PADDED_SHA1 = "padded-sha1"


@dataclass(frozen=True, slots=True)
class ImaProgress:
    """Offset of the next part of a list, and the findings before it.

    ``boot`` is the TPM's reset counter, ``requirement`` the digest of what was required, ``bank`` the quoted
    one: when one of them changes, the list is read from its beginning.  ``offset`` is in bytes, ``count`` in
    entries; ``values`` is PCR 10 after them, in each mode that is still possible.  ``bad`` are the first of
    ``bad_count`` findings.
    """

    boot: int
    requirement: str
    bank: str
    offset: int = 0
    count: int = 0
    _: KW_ONLY
    values: Mapping[Mode, bytes] = field(default_factory=dict)
    bad: tuple[ImaFinding, ...] = ()
    bad_count: int = 0

    @classmethod
    def begin(cls, boot: int, requirement: Requirement, bank: str) -> ImaProgress:
        """Nothing was read yet: PCR 10 is zero after a reset (PC Client Platform TPM Profile, "PCR
        Attributes").
        """
        start = bytes(BANK_SIZES[bank])
        return cls(boot, requirement.digest, bank, values=dict.fromkeys(Mode, start))

    def goes_on(self, other: ImaProgress) -> bool:
        """Return True if *other* is about the same boot, requirement and bank."""
        return (self.boot, self.requirement, self.bank) == (other.boot, other.requirement, other.bank)

    def as_json(self) -> dict[str, Any]:
        """JSON-compatible, and what :meth:`from_json` takes."""
        return {
            "boot": self.boot,
            "requirement": self.requirement,
            "bank": self.bank,
            "offset": self.offset,
            "count": self.count,
            "values": {mode.value: value.hex() for mode, value in self.values.items()},
            "bad": [[bad.number, bad.path, bad.digest, bad.why] for bad in self.bad],
            "bad_count": self.bad_count,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ImaProgress:
        """Rebuild the progress from the output of :meth:`as_json`."""
        values = {Mode(mode): bytes.fromhex(value) for mode, value in body["values"].items()}
        bad = tuple(ImaFinding(*finding) for finding in body["bad"])
        return cls(**{**body, "values": values, "bad": bad})


def advance(
    before: ImaProgress, part: bytes, quoted: PcrValues, requirement: Requirement, limit: int = MAX_IMA_PART
) -> tuple[ImaProgress, bool]:
    """Read *part*, which begins at ``before.offset``; where that leads, and whether it is PCR 10 as *quoted*.

    The list may run ahead of the quote: what comes after the longest beginning that leads to the quoted value
    waits for the next round.  A part of *limit* bytes is taken for one that more follows.  The first entry of
    all, the boot aggregate, is compared with PCRs 0 to 9 if they are quoted and it was made with the bank's
    hash.

    Raises :class:`Malformed` ``ima-malformed``, and :class:`Refused` ``ima-mismatch`` when a last part leads
    elsewhere. NOT checked: that *quoted* is authentic, and belongs to the boot of *before*.
    """
    more = len(part) >= limit
    entries = read_entries(part, cut=more, limit=limit)
    trail = _replay(before, entries)
    for read in range(len(entries), -1, -1):
        # Public values: no need for constant time.
        met = {mode: value for mode, value in trail[read].items() if value == quoted[PCR]}
        if met:
            return _read(before, entries[:read], met, quoted, requirement), True
    if not more:
        count = before.count + len(entries)
        raise Refused("ima-mismatch", f"The list's {count} entries do not lead to the quoted PCR {PCR}.")
    return _read(before, entries, trail[-1], quoted, requirement), False


def replay_all(data: bytes, bank: str, limit: int) -> bytes:
    """The value of PCR 10 to which the whole list *data* leads where Linux is 5.8 or later.  Raises
    ``ima-malformed``.
    """
    value = bytes(BANK_SIZES[bank])
    for entry in read_entries(data, limit=limit):
        value = hashlib.new(bank, value + _extended(entry, Mode.BANK, bank)).digest()
    return value


def reasons(progress: ImaProgress, requirement: Requirement) -> tuple[Reason, ...]:
    """Return the reasons to refuse a machine whose whole list was read (``advance``); empty is good."""
    if progress.count == 0:
        return (Reason("ima-not-allowed", f"Nothing was measured into PCR {PCR}."),)
    found = [_reason(finding) for finding in progress.bad]
    if progress.bad_count > len(found):
        more = f"{progress.bad_count - len(found)} more entries are not allowed."
        found.append(Reason("ima-not-allowed", more))
    if Mode.BANK not in progress.values and not requirement.accept_padded_sha1:
        found.append(Reason("ima-not-allowed", f"This kernel extends PCR {PCR} with SHA-1 only."))
    return tuple(found)


def _reason(finding: ImaFinding) -> Reason:
    data = (("entry", finding.number), ("path", finding.path), ("found", finding.digest))
    return Reason("ima-not-allowed", f"Entry {finding.number}, {finding.path}: {finding.why}.", data)


def _replay(before: ImaProgress, entries: Sequence[Entry]) -> list[dict[Mode, bytes]]:
    """PCR 10 before the first entry, and after each."""
    trail = [dict(before.values)]
    for entry in entries:
        trail.append(
            {
                mode: hashlib.new(before.bank, value + _extended(entry, mode, before.bank)).digest()
                for mode, value in trail[-1].items()
            }
        )
    return trail


def _extended(entry: Entry, mode: Mode, bank: str) -> bytes:
    if mode is Mode.BANK:
        return b"\xff" * BANK_SIZES[bank] if entry.violation else hashlib.new(bank, entry.data).digest()
    sha1 = b"\xff" * 20 if entry.violation else hashlib.sha1(entry.data, usedforsecurity=False).digest()
    return sha1.ljust(BANK_SIZES[bank], b"\0")


def _read(
    before: ImaProgress,
    entries: Sequence[Entry],
    values: Mapping[Mode, bytes],
    quoted: PcrValues,
    requirement: Requirement,
) -> ImaProgress:
    bad, bad_count = list(before.bad), before.bad_count
    for number, entry in enumerate(entries, start=before.count + 1):
        finding = (
            _judge_aggregate(entry, quoted, before.bank) if number == 1 else requirement.judge(number, entry)
        )
        if finding is not None:
            bad_count += 1
            if len(bad) < MAX_FINDINGS:
                bad.append(finding)
    return replace(
        before,
        offset=before.offset + (entries[-1].end if entries else 0),
        count=before.count + len(entries),
        values=values,
        bad=tuple(bad),
        bad_count=bad_count,
    )


def _judge_aggregate(entry: Entry, quoted: PcrValues, bank: str) -> ImaFinding | None:
    """The list's first entry: a hash over PCRs 0 to 9, before Linux 5.8 over 0 to 7
    (ima_calc_boot_aggregate).
    """
    path, found = (
        show(entry.name.decode("utf-8", "backslashreplace")),
        f"{entry.hash_name}:{entry.digest.hex()}",
    )
    if entry.name != _AGGREGATE or entry.violation:
        return ImaFinding(1, path, found, "the list does not begin with boot_aggregate")
    if entry.hash_name != bank or not quoted.keys() >= set(range(10)):
        return None
    aggregates = {hashlib.new(bank, b"".join(quoted[pcr] for pcr in range(end))).digest() for end in (8, 10)}
    if entry.digest not in aggregates:
        return ImaFinding(1, path, found, "it is not made of PCRs 0 to 9")
    return None

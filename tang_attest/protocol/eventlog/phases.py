"""Words that systemd extends beside the firmware's log: they explain a quoted value that the log alone does
not lead to.

Each word is a constant, measured as its text in the PCR's bank (systemd-pcrphase.service(8)), so a value that
only these words separate from that of the log is of the same boot, seen later.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Final

from tang_attest.protocol.eventlog.constants import (
    NV_SEPARATOR,
    OS_SEPARATOR,
    OS_SEPARATOR_PCRS,
    PHASES,
    digest,
)
from tang_attest.protocol.eventlog.replay import Mismatch, replays_to
from tang_attest.protocol.eventlog.structures import EventLog

_INITRD: Final = (PHASES[0], NV_SEPARATOR)
_SEPARATORS: Final = (OS_SEPARATOR, NV_SEPARATOR)

INITRD_WORDS: Final[Mapping[int, tuple[str, ...]]] = {
    **dict.fromkeys(OS_SEPARATOR_PCRS, (OS_SEPARATOR,)),
    9: _SEPARATORS,
    11: _INITRD,
}
"""PCR -> words in their order, as far as an initrd measures them before it opens a disk."""

ALL_WORDS: Final[Mapping[int, tuple[str, ...]]] = {**INITRD_WORDS, 11: (*_INITRD, *PHASES[1:])}
"""The same of a running system."""


def words_between(
    pcr: int, before: bytes, after: bytes, bank: str, known: Mapping[int, tuple[str, ...]] = ALL_WORDS
) -> tuple[str, ...] | None:
    """Return the words that systemd extended *pcr* with from the value *before* to *after* in *bank*.

    An ordered choice of those of *known*: none when the values are equal, and None when no choice explains
    *after*.
    """
    words = known.get(pcr, ())
    for count in range(len(words) + 1):
        for chosen in combinations(words, count):
            value = before
            for word in chosen:
                value = digest(bank, value + digest(bank, word.encode()))
            if value == after:
                return chosen
    return None


def unexplained(
    log: EventLog,
    bank: str,
    quoted: Mapping[int, bytes],
    known: Mapping[int, tuple[str, ...]] = ALL_WORDS,
) -> tuple[Mismatch, ...]:
    """Return what :func:`replays_to` does, without the PCRs that words of *known* explain.

    Raises :class:`~tang_attest.errors.Malformed` as :func:`replays_to`.  NOT checked: that *quoted* is
    authentic.
    """
    return tuple(
        mismatch
        for mismatch in replays_to(log, bank, quoted)
        if words_between(mismatch.pcr, mismatch.replayed, mismatch.quoted, bank, known) is None
    )


def measured_later(log: EventLog, bank: str, quoted: Mapping[int, bytes]) -> dict[int, tuple[str, ...]]:
    """Return the words that systemd measured after *log*, by PCR; only PCRs that they explain, and of which
    there are some.
    """
    found = {
        mismatch.pcr: words_between(mismatch.pcr, mismatch.replayed, mismatch.quoted, bank)
        for mismatch in replays_to(log, bank, quoted)
    }
    return {pcr: words for pcr, words in found.items() if words}

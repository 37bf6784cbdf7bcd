"""One refused boot: what changed, what is proven and what is claimed, and what came after it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Final

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.policies import Observation
from tang_attest.protocol.eventlog import EventDifference, parse
from tang_attest.protocol.eventlog.phases import unexplained
from tang_attest.protocol.eventlog.subject import subject_of
from tang_attest.service.policies.explanation import Explanation
from tang_attest.web.console.rendering import spell

#: Entries of the record that let a machine open.
_APPROVALS: Final = (
    "policy state add",
    "policy state approve",
    "policy state restore",
    "device allow",
    "device resume",
)
#: Changes that are shown; a log may differ in thousands of events.
MOST_CHANGES: Final = 100


@dataclass(frozen=True, slots=True)
class Value:
    """One PCR: the quoted value, and the approved one of the nearest state (``None`` without any)."""

    pcr: int
    seen: str
    approved: str | None

    @property
    def differs(self) -> bool:
        """Return True unless the value is approved."""
        return self.seen != self.approved


@dataclass(frozen=True, slots=True)
class Change:
    """One event that is not as it was approved, and the worth of its sentence.

    ``proof`` is ``proven`` when the TPM signed a value that the sentence leads to, ``claimed`` when only its digest
    does so, and ``not proven`` when the log does not lead to the quoted value of its PCR.
    """

    pcr: int
    kind: str
    sentence: str
    proof: str


@dataclass(frozen=True, slots=True)
class Sequel:
    """Sequel of a refusal: one sentence, its time, and True if the machine opened."""

    opened: bool
    sentence: str
    at: datetime | None


def values(found: Explanation) -> list[Value]:
    """Return the quoted values, those that differ first."""
    nearest = found.nearest.values if found.nearest is not None else {}
    every = [
        Value(pcr, seen.hex(), nearest[pcr].hex() if pcr in nearest else None)
        for pcr, seen in sorted(found.observation.snapshot.values.items())
    ]
    return sorted(every, key=lambda value: (not value.differs, value.pcr))


def changes(found: Explanation) -> tuple[list[Change], int]:
    """Return the first changes, and the number of the others.  It reads the log: not for the event loop."""
    snapshot = found.observation.snapshot
    bank = snapshot.selection.bank
    first = found.changes[:MOST_CHANGES]
    if not first:
        return [], 0
    lies = {each.pcr for each in unexplained(parse(snapshot.event_log), bank, snapshot.values)}
    shown = [Change(each.pcr, each.kind, each.sentence, _proof(each, bank, lies)) for each in first]
    return shown, len(found.changes) - len(shown)


def _proof(change: EventDifference, bank: str, lies: Collection[int]) -> str:
    if change.pcr in lies:
        return "not proven"
    events = [event for event in (change.before, change.after) if event is not None]
    return "proven" if all(subject_of(event, bank).text is not None for event in events) else "claimed"


def _is_before(entry: AuditEntry, observation: Observation) -> bool:
    """Return True for the entry of the refusal itself, and for older ones."""
    refused = entry.event == "unlock" and entry.verdict == "refused"
    return entry.at < observation.at or (refused and entry.at == observation.at)


def sequel(observation: Observation, entries: Sequence[AuditEntry]) -> Sequel | None:
    """Return what *entries* (newest first, about the machine) tell of the time after *observation*."""
    later = list(reversed(list(takewhile(lambda entry: not _is_before(entry, observation), entries))))
    approved = next((entry for entry in later if entry.event in _APPROVALS and entry.verdict == "done"), None)
    attempts = [entry for entry in later if entry.event == "unlock"]
    since = approved.at if approved is not None else None
    if since is not None:
        attempts = [entry for entry in attempts if entry.at >= since]
    opened = next((entry for entry in attempts if entry.verdict == "permitted"), None)
    if opened is not None:
        after = "" if since is None else f", {spell(opened.at - since)} later"
        return Sequel(True, f"Opened{after}.", opened.at)
    if attempts and since is not None:
        return Sequel(False, f"It tried again and was refused: {attempts[-1].code}.", attempts[-1].at)
    if approved is not None:
        return Sequel(False, f"Approved by {approved.actor}. It waits for its next attempt.", approved.at)
    return None

"""One machine: its identity, the worth of its evidence, and its boots on a time line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.machines import Device
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.web.console.views.common import WAITS_FOR_PERSON

#: Events of the time line beside unlocks, in words.
_WORDS: Final = {
    "enroll": "enrolled",
    "device register": "registered",
    "device suspend": "suspended",
    "device resume": "resumed",
    "device allow": "allowed to unlock",
    "device move": "moved to another policy",
    "device rename": "renamed",
    "policy state add": "what it booted was approved",
    "policy state approve": "its announcement was approved",
    "observation dismiss": "a refusal was dismissed",
    "announce": "announced its next boot",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the time line: ``tone`` is ``good``, ``bad`` or ``plain``."""

    at: datetime
    tone: str
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of a machine in one word, and its tone."""

    word: str
    tone: str


def condition(device: Device) -> Condition:
    """Return the state of *device*, the most urgent that holds."""
    outcome = device.standing.outcome
    found = (
        (device.suspension is not None, "suspended", "bad"),
        (device.last_code in WAITS_FOR_PERSON, "asks to unlock", "bad"),
        (device.last_code not in (None, "ok"), "refused", "bad"),
        (outcome is RoundOutcome.REFUSED, "refused while it runs", "bad"),
        (outcome is RoundOutcome.UNREACHABLE, "silent", "bad"),
        (device.last_seen_at is None, "not seen yet", "plain"),
    )
    return next((Condition(word, tone) for holds, word, tone in found if holds), Condition("well", "good"))


def time_line(entries: Sequence[AuditEntry]) -> list[Step]:
    """Return the steps of *entries*, newest first."""
    return [_step(entry) for entry in entries]


def _step(entry: AuditEntry) -> Step:
    if entry.event == "unlock":
        if entry.verdict == "permitted":
            state = entry.details.get("state")
            return Step(entry.at, "good", "opened", f"state {state}" if state else "")
        return Step(entry.at, "bad", "refused", entry.code)
    title = _WORDS.get(entry.event, entry.event)
    if entry.verdict == "refused":
        return Step(entry.at, "bad", f"{title}: refused", entry.code)
    return Step(entry.at, "plain", title, f"by {entry.actor}")


def strip(steps: Sequence[Step]) -> list[tuple[int, str, str]]:
    """Return the marks of the picture of boots, oldest first: its x in hundredths, its tone, and its title."""
    boots = [step for step in reversed(steps) if step.title in ("opened", "refused")]
    width = max(1, len(boots))
    return [
        (round((index + 0.5) * 10000 / width), step.tone, f"{step.title} {step.at:%Y-%m-%d %H:%M} UTC")
        for index, step in enumerate(boots)
    ]


def grade_of(device: Device) -> tuple[str, list[str]]:
    """Return the grade of the newest evidence, and its reasons."""
    found = device.grade or {}
    reasons = found.get("reasons")
    return str(found.get("grade", "not graded yet")), [str(each) for each in reasons] if isinstance(
        reasons, list
    ) else []

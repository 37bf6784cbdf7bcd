"""The doctor's findings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tang_attest.errors import TangAttestError


class Severity(StrEnum):
    """A problem keeps disks from opening, or from staying safe; a warning may become one."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding about *subject*: one sentence, and an action unless all is well."""

    level: Severity
    subject: str
    sentence: str
    action: str = ""


def well(subject: str, sentence: str) -> Finding:
    """Return a finding without an action."""
    return Finding(Severity.OK, subject, sentence)


def warning(subject: str, sentence: str, action: str) -> Finding:
    """Return a finding with an action to take soon."""
    return Finding(Severity.WARNING, subject, sentence, action)


def problem(subject: str, sentence: str, action: str) -> Finding:
    """Return a finding with an action to take now."""
    return Finding(Severity.PROBLEM, subject, sentence, action)


def failure(subject: str, error: TangAttestError) -> Finding:
    """Return the problem of a check that raised *error*, with the error's own action."""
    return problem(subject, error.sentence, error.action)

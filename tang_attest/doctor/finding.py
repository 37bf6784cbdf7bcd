"""What the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tang_attest.errors import TangAttestError


class Severity(StrEnum):
    """How bad it is: a problem keeps disks from opening, or from staying safe; a warning may become one."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """About *subject*: one sentence, and one more about what to do unless all is well."""

    level: Severity
    subject: str
    sentence: str
    action: str = ""


def well(subject: str, sentence: str) -> Finding:
    """Nothing to do."""
    return Finding(Severity.OK, subject, sentence)


def warning(subject: str, sentence: str, action: str) -> Finding:
    """Something to do soon."""
    return Finding(Severity.WARNING, subject, sentence, action)


def problem(subject: str, sentence: str, action: str) -> Finding:
    """Something to do now."""
    return Finding(Severity.PROBLEM, subject, sentence, action)


def failure(subject: str, error: TangAttestError) -> Finding:
    """What a check raised: a problem, with the error's own action."""
    return problem(subject, error.sentence, error.action)

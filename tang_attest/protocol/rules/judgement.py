"""Result of a rule over a log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tang_attest.protocol.rules.proven import ProvenEvent, ProvenLog


@dataclass(frozen=True, slots=True)
class RuleFinding:
    """One thing that a rule does not allow: ``sentence`` without a full stop, and what it is about."""

    sentence: str
    event: ProvenEvent | None = None
    found: str | None = None
    allowed: tuple[str, ...] = ()

    def as_data(self) -> tuple[tuple[str, object], ...]:
        """For a :class:`~tang_attest.errors.Reason`: ``pcr`` and ``event`` if there is one, ``found``,
        ``allowed``.
        """
        data: tuple[tuple[str, object], ...] = ()
        if self.event is not None:
            data += (("pcr", self.event.event.pcr), ("event", self.event.number))
        if self.found is not None:
            data += (("found", self.found),)
        if self.allowed:
            data += (("allowed", list(self.allowed)),)
        return data


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The numbers of the events that a rule accepts, and what it does not allow; it failed if that is
    anything.
    """

    accepted: frozenset[int] = frozenset()
    findings: tuple[RuleFinding, ...] = field(default=())


class Rule(Protocol):
    """One rule.  ``pcrs`` are those whose events it judges: they have to be quoted and to replay."""

    @property
    def key(self) -> str:
        """Its key in the document."""

    @property
    def pcrs(self) -> frozenset[int]:
        """The PCRs that it looks at."""

    def as_json(self) -> object:
        """Its value in the document."""

    def judge(self, log: ProvenLog) -> RuleResult:
        """Return the events it accepts, and its findings."""


def shown_list(values: tuple[str, ...]) -> str:
    """Up to three of *values*, for a sentence."""
    more = f" or one of {len(values) - 3} more" if len(values) > 3 else ""
    return " or ".join(values[:3]) + more

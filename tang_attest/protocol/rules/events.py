"""``files`` and ``events``: lists of what may be measured into one PCR."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from tang_attest.protocol.eventlog.command_line import decoded_text
from tang_attest.protocol.eventlog.structures import EventType
from tang_attest.protocol.rules.document import MAX_PATTERNS, DocumentPosition
from tang_attest.protocol.rules.judgement import RuleFinding, RuleResult
from tang_attest.protocol.rules.patterns import Pattern
from tang_attest.protocol.rules.proven import ProvenEvent, ProvenLog
from tang_attest.protocol.rules.secure_boot import Variable

_MAX_MATCHED = 16384
"""Characters; a GRUB menu with its entries is one text."""


def _judged_pcr(value: object, place: DocumentPosition, judged: frozenset[int]) -> int:
    pcr = place.at("pcr").pcr(value)
    if pcr not in judged:
        raise place.at("pcr").error(f"PCR {pcr} is not in judge-by-events, so this would decide nothing")
    return pcr


@dataclass(frozen=True, slots=True)
class FileDigests:
    """Accepts events of one PCR whose digest is listed; fails when there is none.

    The names are for people.  A log's file names are claims, so any listed file may stand for any other.
    """

    pcr: int
    digests: tuple[tuple[str, tuple[str, ...]], ...]

    key = "files"

    @classmethod
    def parse(cls, value: object, place: DocumentPosition, judged: frozenset[int]) -> FileDigests:
        """``{pcr: 9, digests: {/vmlinuz: sha256:..., /initrd.img: [sha256:..., sha256:...]}}``; pcr is 9 if
        left out.
        """
        body = place.mapping(value, ("pcr", "digests"))
        pcr = _judged_pcr(body.get("pcr", 9), place, judged)
        there = place.at("digests")
        files = there.any_mapping(body.get("digests"))
        return cls(
            pcr, tuple((there.text(name), _one_or_more(files[name], there.at(name))) for name in files)
        )

    @property
    def pcrs(self) -> frozenset[int]:
        """As :class:`~tang_attest.protocol.rules.judgement.Rule` says."""
        return frozenset({self.pcr})

    def as_json(self) -> object:
        """As :meth:`parse` reads it."""
        return {"pcr": self.pcr, "digests": {name: list(digests) for name, digests in self.digests}}

    def judge(self, log: ProvenLog) -> RuleResult:
        """The events it accepts and what it found; the class says when it passes."""
        listed = log.listed([digest for _, digests in self.digests for digest in digests])
        accepted = frozenset(event.number for event in log.in_pcr(self.pcr) if event.digest in listed)
        findings = () if accepted else (RuleFinding(f"PCR {self.pcr} has none of the listed files"),)
        return RuleResult(accepted, findings)


@dataclass(frozen=True, slots=True)
class Allowed:
    """One kind of event: by its digest, by what was measured as text, or as an EFI variable of any value.

    A variable counts only before the first separator of its PCR.  Behind it, firmware and shim measure under
    the same names (``db``) with which entry of a variable they checked an image.

    ``type`` narrows it to events that claim this type; it proves nothing.
    """

    type: int | None = None
    digest: str | None = None
    pattern: Pattern | None = None
    variable: str | None = None

    @classmethod
    def parse(cls, value: object, place: DocumentPosition) -> Allowed:
        """``{type: EV_IPL, digest: sha256:...}``, ``{data-matches: regex}`` or ``{variable: dbx}``."""
        body = place.mapping(value, ("type", "digest", "data-matches", "variable"))
        if len(body.keys() - {"type"}) != 1:
            raise place.error("this needs one of digest, data-matches and variable")
        allowed = cls(_type(body["type"], place.at("type")) if "type" in body else None)
        if "digest" in body:
            return replace(allowed, digest=place.at("digest").digest(body["digest"]))
        if "variable" in body:
            return replace(allowed, variable=place.at("variable").text(body["variable"]))
        return replace(allowed, pattern=place.at("data-matches").pattern(body["data-matches"]))

    def as_json(self) -> dict[str, object]:
        """As :meth:`parse` reads it."""
        body: dict[str, object] = {} if self.type is None else {"type": _type_name(self.type)}
        if self.digest is not None:
            return {**body, "digest": self.digest}
        if self.variable is not None:
            return {**body, "variable": self.variable}
        return {**body, "data-matches": self.pattern.source if self.pattern else ""}

    def accepts(self, facts: _Facts) -> bool:
        """Return True if the event of *facts* is of this kind."""
        if self.type is not None and facts.type != self.type:
            return False
        if self.digest is not None:
            return facts.digest == self.digest
        if self.variable is not None:
            return facts.variable == self.variable
        return self.pattern is not None and facts.text is not None and self.pattern.matches(facts.text)


class _Facts(NamedTuple):
    """Facts that entries compare, computed once for each event."""

    type: int
    digest: str
    variable: str | None
    text: str | None

    @classmethod
    def of(cls, event: ProvenEvent, bank: str, *, early: bool) -> _Facts:
        variable = Variable.measured_by(event) if early else None
        text = decoded_text(event.measured) if event.measured is not None else None
        return cls(
            event.event.type,
            f"{bank}:{event.digest.hex()}",
            variable.name if variable else None,
            text if text is not None and len(text) <= _MAX_MATCHED else None,
        )


@dataclass(frozen=True, slots=True)
class Events:
    """Accepts events of one PCR that are of a listed kind; fails when there is none."""

    pcr: int
    allow: tuple[Allowed, ...]

    key = "events"

    @classmethod
    def parse(cls, value: object, place: DocumentPosition, judged: frozenset[int]) -> Events:
        """``{pcr: 8, allow: [...]}`` with entries as :meth:`Allowed.parse` reads them."""
        body = place.mapping(value, ("pcr", "allow"))
        pcr = _judged_pcr(body.get("pcr"), place, judged)
        there = place.at("allow")
        entries = there.items(body.get("allow"))
        allow = tuple(Allowed.parse(entry, there.at(str(n))) for n, entry in enumerate(entries, start=1))
        if sum(entry.pattern is not None for entry in allow) > MAX_PATTERNS:
            raise there.error(f"there are more than {MAX_PATTERNS} patterns")
        return cls(pcr, allow)

    @property
    def pcrs(self) -> frozenset[int]:
        """As :class:`~tang_attest.protocol.rules.judgement.Rule` says."""
        return frozenset({self.pcr})

    def as_json(self) -> object:
        """As :meth:`parse` reads it."""
        return {"pcr": self.pcr, "allow": [entry.as_json() for entry in self.allow]}

    def judge(self, log: ProvenLog) -> RuleResult:
        """The events it accepts and what it found; the class says when it passes."""
        start = log.first_separator(self.pcr)
        events = [
            (
                event.number,
                _Facts.of(event, log.bank, early=start is not None and event.number < start.number),
            )
            for event in log.in_pcr(self.pcr)
        ]
        accepted = frozenset(number for number, facts in events if any(e.accepts(facts) for e in self.allow))
        findings = () if accepted else (RuleFinding(f"PCR {self.pcr} has none of the listed events"),)
        return RuleResult(accepted, findings)


def _one_or_more(value: object, place: DocumentPosition) -> tuple[str, ...]:
    return (place.digest(value),) if isinstance(value, str) else place.digests(value)


def _type(value: object, place: DocumentPosition) -> int:
    if not isinstance(value, str) or value not in EventType.__members__:
        raise place.error("this is no event type such as EV_IPL")
    return EventType[value].value


def _type_name(number: int) -> str:
    return EventType(number).name

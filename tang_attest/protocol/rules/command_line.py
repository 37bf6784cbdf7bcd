"""``command-line``: every kernel command line that was measured is one that is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from tang_attest.protocol.eventlog.command_line import (
    COMMAND_LINE_PCRS,
    claims_command_line,
    decoded_text,
    encodings,
)
from tang_attest.protocol.eventlog.text import printable
from tang_attest.protocol.rules.document import MAX_TEXT, DocumentPosition
from tang_attest.protocol.rules.judgement import RuleFinding, RuleResult, shown_list
from tang_attest.protocol.rules.patterns import Pattern
from tang_attest.protocol.rules.proven import ProvenEvent, ProvenLog


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Passes when there is a measured command line and each is in ``equals`` or matches ``pattern`` as a
    whole.

    ``forbids`` are words that even such a line must not have: ``init`` also forbids ``init=/bin/sh``.  They
    are no rule by themselves: a GRUB command that starts another system has none of them, and could be called
    a command line.

    Linux's stub and systemd-stub log only a digest of the line.  That can be compared with the lines of
    ``equals`` and with lines that the same log proves elsewhere (GRUB's), and not with a pattern.
    """

    judged: frozenset[int]
    equals: tuple[str, ...]
    pattern: Pattern | None
    forbids: tuple[str, ...]

    key = "command-line"

    @classmethod
    def parse(cls, value: object, place: DocumentPosition, judged: frozenset[int]) -> CommandLine:
        """``{matches: regex, equals: [...], forbids: [...]}``, with ``matches`` or ``equals``."""
        body = place.mapping(value, ("matches", "equals", "forbids"))
        pcrs = judged & COMMAND_LINE_PCRS
        if not pcrs:
            names = ", ".join(map(str, sorted(COMMAND_LINE_PCRS)))
            raise place.error(f"none of PCR {names} is in judge-by-events, so this would decide nothing")
        if "matches" not in body and "equals" not in body:
            raise place.error("this needs equals or matches; forbids alone would let every other text pass")
        equals = place.at("equals").texts(body["equals"]) if "equals" in body else ()
        pattern = place.at("matches").pattern(body["matches"]) if "matches" in body else None
        forbids = place.at("forbids").texts(body["forbids"]) if "forbids" in body else ()
        if any(len(word.split()) != 1 for word in forbids):
            raise place.at("forbids").error("each of these is one word")
        return cls(pcrs, equals, pattern, forbids)

    @property
    def pcrs(self) -> frozenset[int]:
        """As :class:`~tang_attest.protocol.rules.judgement.Rule` says."""
        return self.judged

    def as_json(self) -> object:
        """As :meth:`parse` reads it."""
        body: dict[str, object] = {}
        if self.pattern is not None:
            body["matches"] = self.pattern.source
        for name, entries in (("equals", self.equals), ("forbids", self.forbids)):
            if entries:
                body[name] = list(entries)
        return body

    def judge(self, log: ProvenLog) -> RuleResult:
        """The events it accepts and what it found; the class says when it passes."""
        harmless = log.harmless()
        lines = [e for e in log.events if e.event.pcr in self.judged and claims_command_line(e.event)]
        lines = [event for event in lines if event.number not in harmless]
        known = self._known(log, lines)
        accepted, findings = set(), []
        for event in lines:
            if finding := self._judge(event, known.get(event.digest)):
                findings.append(finding)
            else:
                accepted.add(event.number)
        if not lines:
            pcrs = ", ".join(map(str, sorted(self.judged)))
            findings.append(RuleFinding(f"no kernel command line was measured into PCR {pcrs}"))
        return RuleResult(frozenset(accepted), tuple(findings))

    def _known(self, log: ProvenLog, lines: list[ProvenEvent]) -> dict[bytes, str]:
        """Digest -> line, of everything we can hash: what is allowed, and what the log itself proves."""
        proven = (text for event in lines if event.measured is not None and (text := _text(event.measured)))
        return {log.digest_of(data): line for line in (*proven, *self.equals) for data in encodings(line)}

    def _judge(self, event: ProvenEvent, line: str | None) -> RuleFinding | None:
        if line is None:
            if event.measured is not None:
                return RuleFinding(f"the command line is no text of one line: {event.shown}", event)
            which = (
                shown_list(self.equals)
                if self.equals
                else "equals has none; a pattern cannot be compared with it"
            )
            what = f"the log has only the digest of a command line, and none of {which} has it: {event.shown}"
            return RuleFinding(what, event, event.digest.hex(), self.equals)
        if line not in self.equals and not self._matches(line):
            allowed = (*self.equals, *((self.pattern.source,) if self.pattern else ()))
            what = f'event {event.number} of PCR {event.event.pcr}, the command line "{printable(line)}", is not allowed'
            return RuleFinding(f"{what} (allowed: {shown_list(allowed)})", event, line, allowed)
        for word in self.forbids:
            if found := _find(word, line):
                what = f'event {event.number} of PCR {event.event.pcr}, the command line, has "{found}"'
                return RuleFinding(f"{what}, which is forbidden", event, found, ())
        return None

    def _matches(self, line: str) -> bool:
        # Linux takes the byte 0xa0 for a space, also inside of a letter, where a pattern would not see one.
        return self.pattern is not None and line.isascii() and self.pattern.matches(line)


def _text(measured: bytes) -> str | None:
    text = decoded_text(measured)
    return text if text is not None and len(text) <= MAX_TEXT and text.isprintable() else None


def _find(forbidden: str, line: str) -> str | None:
    """The word of *line* that is *forbidden*, alone or with a value.

    As Linux reads it: quotes around a word are no part of it, and - and _ are the same in a name
    (kernel/params.c, ``next_arg``, ``parameqn``).
    """
    wanted = _name(forbidden)
    for word in _kernel_words(line):
        name = _name(word)
        if name == wanted or name.startswith(wanted if wanted.endswith("=") else f"{wanted}="):
            return word
    return None


def _kernel_words(line: str) -> list[str]:
    """The words as Linux splits a line: the byte 0xa0 is a space, too (lib/ctype.c)."""
    return line.encode().replace(b"\xa0", b" ").decode("utf-8", "replace").split()


def _name(word: str) -> str:
    name, equals, value = word.replace('"', "").partition("=")
    return name.replace("-", "_") + equals + value

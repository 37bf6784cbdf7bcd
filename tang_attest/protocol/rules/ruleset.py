"""All rules of a policy: read, asked, and answered with one reason for each that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tang_attest.errors import Reason, Refused
from tang_attest.protocol.rules.boot_applications import BootApplications
from tang_attest.protocol.rules.command_line import CommandLine
from tang_attest.protocol.rules.document import DocumentPosition
from tang_attest.protocol.rules.events import Events, FileDigests
from tang_attest.protocol.rules.judgement import Rule, RuleFinding, RuleResult
from tang_attest.protocol.rules.proven import ProvenLog, read_log
from tang_attest.protocol.rules.secure_boot import SecureBoot

MAX_RULES: Final = 64

_JUDGE: Final = "judge-by-events"


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """Outcome of one rule: ``rule`` is its number from 1, and 0 for ``judge-by-events`` itself."""

    rule: int
    name: str
    passed: bool
    sentence: str
    reason: Reason | None = None

    def as_json(self) -> dict[str, object]:
        """``{"rule", "name", "passed", "sentence", ...}``, of a failed rule with the reason's data."""
        body = {"rule": self.rule, "name": self.name, "passed": self.passed, "sentence": self.sentence}
        return {**(dict(self.reason.data) if self.reason else {}), **body}


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules over event logs.  ``judged_pcrs`` are judged by events only, and never compared by value."""

    judged_pcrs: frozenset[int]
    rules: tuple[Rule, ...]

    @property
    def pcrs(self) -> frozenset[int]:
        """Every PCR that has to be quoted, and to which the log has to replay: the judged ones, perhaps 7,
        too.
        """
        return self.judged_pcrs.union(*(rule.pcrs for rule in self.rules))

    def as_json(self) -> dict[str, object]:
        """The document; :func:`parse_rules` makes an equal rule set of it."""
        rules = [{rule.key: rule.as_json()} for rule in self.rules]
        return {_JUDGE: sorted(self.judged_pcrs), "rules": rules}

    def check(self, log_bytes: bytes | None, bank: str, quoted: Mapping[int, bytes]) -> None:
        """Raise :class:`Refused` unless the log explains the *quoted* PCRs (by number, in *bank*) and every
        rule passes.

        Codes: ``log-missing``, ``eventlog-malformed``, ``eventlog-bank-missing``, ``log-replay-mismatch`` for
        each PCR, ``rule-failed`` for each rule, with ``rule``, ``name``, and where they apply ``pcr``,
        ``event``, ``found`` and ``allowed``.  Never raises anything else, whatever the log.

        NOT checked: that *quoted* is authentic, PCRs that no rule reads (compare them by value), how often
        and in which order accepted events came.
        """
        reasons = tuple(o.reason for o in self.dry_run(log_bytes, bank, quoted) if o.reason is not None)
        if reasons:
            raise Refused.because(*reasons)

    def dry_run(
        self, log_bytes: bytes | None, bank: str, quoted: Mapping[int, bytes]
    ) -> tuple[RuleOutcome, ...]:
        """Return the outcome of each rule, in the document's order, and last that of the acceptance of every
        event.

        Raises :class:`Refused` as :meth:`check` when the log cannot be used at all.
        """
        log = ProvenLog.of(read_log(log_bytes), bank, quoted, self.pcrs)
        judgements = [rule.judge(log) for rule in self.rules]
        outcomes = [
            _outcome(number, rule.key, judgement.findings)
            for number, (rule, judgement) in enumerate(zip(self.rules, judgements, strict=True), start=1)
        ]
        return (*outcomes, _outcome(0, _JUDGE, self._unjudged(log, judgements)))

    def _unjudged(self, log: ProvenLog, judgements: list[RuleResult]) -> tuple[RuleFinding, ...]:
        """The judged PCRs' events that nobody accepted or named; a PCR without events proves nothing either."""
        found = [finding for judgement in judgements for finding in judgement.findings]
        known = {finding.event.number for finding in found if finding.event}
        known |= log.harmless().union(*(judgement.accepted for judgement in judgements))
        findings = []
        for pcr in sorted(self.judged_pcrs):
            events = log.in_pcr(pcr)
            if not events:
                findings.append(RuleFinding(f"nothing was measured into PCR {pcr}"))
            for event in events:
                if event.number not in known:
                    names = ", ".join(rule.key for rule in self.rules if pcr in rule.pcrs)
                    what = f"{event.shown} is accepted by no rule (rules about PCR {pcr}: {names})"
                    findings.append(RuleFinding(what, event, event.digest.hex()))
        return tuple(findings)


def parse_rules(document: object) -> RuleSet:
    """``{judge-by-events: [4, 7], rules: [{secure-boot: on}, ...]}`` as a rule set.

    Raises :class:`Malformed` ``rules-invalid`` naming the rule (from 1) and the key: not this shape, an
    unknown key, a digest or pattern that is none, a rule about PCRs that are not judged by events, a judged
    PCR that no rule is about.
    """
    top = DocumentPosition()
    body = top.mapping(document, (_JUDGE, "rules"))
    numbers = [top.at(_JUDGE).pcr(item) for item in top.at(_JUDGE).items(body.get(_JUDGE))]
    judged = frozenset(numbers)
    if len(judged) != len(numbers):
        raise top.at(_JUDGE).error("a PCR is named twice")
    entries = top.at("rules").items(body.get("rules"))
    if len(entries) > MAX_RULES:
        raise top.at("rules").error(f"there are more than {MAX_RULES} rules")
    rules = tuple(
        _parse_rule(entry, DocumentPosition(number), judged) for number, entry in enumerate(entries, start=1)
    )
    if left := judged.difference(*(rule.pcrs for rule in rules)):
        raise top.at(_JUDGE).error(f"no rule is about PCR {min(left)}, so every boot would be refused")
    return RuleSet(judged, rules)


_KINDS: Final[Mapping[str, Callable[[object, DocumentPosition, frozenset[int]], Rule]]] = {
    SecureBoot.key: lambda value, place, _judged: SecureBoot.parse(value, place),
    BootApplications.key: BootApplications.parse,
    CommandLine.key: CommandLine.parse,
    FileDigests.key: FileDigests.parse,
    Events.key: Events.parse,
}


def _parse_rule(entry: object, place: DocumentPosition, judged: frozenset[int]) -> Rule:
    body = place.mapping(entry, _KINDS)
    if len(body) != 1:
        raise place.error("this is more than one rule; start each with a dash")
    [(key, value)] = body.items()
    return _KINDS[key](value, place.at(key), judged)


def _outcome(number: int, name: str, findings: tuple[RuleFinding, ...]) -> RuleOutcome:
    if not findings:
        return RuleOutcome(number, name, passed=True, sentence="passed")
    first, more = findings[0], len(findings) - 1
    sentence = first.sentence + (f"; and {more} more" if more else "")
    who = f"Rule {number} ({name})" if number else f"'{name}'"
    reason = Reason(
        "rule-failed", f"{who}: {sentence}.", (("rule", number), ("name", name), *first.as_data())
    )
    return RuleOutcome(number, name, passed=False, sentence=sentence, reason=reason)

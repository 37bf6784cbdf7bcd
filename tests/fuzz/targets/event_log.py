"""TCG event logs: parsed, replayed, described, compared, and judged by rules."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tang_attest.protocol.coverage import coverage, propose
from tang_attest.protocol.eventlog import as_json, describe, difference, parse, replay
from tang_attest.protocol.eventlog.structures import EventLog
from tang_attest.protocol.rules import parse_rules
from tang_attest.protocol.values.pcr import BANK_SIZES, Selection
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG
from tests.fuzz.target import Parser, Target
from tests.fuzz.vectors import event_logs

_SMALL = 16 * 1024
_APPROVED = parse(next(iter(event_logs())))
_RULES = parse_rules(
    {
        "judge-by-events": [4, 5, 8, 9, 12],
        "rules": [
            {"secure-boot": True},
            {"boot-applications": {"signed-by": ["sha256:" + "00" * 32]}},
            {"command-line": {"matches": ".*ro.*"}},
            {"events": {"pcr": 5, "allow": [{"data-matches": ".*"}]}},
            {"files": {"pcr": 9, "digests": {"/vmlinuz": "sha256:" + "00" * 32}}},
            {"events": {"pcr": 8, "allow": [{"digest": "sha256:" + "00" * 32}]}},
        ],
    }
)


def log(data: bytes) -> None:
    """A parsed log can be shown and replayed; offsets lead through the whole log."""
    read = parse(data, limit=MAX_EVENT_LOG)
    offsets = [event.offset for event in read.events]
    assert offsets == sorted(set(offsets))
    assert not offsets or offsets[-1] < len(data)
    json.dumps(as_json(read)).encode()
    for event in read.events:
        describe(event).encode()
    for bank in _banks(read):
        assert {len(value) for value in replay(read, bank).values()} <= {BANK_SIZES[bank]}
        assert not difference(read, read, bank)


def judged(data: bytes) -> None:
    """Rules over a log that replays, because the values are those that it replays to: refused for a reason, or good."""
    read = parse(data, limit=MAX_EVENT_LOG)
    quoted = {pcr: bytes(32) for pcr in range(24)}
    if "sha256" in _banks(read):
        quoted |= replay(read, "sha256")
    _RULES.check(data, "sha256", quoted)


def compared(data: bytes) -> None:
    """A log beside the first vector: each change has one line."""
    read = parse(data, limit=MAX_EVENT_LOG)
    for bank in set(_banks(read)) & set(_banks(_APPROVED)):
        for change in difference(_APPROVED, read, bank):
            assert change.sentence.isprintable()


def covered(data: bytes) -> None:
    """A covered part is measured in a selected PCR, and a proposed selection covers all that it does not name."""
    read = parse(data, limit=MAX_EVENT_LOG)
    for bank in _banks(read):
        found = coverage(read, Selection(bank, (0, 1, 4, 8, 9, 11)))
        assert all(part.selected and part.measured_in for part in found.parts if part.covered)
        assert found.line().isprintable()
        if proposal := propose(found.boot, bank, 15):
            uncovered = coverage(read, proposal.selection).uncovered
            assert {part.part for part in uncovered} == set(proposal.missing)


def _banks(read: EventLog) -> list[str]:
    return [algorithm.name for algorithm in read.algorithms if algorithm.name in BANK_SIZES]


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """The vectors; of the large ones the beginning, which a fuzzer can change in time."""
    for data in event_logs():
        yield log, data[:_SMALL]
        yield judged, data[:_SMALL]
        yield compared, data[:_SMALL]
        yield covered, data[:_SMALL]


TARGET = Target([log, judged, compared, covered], seeds, max_length=_SMALL)

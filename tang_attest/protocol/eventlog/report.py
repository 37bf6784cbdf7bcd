"""A whole log as JSON, for ``tang-attest eventlog FILE --json``."""

from __future__ import annotations

from tang_attest.protocol.eventlog.describe import describe
from tang_attest.protocol.eventlog.rehash import OFTEN_LABELED, REHASHABLE, data_matches_digest
from tang_attest.protocol.eventlog.replay import REPLAYABLE, replay
from tang_attest.protocol.eventlog.structures import Event, EventLog


def as_json(log: EventLog) -> dict[str, object]:
    """JSON-compatible, hex in lower case.

    ``{"format", "startup_locality", "events": [...], "pcrs": {"sha256": {"0": "<hex>"}}}``; an event is
    ``{"index", "offset", "pcr", "type", "digests", "description", "data_matches_digest"}``.  ``pcr`` is null
    where the event names none; ``data_matches_digest`` is null for types whose log entry cannot tell.
    ``pcrs`` has every bank of the log that can be replayed here (all but SM3 and unknown ones).
    """
    banks = [algorithm.name for algorithm in log.algorithms if algorithm.name in REPLAYABLE]
    return {
        "format": log.format,
        "startup_locality": log.startup_locality,
        "events": [_event(event) for event in log.events],
        "pcrs": {bank: {str(pcr): value.hex() for pcr, value in replay(log, bank).items()} for bank in banks},
    }


def _event(event: Event) -> dict[str, object]:
    return {
        "index": event.index,
        "offset": event.offset,
        "pcr": event.pcr if event.names_pcr else None,
        "type": event.type_name,
        "digests": {bank: digest.hex() for bank, digest in event.digests.items()},
        "description": describe(event),
        "data_matches_digest": _matches(event),
    }


def _matches(event: Event) -> bool | None:
    banks = [bank for bank in event.digests if bank in REPLAYABLE]
    if event.type not in REHASHABLE or not banks:
        return None
    if all(data_matches_digest(event, bank) for bank in banks):
        return True
    return None if event.type in OFTEN_LABELED else False  # often a file's name with its hash

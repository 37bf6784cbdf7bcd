"""TCG event logs: read one, replay it, and say in words what it holds and how it differs from another.

PURE: bytes in, frozen values out.  "PFP" below is the TCG PC Client Platform Firmware Profile Specification.

    data --parse--> EventLog --replay--> {pcr: value} --replays_to--> (Mismatch, ...) against the quoted PCRs

Rules of this package:

* **A log proves nothing by itself.**  Anyone can write one.  It means something only once ``replays_to``
  finds that it explains PCR values whose quote was verified, and even then only its *digests* are proven,
  never the ``data`` that explains them (``data_matches_digest`` says for which events the two agree).
* Look at a log only after the quote's signature holds: any client can send a log to parse.
* Importing this package needs the standard library only: enrolled machines predict with it
  (clevis-pin/predict).
* Strict: a log that two readers could understand differently is refused, with the event and the offset.
"""

from tang_attest.protocol.eventlog.describe import describe
from tang_attest.protocol.eventlog.difference import EventDifference, difference
from tang_attest.protocol.eventlog.parse import MAX_EVENTS, MAX_LOG_SIZE, parse
from tang_attest.protocol.eventlog.rehash import data_matches_digest, measured_data
from tang_attest.protocol.eventlog.replay import Mismatch, replay, replays_to
from tang_attest.protocol.eventlog.report import as_json
from tang_attest.protocol.eventlog.structures import Algorithm, Event, EventLog, EventType

__all__ = [
    "MAX_EVENTS",
    "MAX_LOG_SIZE",
    "Algorithm",
    "Event",
    "EventDifference",
    "EventLog",
    "EventType",
    "Mismatch",
    "as_json",
    "data_matches_digest",
    "describe",
    "difference",
    "measured_data",
    "parse",
    "replay",
    "replays_to",
]

"""IMA: what a running Linux measured into PCR 10, replayed to a quote and compared with what is allowed.

part of the list --read_entries--> Entry, ... --advance--> Progress --reasons--> why it is refused, or nothing

Rules of this package:

* **A list proves nothing by itself.**  Its entries are proven once they replay to a quoted PCR 10, and then
  only their template data is: the SHA-1 digest, the template's name and everything about a violation but its
  place are not.
* Unproven entries must not lead to a verdict: an attacker on the way may have changed them.  So it is malformed, a
  mismatch, or makes no difference.
* The list is judged once, part by part, and what was found stays with the :class:`ImaProgress` until the next
  boot.
"""

from tang_attest.protocol.ima.entries import MAX_LIST, Entry, read_entries
from tang_attest.protocol.ima.progress import ImaProgress, Mode, advance, reasons, replay_all
from tang_attest.protocol.ima.requirement import ImaFinding, Requirement, parse_requirement, parse_sums

__all__ = [
    "MAX_LIST",
    "Entry",
    "ImaFinding",
    "ImaProgress",
    "Mode",
    "Requirement",
    "advance",
    "parse_requirement",
    "parse_sums",
    "read_entries",
    "reasons",
    "replay_all",
]

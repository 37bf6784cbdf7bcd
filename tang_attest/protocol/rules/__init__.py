"""Rules over an event log: what a policy may ask of PCRs whose exact value nobody can know.

document --parse_rules--> RuleSet --check(log, bank, quoted)--> nothing, or Refused with every rule that
failed

Rules of this package:

* **Only digests are proven.**  A log that replays to the quoted PCRs proves which digests were extended into
  which PCR, in which order.  Everything else in it is a claim of its sender: event types, labels, file names,
  and data that does not re-hash to its digest.  So a rule judges an event by its digest, or by the bytes that
  hash to it (``measured_data``), and by nothing else.
* **A PCR that is judged by events is judged whole.**  Each of its events must be accepted by some rule, and
  there must be one: what nobody speaks of would be the place to hide software in.
* An accepted event is harmless whatever it is called: its digest is on a list, or its bytes are text that the
  operator's pattern allows.  Order and number of accepted events are not judged.
* Patterns are matched in linear time (RE2): devices supply the text.
* A rule about a PCR that is compared by its value would decide nothing, so the document is refused.
"""

from tang_attest.protocol.rules.ruleset import RuleOutcome, RuleSet, parse_rules

__all__ = ["RuleOutcome", "RuleSet", "parse_rules"]

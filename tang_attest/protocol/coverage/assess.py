"""Evidence -> Assessment: the coverage that quoted values prove, or the reason that it is unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.coverage.boot import BootPart
from tang_attest.protocol.coverage.parts import Coverage, PartCoverage, coverage
from tang_attest.protocol.eventlog.parse import parse
from tang_attest.protocol.eventlog.phases import unexplained
from tang_attest.protocol.eventlog.replay import replay
from tang_attest.protocol.values.pcr import PcrValues, Selection


@dataclass(frozen=True, slots=True)
class Assessment:
    """``coverage``, or None with a ``doubt``: a clause without a full stop."""

    coverage: Coverage | None
    doubt: str | None = None

    @property
    def uncovered(self) -> tuple[PartCoverage, ...]:
        """Parts of which it is known that nobody covers them."""
        return () if self.coverage is None else self.coverage.uncovered

    def line(self) -> str:
        """Return :meth:`Coverage.line`, or ``unknown: `` and the doubt."""
        return f"unknown: {self.doubt}" if self.coverage is None else self.coverage.line()

    def as_json(self) -> dict[str, object]:
        """``{"line": "...", "uncovered": ["initrd"], "parts": {...}}``; ``parts`` is null when it is unknown."""
        return {
            "line": self.line(),
            "uncovered": [each.part.value for each in self.uncovered],
            "parts": None if self.coverage is None else self.coverage.as_json(),
        }


def assess(
    event_log: bytes, selection: Selection, values: PcrValues, *, loose: Collection[int] = ()
) -> Assessment:
    """Return what *event_log* proves about quoted *values* of *selection*.

    The log must lead to the value of every selected PCR that it extends, but for words that systemd measures
    after it, and but for *loose* PCRs: the cap, and those that move before a running system quotes.  Never
    raises.

    NOT checked: that *values* are authentic.
    """
    if not event_log:
        return Assessment(None, "no event log came with the values")
    try:
        log = parse(event_log)
        extended = set(replay(log, selection.bank))
        compared = {pcr: value for pcr, value in values.items() if pcr in extended and pcr not in loose}
        wrong = unexplained(log, selection.bank, compared)
        if wrong:
            named = ", ".join(str(mismatch.pcr) for mismatch in wrong)
            return Assessment(None, f"the event log does not lead to the quoted value of PCR {named}")
        return Assessment(coverage(log, selection))
    except Malformed as error:
        return Assessment(None, f"the event log is of no use ({error.sentence.rstrip('.')})")


def require_covered(assessment: Assessment, accepted: Iterable[BootPart] = ()) -> None:
    """Raise :class:`Refused` ``uncovered`` with a reason for each part that nobody covers and that is not
    *accepted*.
    """
    gaps = [part for part in assessment.uncovered if part.part not in set(accepted)]
    if gaps:
        raise Refused.because(*map(_reason, gaps))


def acceptance(assessment: Assessment, accepted: Iterable[BootPart]) -> tuple[BootPart, ...]:
    """Return those of *accepted* for which the acceptance means something: all of them where coverage is
    unknown.
    """
    chosen = set(accepted)
    if assessment.coverage is not None:
        chosen &= {part.part for part in assessment.uncovered}
    return tuple(part for part in BootPart if part in chosen)


def _reason(gap: PartCoverage) -> Reason:
    would = f"{gap.selection} would cover it" if gap.selection else "no selection would cover it"
    sentence = f"Nothing covers the {gap.part.words}: {gap.reason}; {would}."
    data: tuple[tuple[str, object], ...] = (
        ("part", gap.part.value),
        ("measured_in", list(gap.measured_in)),
        ("selection", str(gap.selection) if gap.selection else None),
    )
    return Reason("uncovered", sentence, data)

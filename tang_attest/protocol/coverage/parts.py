"""Boot and selection -> Coverage: the parts that the selection binds, and the reason for each that it does
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final

from tang_attest.errors import Malformed
from tang_attest.protocol.coverage.boot import Boot, BootPart, preferred, read_boot
from tang_attest.protocol.eventlog.structures import EventLog
from tang_attest.protocol.values.pcr import Selection

ENFORCED: Final = (BootPart.KERNEL, BootPart.INITRD, BootPart.COMMAND_LINE)
"""Parts without which a quote says nothing about the software that opens the disk."""

_SHOWN: Final = (*ENFORCED, BootPart.DEVICE_TREE)


@dataclass(frozen=True, slots=True)
class PartCoverage:
    """One part: PCR -> the software that measured it there, whether the selection has such a PCR, and the
    verdict.

    ``reason`` is a clause without a full stop for a part that is not ``covered``, else None.  ``selection``
    is the asked one with a PCR that covers the part, and None where no selection does.
    """

    part: BootPart
    measured_by: Mapping[int, str]
    selected_in: tuple[int, ...]
    covered: bool
    reason: str | None
    _: KW_ONLY
    selection: Selection | None

    @property
    def measured_in(self) -> tuple[int, ...]:
        """PCRs, ascending."""
        return tuple(self.measured_by)

    @property
    def selected(self) -> bool:
        """True when the selection has one of the PCRs."""
        return bool(self.selected_in)

    def as_json(self) -> dict[str, object]:
        """``{"measured_in": [4], "selected": true, "covered": true}``."""
        return {
            "measured_in": list(self.measured_in),
            "selected": self.selected,
            "covered": self.covered,
        }


@dataclass(frozen=True, slots=True)
class Coverage:
    """All parts of one boot under one selection, in the order of the boot."""

    selection: Selection
    boot: Boot
    parts: tuple[PartCoverage, ...]

    def of(self, part: BootPart) -> PartCoverage:
        """Return what is known of *part*."""
        return next(each for each in self.parts if each.part is part)

    @property
    def uncovered(self) -> tuple[PartCoverage, ...]:
        """The parts of :data:`ENFORCED` that nobody covers."""
        return tuple(each for each in self.parts if each.part in ENFORCED and not each.covered)

    def as_json(self) -> dict[str, object]:
        """``{"kernel": {...}, ...}`` with every part."""
        return {each.part.value: each.as_json() for each in self.parts}

    def line(self) -> str:
        """Return the coverage as one line.

        ``kernel PCR 4, initrd PCR 9, command line PCR 9: covered; device tree: not measured``.
        """
        shown = [each for each in self.parts if each.part in _SHOWN]
        covered = ", ".join(f"{each.part.words} {spell(each.selected_in)}" for each in shown if each.covered)
        clauses = [f"{covered}: covered"] if covered else []
        clauses += [_clause(each) for each in shown if not each.covered]
        return "; ".join(clauses)


def coverage(log: EventLog, selection: Selection) -> Coverage:
    """Return the parts of the boot of *log* that *selection* binds.

    A pure function of both, see the rules of this package.  Raises :class:`~tang_attest.errors.Malformed`
    ``eventlog-bank-missing`` when the log does not have the selection's bank. NOT checked: that the log leads
    to any quoted value.
    """
    boot = read_boot(log, selection.bank)
    return Coverage(selection, boot, tuple(_part(part, boot, selection) for part in BootPart))


def parse_part(text: str) -> BootPart:
    """Return the part called *text*, with hyphens or underscores.  Raises ``request-malformed``."""
    try:
        return BootPart(text.replace("-", "_"))
    except ValueError:
        names = ", ".join(part.value for part in ENFORCED)
        raise Malformed("request-malformed", f"'{text:.40}' is none of {names}.") from None


def spell(pcrs: tuple[int, ...]) -> str:
    """Return ``PCR 4`` or ``PCR 4 and 9``."""
    names = [str(pcr) for pcr in pcrs]
    return f"PCR {names[0]}" if len(names) == 1 else f"PCR {', '.join(names[:-1])} and {names[-1]}"


def _part(part: BootPart, boot: Boot, selection: Selection) -> PartCoverage:
    measured = boot.measured.get(part, {})
    chosen = tuple(pcr for pcr in measured if pcr in selection.pcrs)
    hollow = boot.hollow.get(part)
    if measured and chosen and not hollow:
        return PartCoverage(part, measured, chosen, covered=True, reason=None, selection=selection)
    if hollow or not measured:
        reason = hollow or "nobody measured it"
        return PartCoverage(part, measured, chosen, covered=False, reason=reason, selection=None)
    wider = Selection(
        selection.bank, tuple(sorted({*selection.pcrs, preferred(boot.chain, tuple(measured))}))
    )
    reason = f"it is measured in {spell(tuple(measured))}, which {selection} does not have"
    return PartCoverage(part, measured, chosen, covered=False, reason=reason, selection=wider)


def _clause(part: PartCoverage) -> str:
    if not part.measured_by:
        return f"{part.part.words}: not measured"
    return f"{part.part.words} {spell(part.measured_in)}: not selected"

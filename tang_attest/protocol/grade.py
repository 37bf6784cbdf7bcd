"""Grade of a device's measurements: for listings, decides nothing.

A quote proves PCR values.  Their worth depends on the first measurer, which no TPM can attest: an attacker
who controls it extends any values and writes the log to match.  So a grade states the reach of the proof *on
an honest machine*, from its EK and its log, and never claims more than these two show.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tang_attest.protocol.coverage import BootPart, Coverage, PartCoverage
from tang_attest.protocol.eventlog import Event, EventLog, EventType, describe, measured_data
from tang_attest.protocol.eventlog.describe import split_variable
from tang_attest.protocol.rules import secure_boot
from tang_attest.protocol.values.pcr import PcrValues, as_reset, nothing_measured

BOOT_PCRS: Final = frozenset({*range(10), *range(11, 15)})
"""PCRs that firmware, boot loaders and the kernel's stub extend; 10 is IMA's, 15 the cap's, from 16 on nobody's.
"""

_FIRST_CODE: Final = (
    EventType.EV_S_CRTM_VERSION,
    EventType.EV_S_CRTM_CONTENTS,
    EventType.EV_EFI_HCRTM_EVENT,
)
_FIRMWARE: Final = (
    EventType.EV_POST_CODE,
    EventType.EV_POST_CODE2,
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB,
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2,
)


SECURE_BOOT_OFF: Final = "Secure Boot is off: systemd then takes options from the EFI variable SystemdOptions, which nothing measures"


class GradeLevel(Enum):
    """The grades, best first."""

    VERIFIED_CHAIN = "verified chain"
    SELF_MEASURED = "self-measured"
    INCOMPLETE = "incomplete chain"
    NOTHING_MEASURED = "nothing measured"


@dataclass(frozen=True, slots=True)
class Grade:
    """``level``, and why: sentences without a full stop, in lower case, at least one."""

    level: GradeLevel
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """``{"grade": "self-measured", "reasons": [...]}``."""
        return {"grade": self.level.value, "reasons": list(self.reasons)}


def grade(
    *,
    ek_verified: bool,
    log: EventLog | None,
    replayed: bool,
    values: PcrValues,
    coverage: Coverage | None = None,
    accepted: Collection[BootPart] = (),
) -> Grade:
    """The grade of a device whose quote was verified.

    *ek_verified*: the EK certificate leads to a trusted root.  *log* is what the device sent, *replayed*
    whether it leads to the quoted values of every PCR that it extends and that was quoted.  *values* are the
    quoted ones.

    *coverage* is that of the log under the quoted selection, None where it is unknown.  *accepted* are parts
    that the operator accepted although nothing covers them; the grade names them whatever else it says.

    ``verified chain`` needs all of: the EK's certificate, a log that replays, PCR 0 quoted, and in PCR 0 what
    a platform firmware logs of its first code and of itself.  ``incomplete chain`` is when kernel, initrd or
    command line are not covered.  ``nothing measured`` is when no PCR that is extended at boot has more than
    constants, such as separators.  All else is ``self-measured``.

    NOT checked, and no evidence can show it: that the first code cannot be replaced (a TPM's certificate
    names the TPM, not the board it is soldered to), and that what the log says of PCR 0 is true.
    """
    boot = {pcr: value for pcr, value in values.items() if pcr in BOOT_PCRS}
    if not boot:
        return Grade(GradeLevel.NOTHING_MEASURED, ("the quote has no PCR that is extended at boot",))
    told = _accepted(accepted)
    if nothing_measured(boot):
        how = "as a reset leaves it" if as_reset(boot) else "that of a separator or another constant"
        return Grade(GradeLevel.NOTHING_MEASURED, (f"every PCR of the boot is {how}", *told))
    doubts = [] if ek_verified else ["the EK's certificate is not verified"]
    doubts += _doubts_of_log(log, replayed=replayed, quoted=0 in values)
    if gaps := [f"nothing covers the {part.part.words}: {part.reason}" for part in _gaps(coverage)]:
        return Grade(GradeLevel.INCOMPLETE, (*gaps, *told, *doubts))
    if doubts:
        return Grade(GradeLevel.SELF_MEASURED, (*doubts, *told))
    reasons = (
        "the EK's certificate leads to a trusted root",
        "the event log replays, and in it the firmware measures itself first (PCR 0)",
    )
    return Grade(GradeLevel.VERIFIED_CHAIN, (*reasons, *told))


def _gaps(coverage: Coverage | None) -> tuple[PartCoverage, ...]:
    return () if coverage is None else coverage.uncovered


def _accepted(parts: Collection[BootPart]) -> tuple[str, ...]:
    return tuple(
        f"the operator accepted that nothing covers the {part.words}" for part in BootPart if part in parts
    )


def unmeasured_inputs(log: EventLog | None, bank: str, *, replayed: bool) -> tuple[str, ...]:
    """Return the inputs that may steer a boot although nothing measures them, as sentences like those of a
    :class:`Grade`; often none.

    Secure Boot off, by the bytes that *log* proves in *bank*: systemd then takes options from an EFI
    variable.  Silent where no log came, where it does not lead to the quoted values (*replayed*), and where
    it has no such variable.

    NOT checked, and no log can show it: that the initrd has a systemd, and that it looks for the variable
    first.
    """
    if log is None or not replayed:
        return ()
    measured = (
        measured_data(event, bank) for event in log.events if event.extends and event.pcr == secure_boot.PCR
    )
    return (SECURE_BOOT_OFF,) if any(_says_off(data) for data in measured if data is not None) else ()


def _says_off(data: bytes) -> bool:
    try:
        guid, name, value = split_variable(data)
    except ValueError:
        return False
    return (guid, name) == (secure_boot.EFI_GLOBAL, "SecureBoot") and value != b"\x01"


def _doubts_of_log(log: EventLog | None, *, replayed: bool, quoted: bool) -> list[str]:
    if log is None:
        return ["no event log was sent, so it is not known what measured first"]
    if not replayed:
        return ["the event log does not lead to the quoted values"]
    if not quoted:
        return ["PCR 0 was not quoted, so it is not known what measured first"]
    events = [event for event in log.events if event.extends and event.pcr == 0]
    if not any(event.type in _FIRST_CODE for event in events):
        return [
            "the log has no measurement of the firmware's first code: software on a disk may measure first"
        ]
    if any(_is_uboot(event) for event in events) or not any(event.type in _FIRMWARE for event in events):
        return ["the first measurer is a boot loader, not the firmware: a writer of the disk can replace it"]
    return []


def _is_uboot(event: Event) -> bool:
    """U-Boot logs its own version as that of the CRTM (lib/tpm_tcg2.c)."""
    return event.type == EventType.EV_S_CRTM_VERSION and "U-Boot" in describe(event)

"""The prediction as a whole: a log and files in, one outcome for each PCR out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from predict.files import MachineFiles, read_bounded
from predict.loaders import grub, stub, uboot, uki
from predict.measured import Kind, Loader
from predict.plan import Plan, PredictedPcr, Target, name_of
from predict.sentences import NoPrediction, Unpredictable, WrongCommandLine
from predict.text import of_path, plain
from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog.parse import MAX_EVENTS, parse
from tang_attest.protocol.eventlog.structures import EventLog

MAX_LOG: Final = 131072
"""Bytes of an event log: the protocol's limit (docs/protocol.md, section 1)."""

_PCR: Final = re.compile(r"([0-9]+) *: 0x([0-9A-Fa-f]+)")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The next boot: *selection* as it was asked, a *label* for the operator, the *outcomes* in the order of
    the selection.
    """

    selection: str
    label: str
    outcomes: tuple[PredictedPcr, ...]
    notes: tuple[str, ...]

    @property
    def missing(self) -> list[int]:
        """Return the PCRs that cannot be predicted."""
        return [outcome.pcr for outcome in self.outcomes if outcome.value is None]


def read_log(path: Path, bank: str) -> EventLog:
    """Return the event log in *path*.

    Raises :class:`NoPrediction`: unreadable or empty, over MAX_LOG bytes or MAX_EVENTS events, malformed, of
    the old format, or without *bank*.
    """
    try:
        data = read_bounded(path, MAX_LOG)
    except Unpredictable as reason:
        if isinstance(reason.__cause__, OSError):
            data = b""
        else:
            raise NoPrediction(f"the event log is over {MAX_LOG} bytes") from reason
    if not data:
        raise NoPrediction(
            f"cannot read the event log {of_path(path)}; does the firmware measure, is securityfs mounted,"
            " and if Debian's GRUB starts this machine, is Secure Boot on?"
        )
    try:
        log = parse(data, limit=MAX_LOG, max_events=MAX_EVENTS)
    except Malformed as error:
        raise NoPrediction(f"the event log is malformed: {plain(error.sentence)}") from error
    if log.format == "sha1":
        raise NoPrediction(f"the event log is of the old SHA-1 format, which has no {bank} digests")
    if bank not in {algorithm.name for algorithm in log.algorithms}:
        raise NoPrediction(f"the event log has no {bank} digest of every event")
    return log


def pcr_values(text: str) -> dict[int, bytes]:
    """Return the values that ``tpm2 pcrread`` printed.  Lines of another form are passed over."""
    values = {}
    for line in text.splitlines():
        match = _PCR.fullmatch(line.strip())
        if match and len(match[1]) <= 2 and len(match[2]) % 2 == 0:
            values[int(match[1])] = bytes.fromhex(match[2])
    return values


def predict(
    log: EventLog,
    files: MachineFiles,
    target: Target,
    *,
    command_line: str,
    selection: str,
    cap: int,
    running: Mapping[int, bytes],
    label: str,
    release: str,
) -> Prediction:
    """Predict the PCRs of *selection* (``sha256:0,4,7``).

    *command_line* is /proc/cmdline, *cap* the cap PCR, *running* the values in the TPM now; *label* is made
    up if it is empty, with *release* (uname -r) for GRUB.  Raises :class:`WrongCommandLine` if *target* does
    not fit this way to boot.
    """
    plan = Plan(log, files, target, command_line)
    plan.foreign_kinds()
    _PREDICTORS[plan.measured.loader](plan)
    pcrs = [int(pcr) for pcr in selection.partition(":")[2].split(",")]
    outcomes = plan.outcomes(pcrs, cap, running)
    name = plain(label, 64) or name_of(target, plan.measured.loader, release)
    return Prediction(selection, name, tuple(outcomes), tuple(map(plain, plan.notes)))


def _no_image(plan: Plan) -> None:
    if plan.target.uki:
        raise WrongCommandLine("this machine does not start a unified kernel image")
    stub.predict(plan)


def _unknown(plan: Plan) -> None:
    plan.boot_loaders(plan.measured.of(Kind.IMAGE))
    plan.give_up(9, "the log shows no boot loader and no kernel that this program knows")


_PREDICTORS: Final[Mapping[Loader | None, Callable[[Plan], None]]] = {
    Loader.GRUB: grub.predict,
    Loader.UNIFIED: uki.predict,
    Loader.SYSTEMD_BOOT: _no_image,
    Loader.UBOOT: uboot.predict,
    None: _unknown,
}

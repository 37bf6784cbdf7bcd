"""U-Boot with MEASURED_BOOT, without EFI: kernel (PCR 8), initrd (PCR 9) and command line (PCR 1) by their
labels.

Source: U-Boot's boot/bootm.c and lib/tpm-v2.c.  Its scripts decide what comes next, and they are not read:
the caller says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from predict.measured import Kind
from predict.plan import Plan
from predict.sentences import Unpredictable
from predict.text import of_bytes, to_bytes
from tang_attest.protocol.eventlog.structures import Event

_KERNEL: Final = "linux"
_OPTIONS: Final = {_KERNEL: "--kernel", "initrd": "--initrd"}


def predict(plan: Plan) -> None:
    """Predict PCR 1, 8 and 9 from the files and the command line that the caller names."""
    target = plan.target
    plan.boot_loaders(plan.measured.of(Kind.IMAGE))
    for event in plan.measured.of(Kind.UBOOT_FILE):
        label = of_bytes(event.data.removesuffix(b"\0"))
        paths = (
            [target.kernel]
            if label == _KERNEL and target.kernel
            else target.initrds
            if label != _KERNEL
            else []
        )
        _file(plan, event, label, paths)
    for event in plan.measured.of(Kind.UBOOT_OPTIONS):
        if not target.options:
            plan.give_up(
                event.pcr, "it is not known which command line U-Boot hands over next; give --cmdline"
            )
        elif plan.digest(event) != plan.files.hash([event.data]):
            plan.give_up(event.pcr, "what was measured of the command line is not the text beside it")
        else:
            digest = plan.files.hash([to_bytes(f"{target.options}\0")])
            plan.exchange(event, digest, f"command line: {target.options}")


def _file(plan: Plan, event: Event, label: str, paths: Sequence[Path]) -> None:
    if plan.digest(event) == plan.files.hash([event.data]):
        plan.notes.append(f"U-Boot measured the word {label} and no file; PCR {event.pcr} says nothing of it")
    elif len(paths) != 1:
        plan.give_up(event.pcr, f"it is not known which {label} U-Boot starts next; give {_OPTIONS[label]}")
    else:
        try:
            plan.exchange(event, plan.files.digest(paths[0]), f"{label} {plan.files.shown(paths[0])}")
        except Unpredictable as reason:
            plan.give_up(event.pcr, str(reason))

"""A kernel with its own EFI stub, started by systemd-boot, the firmware or QEMU; NixOS generations are of
this kind.
"""

from __future__ import annotations

import re
from typing import Final

from predict import measured
from predict.loaders import entries
from predict.measured import Kind
from predict.plan import Plan
from predict.sentences import Unpredictable
from predict.text import from_utf16, to_utf16
from tang_attest.protocol.eventlog.structures import Event

NOT_ASCII: Final = "the command line is not ASCII"
SEVERAL_INITRDS: Final = "the log has several initrds"

_INITRD_OPTION: Final = re.compile(r"initrd=(\\[^ ]*)(?: |$)")
_OTHER_OPTIONS: Final = "what was measured of the command line is not the command line of this boot"
_OVMF_INITRD: Final = " initrd=initrd"


def predict(plan: Plan) -> None:
    """Predict PCR 4, 9, 12 and, with a newer systemd-boot, 5."""
    images = plan.measured.of(Kind.IMAGE)
    plan.boot_loaders(images[:-1])
    plan.loader_conf()
    if not plan.target.given and not _find_entry(plan):
        return
    _kernel(plan, images[-1] if images else None)
    _options(plan)
    _initrd(plan)


def same_options(plan: Plan, old: str, *, changes: bool) -> bool:
    """Tell that every event that should hold the command line *old* does.

    Otherwise give up the PCR of the one that does not, or, if the next boot *changes* the command line, those
    of all.
    """
    encoded = to_utf16(old)
    digest = None if encoded is None else plan.files.hash([encoded])
    events = plan.measured.of(Kind.OPTIONS, Kind.STUB_OPTIONS)
    others = [event for event in events if plan.digest(event) != digest]
    if others:
        plan.give_up_events(
            events if changes else others[:1], NOT_ASCII if encoded is None else _OTHER_OPTIONS
        )
    return not others


def exchange_options(plan: Plan, events: list[Event], options: str, shown: str = "") -> None:
    """Let *options* take the place of the command line in *events*."""
    encoded = to_utf16(options)
    if encoded is None:
        plan.give_up_events(events, NOT_ASCII)
        return
    for event in events:
        plan.exchange(event, plan.files.hash([encoded]), f"command line: {shown or options}")


# --- what comes next ----------------------------------------------------------------------------------------


def _find_entry(plan: Plan) -> bool:
    """Find the entry that comes next, or the files that stay in place; without either nothing is known."""
    try:
        entries.read(plan, entries.next_entry(plan))
    except Unpredictable:
        if _in_place(plan):
            return True
        plan.unknown_target(
            "it is not known which kernel comes next: there is no boot loader entry;"
            " give --kernel, --initrd and --cmdline"
        )
        return False
    return True


def _in_place(plan: Plan) -> bool:
    """Find the initrds that /proc/cmdline names: without a boot loader, they and the kernel stay where they
    are.
    """
    if plan.measured.of(Kind.OPTIONS):
        return False
    for word in plan.command_line.split(" "):
        if word.startswith("initrd="):
            path = plan.files.esp_file(word.removeprefix("initrd="))
            if path is None:
                return False
            plan.target.initrds.append(path)
    return bool(plan.target.initrds)


# --- PCR 4 --------------------------------------------------------------------------------------------------


def _kernel(plan: Plan, event: Event | None) -> None:
    target = plan.target
    if event is None:
        if target.kernel:
            plan.notes.append("the firmware did not measure the kernel image; PCR 4 stays as it is")
        return
    name = measured.image_path(event)
    if target.kernel is None and name.startswith("\\"):
        target.kernel = plan.files.esp_file(name)
    if "\\" not in name:
        _kernel_in_memory(plan, event)
    elif target.kernel is None:
        plan.give_up(4, f"{name} is not there; give --kernel")
    else:
        try:
            plan.exchange(
                event, plan.image_digest(target.kernel), f"kernel {plan.files.shown(target.kernel)}"
            )
        except Unpredictable as reason:
            plan.give_up(4, str(reason))


def _kernel_in_memory(plan: Plan, event: Event) -> None:
    """Leave PCR 4 only if nothing changes: QEMU writes sizes and addresses into the header of a kernel that
    it starts.
    """
    target = plan.target
    try:
        if target.kernel and plan.image_digest(target.kernel) == plan.digest(event):
            return
        initrds = plan.measured.of(Kind.STUB_INITRD)
        if initrds and not target.kernel and plan.files.digest(*target.initrds) in map(plan.digest, initrds):
            return
    except Unpredictable:
        pass
    plan.give_up(
        4, "the kernel came from memory (qemu -kernel?), with a header that is not the one of the file"
    )


# --- the command line, in systemd's words and in the stub's -------------------------------------------------


def _options(plan: Plan) -> None:
    target = plan.target
    by_loader = plan.measured.of(Kind.OPTIONS)
    events = [*by_loader, *plan.measured.of(Kind.STUB_OPTIONS)]
    old = (from_utf16(by_loader[0].data) or "") if by_loader else plan.command_line
    stays = not target.options and not target.entry and not target.initrds
    if stays and to_utf16(old) is None:
        return
    if not same_options(plan, old, changes=not stays) or stays:
        return
    try:
        new = _new_options(plan, old)
    except Unpredictable as reason:
        plan.give_up_events(events, str(reason))
        return
    exchange_options(plan, events, new)


def _new_options(plan: Plan, old: str) -> str:
    """Return the next command line.

    systemd-boot writes an initrd= before the options for each initrd, and OVMF one behind them; they are kept
    in the way they are in *old*.  Raises :class:`Unpredictable` if the boot loader's name of an initrd is not
    known.
    """
    target, at = plan.target, 0
    while match := _INITRD_OPTION.match(old, at):
        at = match.end()
    prefix, rest = old[:at], old[at:]
    if target.entry or target.options:
        rest = target.options
    if prefix and target.initrds:
        prefix = "".join(f"initrd={name} " for name in _initrd_names(plan))
    if old.endswith(_OVMF_INITRD) and not rest.endswith(_OVMF_INITRD):
        rest += _OVMF_INITRD
    return prefix + rest if rest else prefix.removesuffix(" ")


def _initrd_names(plan: Plan) -> list[str]:
    if plan.target.initrd_names:
        return plan.target.initrd_names
    names = []
    for initrd in plan.target.initrds:
        name = plan.files.esp_name(initrd)
        if name is None:
            twin = plan.files.esp_twin(initrd)
            name = plan.files.esp_name(twin) if twin else None
        if name is None:
            raise Unpredictable(
                f"{initrd} is not on the EFI system partition, so its name there is not known"
            )
        names.append(name)
    return names


# --- PCR 9 --------------------------------------------------------------------------------------------------


def _initrd(plan: Plan) -> None:
    events, initrds = plan.measured.of(Kind.STUB_INITRD), plan.target.initrds
    if not events:
        if initrds:
            plan.notes.append("nothing in the log measures the initrd")
        return
    if not initrds:
        plan.give_up(9, "it is not known which initrd comes next; give --initrd")
        return
    if len(events) > 1:
        plan.give_up(9, SEVERAL_INITRDS)
        return
    try:
        names = " ".join(plan.files.shown(path) for path in initrds)
        plan.exchange(events[0], plan.files.digest(*initrds), f"initrd {names}")
    except Unpredictable as reason:
        plan.give_up(9, str(reason))

"""A unified kernel image: what systemd's stub measures of it.

Source: systemd-stub(7); UAPI.5 Unified Kernel Image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from predict import measured, pe
from predict.files import MAX_COMMAND_LINE, visible
from predict.loaders import entries
from predict.loaders.stub import NOT_ASCII, SEVERAL_INITRDS
from predict.measured import Kind
from predict.plan import Plan
from predict.sentences import Unpredictable, WrongCommandLine
from predict.text import of_bytes, to_utf16
from tang_attest.protocol.eventlog.structures import Event

SECTIONS: Final = {
    ".linux": 252,
    ".osrel": 252,
    ".cmdline": 252,
    ".initrd": 252,
    ".ucode": 256,
    ".splash": 252,
    ".dtb": 252,
    ".uname": 254,
    ".sbat": 254,
    ".pcrpkey": 252,
}
"""Sections in the order in which the stub measures them, and the first version of the stub that measures
each.
"""

UNPREDICTABLE_SECTIONS: Final = (".profile", ".dtbauto", ".hwids", ".efifw")
"""Sections whose effect depends on the hardware or on the choice of a profile."""

INITRD_SECTIONS: Final = (".pcrsig", ".pcrpkey", ".ucode")
"""The stub adds these to the initrd."""

_FIRST_VERSION: Final = 252
_MAX_VERSION_TEXT: Final = 4096
_VERSION: Final = re.compile(rb"systemd-stub ([0-9]{3})")
_CONTROLS: Final = dict.fromkeys(range(1, 32), " ")


def predict(plan: Plan) -> None:
    """Predict PCR 4, 9, 11, 12 and, with a newer systemd-boot, 5: the image that was started becomes the one
    of the target.

    Raises :class:`WrongCommandLine` if the caller named a kernel, an initrd or a command line.
    """
    if plan.target.given:
        raise WrongCommandLine("this machine starts a unified kernel image; give --uki")
    first = plan.measured.of(Kind.SECTION)[0]
    images = plan.measured.of(Kind.IMAGE)
    outer = [event for event in images if event.index < first.index]
    inner = [event for event in images if event.index > first.index]
    plan.boot_loaders(outer[:-1])
    plan.loader_conf()
    if not outer or not measured.image_path(outer[-1]):
        plan.unknown_target("the image that was started is not named in the log")
        return
    started = outer[-1]
    old = _unchanged(plan, started)
    try:
        new = plan.target.uki = plan.target.uki or _next_image(plan, started, under_loader=len(images) > 1)
        plan.exchange(started, plan.image_digest(new), f"unified kernel image {plan.files.shown(new)}")
    except Unpredictable as reason:
        plan.unknown_target(str(reason))
        return
    _beside(plan, [path for path in (old, new) if path])
    _kernel_inside(plan, inner, old, new)
    _sections(plan, old, new)
    _options(plan, old, new)
    _initrd(plan, old, new)


def _unchanged(plan: Plan, started: Event) -> Path | None:
    """Return the running image, if it is still there unchanged: all that is known of images can then be tried
    on it.
    """
    path = plan.files.esp_file(measured.image_path(started))
    try:
        return path if path and plan.image_digest(path) == plan.digest(started) else None
    except Unpredictable:
        return None


def _next_image(plan: Plan, started: Event, *, under_loader: bool) -> Path:
    r"""Return the file that was *started*, or the one in \EFI\Linux that the boot loader takes next."""
    name = measured.image_path(started)
    if under_loader and name.lower().startswith("\\efi\\linux\\"):
        found = entries.pick(
            plan.files, entries.all_entries(plan.files, "[Ee][Ff][Ii]/[Ll]inux/*.efi"), ".efi"
        )
    else:
        found = plan.files.esp_file(name)
    if found is None:
        raise Unpredictable(f"{name} is not there; is the EFI system partition mounted?  Or give --uki")
    return found


def _beside(plan: Plan, images: Sequence[Path]) -> None:
    """Give up if credentials or add-ons lie beside an image: they are measured, too."""
    for image in images:
        directory = image.with_name(f"{image.name}.extra.d")
        for entry in visible(directory, "*")[:1]:
            shown = plan.files.shown(entry)
            for pcr in (12, 13):
                plan.give_up(pcr, f"what is beside the image is measured, too: {shown}")
            plan.give_up(9, f"what is beside the image goes into the initrd: {shown}")
            return


# --- the image ----------------------------------------------------------------------------------------------


def _section(plan: Plan, path: Path, name: str) -> pe.Window:
    """Return the content of a section.  Raises :class:`Unpredictable` if *path* is no image, or has no such
    section.
    """
    image = plan.image(path)
    section = image.section(name)
    if section is None:
        raise Unpredictable(f"{path} has no section {name}")
    return image.content(section)


def _section_digest(plan: Plan, path: Path, name: str) -> bytes:
    window = _section(plan, path, name)
    return plan.files.hash(window.chunks(0, window.size))


def stub_version(plan: Plan, path: Path) -> int:
    """Return the version of systemd's stub in the image *path*: three digits.

    Raises :class:`Unpredictable` if it does not say one, or is older than version 252, which measures
    nothing.
    """
    known, image = plan.files.known(path), plan.image(path)
    if image.section(".linux") is None:
        raise Unpredictable(f"{known} has no section .linux")
    magic = image.section(".sdmagic")
    text = image.content(magic).read(0, _MAX_VERSION_TEXT) if magic else b""
    match = _VERSION.search(text.replace(b"\0", b""))
    if match is None:
        raise Unpredictable(f"the stub in {known} does not say its version")
    version = int(match[1])
    if version < _FIRST_VERSION:
        raise Unpredictable(
            f"the stub in {known} is of version {version}, which measures nothing of what is in the image"
        )
    return version


def section_digests(plan: Plan, path: Path) -> list[bytes]:
    """Return the digests that the stub in the image *path* extends PCR 11 with: of each section's name and
    content.

    Raises :class:`Unpredictable` as :func:`stub_version`, and for a section whose effect depends on the
    hardware.
    """
    version, image = stub_version(plan, path), plan.image(path)
    for name in UNPREDICTABLE_SECTIONS:
        if image.section(name) is not None:
            raise Unpredictable(
                f"{plan.files.known(path)} has a section {name},"
                " and what is measured of that depends on the hardware or the profile"
            )
    digests = []
    for name, first_version in SECTIONS.items():
        section = image.section(name)
        if section is None or not section.virtual or version < first_version:
            continue
        digests.append(plan.files.hash_text(f"{name}\0"))
        digests.append(_section_digest(plan, path, name))
    return digests


def command_line(plan: Plan, path: Path) -> str | None:
    """Return .cmdline as the stub hands it over; None if there is none, or one that no kernel takes."""
    try:
        window = _section(plan, path, ".cmdline")
    except Unpredictable:
        return None
    if window.size > MAX_COMMAND_LINE:
        return None
    text = of_bytes(window.read(0, window.size).replace(b"\0", b""))
    return text.translate(_CONTROLS).rstrip(" ")


# --- PCR 4 --------------------------------------------------------------------------------------------------


def _kernel_inside(plan: Plan, events: Sequence[Event], old: Path | None, new: Path) -> None:
    """Predict the kernel inside, which the stub starts through the firmware, which measures it once more."""
    if not events:
        return
    if len(events) > 1:
        plan.give_up(4, "the log has several images behind the unified kernel image")
        return
    try:
        if old and not _is_kernel_of(plan, events[0], old):
            plan.give_up(4, "the image behind the unified kernel image is not the kernel inside it")
            return
        plan.exchange(events[0], _kernel_digest(plan, new), f"the kernel in {plan.files.shown(new)}")
    except Unpredictable as reason:
        plan.give_up(4, str(reason))


def _is_kernel_of(plan: Plan, event: Event, path: Path) -> bool:
    try:
        return _kernel_digest(plan, path) == plan.digest(event)
    except Unpredictable:
        return False


def _kernel_digest(plan: Plan, path: Path) -> bytes:
    window = _section(plan, path, ".linux")
    try:
        return plan.files.hash(pe.parse(window).authenticode())
    except pe.NotAnImage as error:
        raise Unpredictable(f"the kernel in {plan.files.known(path)} is not an EFI image") from error


# --- PCR 11 -------------------------------------------------------------------------------------------------


def _sections(plan: Plan, old: Path | None, new: Path) -> None:
    events = plan.measured.of(Kind.SECTION)
    digests = [plan.digest(event) for event in events]
    try:
        if old and not _is_measured(plan, old, digests):
            plan.give_up(11, "what was measured of the running image is not what this program would expect")
            return
        expected = section_digests(plan, new)
    except Unpredictable as reason:
        plan.give_up(11, str(reason))
        return
    if expected != digests:
        plan.replace(events[0], expected, f"unified kernel image {plan.files.shown(new)}")
        plan.drop(events[1:])


def _is_measured(plan: Plan, path: Path, digests: Sequence[bytes]) -> bool:
    try:
        return section_digests(plan, path) == digests
    except Unpredictable:
        return False


# --- PCR 9 and 12 -------------------------------------------------------------------------------------------


def _options(plan: Plan, old: Path | None, new: Path) -> None:
    """Predict the command line in the image, as the boot loader and both stubs measure it."""
    by_stub = plan.measured.of(Kind.OPTIONS)
    before = command_line(plan, old) if old else None
    if before is None:
        before = plan.command_line
    after = command_line(plan, new)
    encoded, encoded_after = to_utf16(before), to_utf16(after) if after else None
    for event in [*by_stub, *plan.measured.of(Kind.STUB_OPTIONS)]:
        if encoded is None:
            plan.give_up(event.pcr, NOT_ASCII)
        elif plan.files.hash([encoded]) != plan.digest(event):
            # Something else than the image gave it: the firmware's boot entry, for instance, and that stays.
            if event.pcr == 9 and not by_stub:
                plan.give_up(9, "what was measured of the command line is not the command line in the image")
        elif encoded_after is None:
            plan.give_up(event.pcr, f"the command line in {plan.files.known(new)} is missing or not ASCII")
        else:
            plan.exchange(event, plan.files.hash([encoded_after]), f"command line: {after}")


def _initrd(plan: Plan, old: Path | None, new: Path) -> None:
    """Predict the initrd that the kernel's stub is given: .initrd, unless the stub adds to it."""
    events = plan.measured.of(Kind.STUB_INITRD)
    if not events:
        return
    if len(events) > 1:
        plan.give_up(9, SEVERAL_INITRDS)
        return
    if old and not _is_initrd_of(plan, events[0], old):
        plan.give_up(
            9,
            "the initrd is not only the one in the image: the stub adds keys, microcode or credentials to it",
        )
        return
    try:
        plan.exchange(events[0], _initrd_digest(plan, new), f"the initrd in {plan.files.shown(new)}")
    except Unpredictable as reason:
        plan.give_up(9, str(reason))


def _initrd_digest(plan: Plan, path: Path) -> bytes:
    image = plan.image(path)
    for name in INITRD_SECTIONS:
        if image.section(name) is not None:
            raise Unpredictable(f"the stub adds what is in {name} of {plan.files.known(path)} to the initrd")
    return _section_digest(plan, path, ".initrd")


def _is_initrd_of(plan: Plan, event: Event, path: Path) -> bool:
    try:
        return _section_digest(plan, path, ".initrd") == plan.digest(event)
    except Unpredictable:
        return False

"""Coverage of real boots, and of logs that lie."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.coverage import ENFORCED, BootPart, Chain, coverage, parse_part, propose, read_boot
from tang_attest.protocol.eventlog import MAX_EVENTS, Event, EventLog, EventType, parse
from tang_attest.protocol.eventlog.constants import measures_nothing
from tang_attest.protocol.values.pcr import Selection
from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.writer import EV_IPL, Measurement

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
DEFAULT = Selection.parse("sha256:0,2,4,7,8,9,15")
ALL = Selection("sha256", tuple(range(16)))

EV_SEPARATOR, EV_EVENT_TAG, EV_COMPACT_HASH, EV_IMAGE = 0x4, 0x6, 0xC, 0x80000003
EV_CONFIG = 0xA
TAG_INITRD = (0x8F3B22EC).to_bytes(4, "little") + (13).to_bytes(4, "little") + b"Linux initrd\0"


def vector(name: str) -> EventLog:
    folder = "eventlogs-arm64" if name.startswith(("edk2", "uboot")) else "eventlogs"
    return parse((VECTORS / folder / f"{name}.bin").read_bytes())


NAMES = sorted(
    path.stem for folder in ("eventlogs", "eventlogs-arm64") for path in (VECTORS / folder).glob("*.bin")
)
LOGS = {name: vector(name) for name in NAMES if "sha1" not in name}

#: kernel, initrd, command line: the PCRs of each.
MEASURED: Mapping[str, tuple[list[int], list[int], list[int]]] = {
    "ovmf": ([4], [9], [9]),
    "kernel-changed": ([4], [9], [9]),
    "secure-boot": ([4, 9], [9], [8]),
    "uki": ([4, 11], [9, 11], [9, 11]),
    "edk2-kernel": ([4], [9], [9]),
    "edk2-grub-2.06": ([4], [], [9]),
    "edk2-grub-2.06-other-initrd": ([4], [], [9]),
    "edk2-grub-2.12": ([9], [9], [8, 9]),
    "edk2-grub-2.12-other-initrd": ([9], [9], [8, 9]),
    "uboot-efi-systemd-boot": ([4], [9], [9, 12]),
    "uboot-efi-uki": ([4, 11], [9, 11], [9, 11]),
    "uboot-booti": ([], [9], [1]),
    "uboot-booti-other-kernel": ([], [9], [1]),
    "uboot-booti-other-command-line": ([], [9], [1]),
    "uboot-fit-bootm": ([8], [9], [1]),
    "startup-locality-only": ([], [], []),
}


def log(*measurements: Measurement) -> EventLog:
    return parse(w.agile((w.SHA256,), measurements))


def covered(found: EventLog, selection: Selection = ALL) -> set[BootPart]:
    return {each.part for each in coverage(found, selection).parts if each.covered}


def grub(text: str) -> Measurement:
    return Measurement(8, EV_IPL, f"grub_cmd: {text}\0".encode(), text.encode())


def image(content: bytes) -> Measurement:
    return Measurement(4, EV_IMAGE, bytes(32), content)


def test_each_recorded_boot_is_read_as_it_was() -> None:
    assert set(MEASURED) <= set(LOGS)
    for name, (kernel, initrd, line) in MEASURED.items():
        found = coverage(LOGS[name], ALL)
        measured = [list(found.of(part).measured_in) for part in ENFORCED]
        assert measured == [kernel, initrd, line], name


def test_json_has_exactly_the_parts_and_their_three_members() -> None:
    view = coverage(LOGS["uboot-booti"], DEFAULT).as_json()
    assert view["kernel"] == {"measured_in": [], "selected": False, "covered": False}
    assert view["initrd"] == {"measured_in": [9], "selected": True, "covered": True}
    assert view["command_line"] == {"measured_in": [1], "selected": False, "covered": False}
    assert view["device_tree"] == {"measured_in": [1], "selected": False, "covered": False}
    names = ["firmware", "boot_loader", "secure_boot", "kernel", "initrd", "command_line", "device_tree"]
    assert list(view) == names


def test_parts_of_the_firmware() -> None:
    assert {BootPart.FIRMWARE, BootPart.BOOT_LOADER, BootPart.SECURE_BOOT} <= covered(LOGS["ovmf"])
    # U-Boot measures its version, and not itself.
    assert covered(LOGS["uboot-efi-uki"]) & {BootPart.FIRMWARE, BootPart.BOOT_LOADER} == {
        BootPart.BOOT_LOADER
    }
    assert not covered(LOGS["uboot-booti"]) & {BootPart.FIRMWARE, BootPart.BOOT_LOADER, BootPart.SECURE_BOOT}


def test_an_unselected_pcr_covers_nothing_and_the_reason_names_the_selection_that_would() -> None:
    line = coverage(LOGS["uboot-fit-bootm"], DEFAULT).of(BootPart.COMMAND_LINE)
    assert not line.covered
    assert line.reason is not None
    assert "PCR 1, which sha256:0,2,4,7,8,9,15 does not have" in line.reason
    assert str(line.selection) == "sha256:0,1,2,4,7,8,9,15"
    initrd = coverage(LOGS["edk2-grub-2.06"], DEFAULT).of(BootPart.INITRD)
    assert (initrd.reason, initrd.selection) == ("nobody measured it", None)


def test_the_line_for_listings() -> None:
    line = "kernel PCR 4, initrd PCR 9, command line PCR 9: covered; device tree: not measured"
    assert coverage(LOGS["edk2-kernel"], DEFAULT).line() == line
    line = coverage(LOGS["uboot-booti"], DEFAULT).line()
    assert line == (
        "initrd PCR 9: covered; kernel: not measured; command line PCR 1: not selected; "
        "device tree PCR 1: not selected"
    )


@pytest.mark.parametrize("value", [bytes(4), b"\xff" * 4, b"\x01\0\0\0"])
def test_separators_alone_measure_nothing(value: bytes) -> None:
    separators = [Measurement(pcr, EV_SEPARATOR, value, value) for pcr in range(8)]
    found = coverage(log(*separators), ALL)
    assert not any(each.measured_in for each in found.parts)
    after = hashlib.sha256(bytes(32) + hashlib.sha256(value).digest()).digest()
    assert measures_nothing(after, "sha256")


def test_values_that_constants_alone_lead_to() -> None:
    known = ("3d458cfe55cc03ea", "e21b703ee69c7747", "486b1069")
    made = [
        hashlib.sha256(bytes(32) + hashlib.sha256(value).digest()).hexdigest()
        for value in (bytes(4), b"\xff" * 4, b"\x01\0\0\0")
    ]
    assert [value.startswith(begin) for value, begin in zip(made, known, strict=True)] == [True] * 3
    assert measures_nothing(bytes(32), "sha256")
    assert measures_nothing(b"\xff" * 48, "sha384")
    assert not measures_nothing(hashlib.sha256(b"something").digest(), "sha256")


# --- logs that lie ----------------------------------------------------------------------------------------------------


def relabeled(name: str, changes: Mapping[int, Mapping[str, object]]) -> EventLog:
    events = tuple(replace(each, **changes.get(each.index, {})) for each in LOGS[name].events)  # type: ignore[arg-type]
    return replace(LOGS[name], events=events)


def test_load_options_that_are_called_an_initrd_cover_no_initrd() -> None:
    lying = relabeled("edk2-grub-2.06", {23: {"data": TAG_INITRD}})
    assert BootPart.INITRD not in covered(lying)


def test_an_empty_range_is_no_kernel_whatever_it_is_called() -> None:
    for changes in (
        {2: {"data": b"a kernel"}},
        {2: {"type": EV_IPL, "data": b"/vmlinuz"}},
        {3: {"data": b"linux\0"}},
        {
            3: {"type": EV_IPL, "data": b"/vmlinuz\0"},
            2: {"type": EV_IPL, "data": b"grub_cmd: linux /vmlinuz\0"},
        },
    ):
        assert BootPart.KERNEL not in covered(relabeled("uboot-booti", changes))


def test_text_that_is_not_what_was_measured_proves_no_command_line() -> None:
    lying = relabeled("uboot-fit-bootm", {5: {"data": b"console=ttyAMA0\0"}})
    assert BootPart.COMMAND_LINE not in covered(lying)


_DATA = [each.data for found in LOGS.values() for each in found.events]
_TYPES = [int(each) for each in EventType if each != EventType.EV_NO_ACTION]


#: Type and data; nothing stands for what was recorded.
_LIE = st.tuples(
    st.none() | st.sampled_from(_TYPES),
    st.none() | st.sampled_from(_DATA) | st.binary(max_size=64),
)


@st.composite
def _lies(draw: st.DrawFn) -> tuple[EventLog, EventLog]:
    """A recorded log, and the same digests in the same PCRs under other types and data."""
    honest = LOGS[draw(st.sampled_from(sorted(LOGS)))]
    # A draw for each of a hundred events costs more than all else of this test.
    lies = [(None, None), *draw(st.lists(_LIE, min_size=1, max_size=12))]
    chosen = draw(st.binary(min_size=len(honest.events), max_size=len(honest.events)))

    def lie(event: Event, choice: int) -> Event:
        kind, data = lies[choice % len(lies)]
        if not event.extends:
            return event
        return replace(
            event,
            type=event.type if kind is None else kind,
            data=event.data if data is None else data,
        )

    return honest, replace(honest, events=tuple(map(lie, honest.events, chosen)))


@settings(max_examples=400, deadline=None)
@given(_lies(), st.sets(st.integers(0, 15), min_size=1))
def test_no_change_of_unproven_bytes_turns_a_part_covered(
    logs: tuple[EventLog, EventLog], pcrs: set[int]
) -> None:
    honest, lying = logs
    selection = Selection("sha256", tuple(sorted(pcrs)))
    assert covered(lying, selection) <= covered(honest, selection)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(LOGS)), st.randoms(use_true_random=False))
def test_the_order_of_different_pcrs_is_not_believed(name: str, random: object) -> None:
    """Only the order within a PCR is proven."""
    honest = LOGS[name]
    queues = {pcr: [each for each in honest.events if each.pcr == pcr] for pcr in range(24)}
    order = [each.pcr for each in honest.events if each.names_pcr]
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = replace(honest, events=tuple(queues[pcr].pop(0) for pcr in order))
    assert coverage(shuffled, ALL).as_json() == coverage(honest, ALL).as_json()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_cut_and_damaged_logs_are_read_or_refused(name: str, data: st.DataObject) -> None:
    folder = "eventlogs-arm64" if name.startswith(("edk2", "uboot")) else "eventlogs"
    whole = (VECTORS / folder / f"{name}.bin").read_bytes()
    cut = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if cut:
            cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Malformed):
        assert len(coverage(parse(bytes(cut)), ALL).parts) == len(BootPart)


def test_the_longest_log_is_read_within_a_second() -> None:
    text = b"x" * 200
    many = [Measurement(pcr % 16, EV_IPL, text, text) for pcr in range(MAX_EVENTS - 1)]
    found = log(*many)
    start = time.process_time()
    coverage(found, ALL)
    assert time.process_time() - start < 1


# --- more boots of the same kinds -------------------------------------------------------------------------------------


def test_grub_without_an_initrd_covers_none() -> None:
    """Two files in PCR 9, its configuration and the kernel, are no initrd."""
    files = [Measurement(9, EV_IPL, name, name * 3) for name in (b"/grub.cfg\0", b"/vmlinuz\0")]
    found = log(image(b"grub"), grub("linux /vmlinuz ro"), *files)
    assert covered(found) & {*ENFORCED} == {BootPart.KERNEL, BootPart.COMMAND_LINE}


def test_grub_with_an_initrd_on_x86_without_shim() -> None:
    files = [Measurement(9, EV_IPL, name, name * 3) for name in (b"/grub.cfg\0", b"/vmlinuz\0", b"/initrd\0")]
    found = log(image(b"grub"), grub("linux /vmlinuz ro"), grub("initrd /initrd"), *files)
    assert [list(coverage(found, DEFAULT).of(part).measured_in) for part in ENFORCED] == [[9], [9], [8]]


def test_shim_and_a_silent_grub_cover_no_kernel() -> None:
    """Two images, and nothing says that the second one is the kernel."""
    found = log(image(b"shim"), image(b"grub"))
    assert not covered(found) & {*ENFORCED}


def test_systemd_boot_with_a_kernel_whose_stub_measures_nothing() -> None:
    line = "initrd=\\initrd root=/dev/sda1\0".encode("utf-16-le")
    for pcr in (8, 12):
        found = log(image(b"systemd-boot"), image(b"kernel"), Measurement(pcr, EV_IPL, line, line))
        assert [list(coverage(found, ALL).of(part).measured_in) for part in ENFORCED] == [[4], [], [pcr]]


def test_a_device_tree_and_a_section_that_is_empty() -> None:
    def section(name: str, content: bytes) -> list[Measurement]:
        shown = f"{name}\0".encode("utf-16-le")
        return [Measurement(11, EV_IPL, shown, f"{name}\0".encode()), Measurement(11, EV_IPL, shown, content)]

    found = log(
        image(b"uki"),
        *section(".linux", b"kernel"),
        *section(".initrd", b""),
        *section(".dtb", b"tree"),
    )
    assert covered(found) & {*ENFORCED, BootPart.DEVICE_TREE} == {BootPart.KERNEL, BootPart.DEVICE_TREE}


def test_u_boot_without_an_initrd_or_with_an_empty_command_line() -> None:
    version = Measurement(0, 0x8, b"U-Boot 2026.01\0", b"U-Boot 2026.01\0")
    found = log(
        version,
        Measurement(8, EV_COMPACT_HASH, b"linux\0", b"kernel"),
        Measurement(9, EV_COMPACT_HASH, b"initrd\0", b"initrd\0"),
        Measurement(1, EV_CONFIG, b"\0", b"\0"),
    )
    assert covered(found) & {*ENFORCED} == {BootPart.KERNEL}


# --- proposals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "selection"),
    [
        ("secure-boot", "sha256:0,2,4,7,8,9,15"),
        ("edk2-grub-2.12", "sha256:0,2,4,7,8,9,15"),
        ("ovmf", "sha256:0,2,4,7,9,15"),
        ("uboot-efi-systemd-boot", "sha256:0,2,4,7,9,12,15"),
        ("uki", "sha256:0,2,4,7,11,15"),
        ("uboot-efi-uki", "sha256:0,2,4,7,11,15"),
        ("uboot-fit-bootm", "sha256:0,1,8,9,15"),
        ("uboot-booti", "sha256:0,1,9,15"),
    ],
)
def test_the_selection_that_fits_a_boot_chain(name: str, selection: str) -> None:
    proposal = propose(read_boot(LOGS[name], "sha256"), "sha256", 15)
    assert proposal is not None
    assert str(proposal.selection) == selection
    assert len(proposal.reasons) > 1
    found = coverage(LOGS[name], proposal.selection)
    assert {part.part for part in found.uncovered} == set(proposal.missing)


def test_a_proposal_says_what_no_selection_covers() -> None:
    proposal = propose(read_boot(LOGS["uboot-booti"], "sha256"), "sha256", 15)
    assert proposal is not None
    assert proposal.missing == (BootPart.KERNEL,)
    assert "bootm" in proposal.reasons[-1]
    assert propose(read_boot(LOGS["hcrtm"], "sha256"), "sha256", 15) is None
    assert read_boot(LOGS["hcrtm"], "sha256").chain is Chain.UNKNOWN


def test_names_of_parts() -> None:
    assert parse_part("command-line") is parse_part("command_line") is BootPart.COMMAND_LINE
    with pytest.raises(Malformed) as caught:
        parse_part("bootloader")
    assert caught.value.code == "request-malformed"

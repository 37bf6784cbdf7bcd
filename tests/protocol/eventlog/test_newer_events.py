"""Events of U-Boot and of newer firmware and systemd: how they are read, shown and explained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tang_attest.protocol.eventlog import describe, difference, measured_data, parse, replay
from tang_attest.protocol.eventlog.phases import (
    ALL_WORDS,
    INITRD_WORDS,
    measured_later,
    unexplained,
    words_between,
)

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs-arm64"
BOOTI, OTHER_LINE, FIT, UKI = (
    parse((LOGS / f"{name}.bin").read_bytes())
    for name in ("uboot-booti", "uboot-booti-other-command-line", "uboot-fit-bootm", "uboot-efi-uki")
)


def extended(value: bytes, *words: str) -> bytes:
    for word in words:
        value = hashlib.sha256(value + hashlib.sha256(word.encode()).digest()).digest()
    return value


def test_a_chain_of_u_boots_nodes_reads_as_one() -> None:
    image = next(event for event in UKI.events if event.type_name == "EV_EFI_BOOT_SERVICES_APPLICATION")
    assert describe(image) == r"U-Boot/HD(1,MBR,0xbe1afdfa)/\EFI\BOOT\BOOTAA64.EFI (28377600 bytes)"
    entry = next(event for event in UKI.events if describe(event).startswith("Boot0000"))
    assert describe(entry) == 'Boot0000 (EFI global): "virtio 0" U-Boot'


def test_tables_are_named() -> None:
    tables = next(event for event in UKI.events if event.type_name == "EV_EFI_HANDOFF_TABLES2")
    assert describe(tables) == '"SmbiosTable", 1 tables'


def test_the_boot_arguments_are_measured_text() -> None:
    arguments = next(event for event in FIT.events if event.type_name == "EV_PLATFORM_CONFIG_FLAGS")
    assert measured_data(arguments, "sha256") == arguments.data
    assert arguments.data.endswith(b"panic=-1\0")


def test_another_command_line_is_explained_word_by_word() -> None:
    sentences = [change.sentence for change in difference(BOOTI, OTHER_LINE, "sha256")]
    assert "the kernel command line gained init=/bin/sh" in sentences
    assert any(sentence.startswith('the device tree (claims: "dts") changed') for sentence in sentences)


def test_an_empty_range_is_called_one() -> None:
    kernel = next(change.sentence for change in difference(FIT, BOOTI, "sha256") if change.pcr == 8)
    assert kernel.startswith(
        "an empty range in place of the kernel (the same for whatever is booted) took the place"
    )


def test_words_that_systemd_measured_are_found_and_no_others() -> None:
    before = b"\x07" * 32
    for pcr, words in (
        (0, ("os-separator",)),
        (11, ("enter-initrd",)),
        (11, ("enter-initrd", "leave-initrd", "sysinit")),
    ):
        assert words_between(pcr, before, extended(before, *words), "sha256") == words
    assert words_between(11, before, before, "sha256") == ()
    assert words_between(11, before, extended(before, "sysinit", "enter-initrd"), "sha256") is None
    assert words_between(8, before, extended(before, "os-separator"), "sha256") is None
    assert words_between(11, before, extended(before, "sysinit"), "sha256", INITRD_WORDS) is None


def test_a_quote_that_only_words_of_systemd_separate_from_its_log_is_explained() -> None:
    values = replay(UKI, "sha256")
    later = values | {4: extended(values[4], "os-separator"), 11: extended(values[11], "enter-initrd")}
    assert not unexplained(UKI, "sha256", later)
    assert measured_later(UKI, "sha256", later) == {4: ("os-separator",), 11: ("enter-initrd",)}
    foreign = later | {9: b"\x01" * 32}
    assert [mismatch.pcr for mismatch in unexplained(UKI, "sha256", foreign)] == [9]


@pytest.mark.parametrize("pcr", [8, 10, 15, 16])
def test_pcrs_without_words(pcr: int) -> None:
    assert pcr not in ALL_WORDS

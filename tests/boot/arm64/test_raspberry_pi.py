"""The U-Boot of tools/raspberry-pi-boot: built for the Pi and looked into, built for QEMU and booted."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.boot.arm64 import chain
from tests.boot.arm64.chain import CHANGES, UBOOT
from tests.boot.hardware.platform import PC, UBOOT_ARM64
from tests.boot.images import cache
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

TOOL: Final = cache.ROOT / "tools/raspberry-pi-boot"
FRAGMENT: Final = cache.ROOT / "tools/raspberry-pi/measured-boot.config"
#: U-Boot's prompt; the Pi's board has another one than QEMU's.
UBOOT_PROMPT: Final = r"\n(=>|U-Boot>) "


def made(*options: str) -> Path:
    """Return the directory that the tool makes with *options*, and in it ``said``."""
    inputs = (TOOL, *cache.files_below(FRAGMENT.parent))

    def download(path: Path) -> None:
        subprocess.run([str(TOOL), "--download-only", str(path)], check=True, capture_output=True)

    source = cache.entry("ubootsource", cache.key("1", TOOL), download, keep=1)

    def make(path: Path) -> None:
        command = [str(TOOL), "--source", str(source), *options, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        (path / "said").write_text(result.stdout)

    return cache.entry("uboot", cache.key(*options, *inputs), make, keep=4)


def test_u_boot_for_the_pi_is_built_with_every_line_of_its_configuration() -> None:
    """The program has the one boot command, and no trace of scripts on the card."""
    directory = made()
    configuration = (directory / "u-boot.config").read_text().splitlines()
    on = {line for line in configuration if line.startswith("CONFIG_")}
    names = {line.partition("=")[0] for line in on}
    for line in FRAGMENT.read_text().splitlines():
        if line.startswith("CONFIG_"):
            assert line in on
        elif off := re.fullmatch(r"# (CONFIG_\w+) is not set", line):
            assert off[1] not in names
    assert "CONFIG_TARGET_RPI_ARM64=y" in on
    program = (directory / "u-boot.bin").read_bytes()
    assert program.count(b"bootcmd=bootdev hunt mmc;") == 1
    assert b"bootefi bootmgr" in program
    assert b"tcg,tpm_tis-spi" in program
    assert b"spi-gpio" in program
    assert b"uboot.env" not in program.replace(b"uboot.env fat 0 1", b"")  # a name for DFU


def test_two_builds_of_u_boot_have_the_same_version() -> None:
    """PCR 0 has the version with its time, which is that of Debian's source."""
    versions = {
        re.search(rb"U-Boot 20\d\d\.\d\d[^\0]*\(\w{3} \d\d 20\d\d - [\d:]{8} \+0000\)", program)[0]  # type: ignore[index]
        for program in (
            (made(*options) / "u-boot.bin").read_bytes() for options in ((), ("--board", "qemu_arm64"))
        )
    }
    assert len(versions) == 1


def test_the_overlay_puts_the_tpm_into_the_trees_of_a_pi_3_and_a_pi_4() -> None:
    """The tool applies it to the trees that came with U-Boot, and stops where it does not fit."""
    said = (made() / "said").read_text()
    assert re.findall(r"the overlay fits (\S+)\.\n", said) == ["bcm2711-rpi-4-b", "bcm2837-rpi-3-b"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[World]:
    """A machine with the Pi's configuration of U-Boot, which nobody has enrolled."""
    platform = replace(
        UBOOT_ARM64,
        firmware=made("--board", "qemu_arm64") / "u-boot.bin",
        boot_disk=PC.boot_disk,
    )
    partition = tmp_path / "partition"
    UBOOT.make_partition(partition, chain.system())
    yield World.new(tmp_path / "world", chain.VARIANT, platform=platform, image=partition)
    for image in tmp_path.glob("world/*.img"):
        image.unlink()


def test_the_configuration_of_the_pi_measures_and_opens_a_root_in_qemu(
    machine: World, tmp_path: Path
) -> None:
    """Refused, approved while it waits, and with a changed command line refused again."""
    changed = tmp_path / "changed"
    UBOOT.make_partition(changed, CHANGES["command line"](chain.system(), tmp_path))
    with machine.site:
        machine.site.enroll(machine.machine, NAME, machine.root_disk, selection=UBOOT.selection)
        with machine.boot() as console:
            console.wait_for(PROMPT)
            assert console.wait_for(REFUSED)[1] == UBOOT.first_refusal
            machine.site.approve(NAME)
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
            said = console.shell("tpm2 pcrread sha256:0,4,11")
            assert len(re.findall(r"0x[0-9A-F]{64}", said)) == 3
            assert "0" * 64 not in said
        with machine.boot(image=changed) as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "pcr-mismatch"
            for pcr in UBOOT.pcrs["command line"]:
                assert f"PCR {pcr}:" in refused[2]
            open_by_passphrase(console)


def test_no_key_stops_the_boot_of_the_pi(machine: World, tmp_path: Path) -> None:
    """With nothing to start, U-Boot resets: an attacker at the console gets no prompt at which to tell the TPM."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with machine.boot(image=empty) as console:
        for keys in ("", " ", "\x03", "q", "\x03\x03"):
            console.type(keys)
        console.wait_for(r"U-Boot found nothing to start and resets")
        for keys in ("\x03", "", "\x03\x03"):
            console.type(keys)
        # QEMU ends at the reset.
        console.goes_off_without(UBOOT_PROMPT)

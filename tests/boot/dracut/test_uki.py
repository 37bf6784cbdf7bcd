"""A unified kernel image: systemd's stub, the kernel, the initrd of dracut and the command line in one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.boot.dracut import system
from tests.boot.dracut.world import PROMPT, approve, at, open_by_passphrase
from tests.boot.hardware.cap import cap_texts
from tests.boot.images.loaders import unify
from tests.boot.world import NAME, REFUSED, ROOT_IS_OPEN, UNLOCKED, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: Firmware, option ROMs, the image as the firmware sees it, Secure Boot, the image as the stub sees it, the cap.
SELECTION: Final = "sha256:0,2,4,7,11,15"


def unified_image(path: Path, command_line: str) -> Path:
    """Make one at *path*, as ukify does."""
    built = system.build()
    line = path.with_suffix(".cmdline")
    line.write_text(command_line)
    sections = {
        "osrel": built.root / "usr/lib/os-release",
        "cmdline": line,
        "linux": built.kernel,
        "initrd": built.initrd,
    }
    unify(path, built.root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub", sections)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An enrolled and approved machine that starts a unified kernel image."""
    directory = tmp_path_factory.mktemp("uki")
    image = unified_image(directory / "image.efi", system.COMMAND_LINE)
    approve(directory / "world", SELECTION, image)
    yield at(directory / "world", image)
    for disk in directory.glob("world/*.img"):
        disk.unlink()


def test_uki_an_approved_image_opens_by_itself(world: World) -> None:
    """PCR 4 and PCR 11 hold what the operator approved."""
    with world.site, world.boot() as console:
        console.wait_for(UNLOCKED)
        console.wait_for(ROOT_IS_OPEN)
        assert cap_texts(console)
        assert "0" * 64 not in console.shell("tpm2 pcrread sha256:11")


def test_uki_a_changed_image_is_refused_until_it_is_approved(world: World, tmp_path: Path) -> None:
    """Only the command line inside differs, so the firmware and the stub both measure something else."""
    changed = replace(
        world,
        machine=replace(
            world.machine, image=unified_image(tmp_path / "changed.efi", f"{system.COMMAND_LINE} changed=yes")
        ),
    )
    with world.site:
        with changed.boot() as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "pcr-mismatch"
            assert "PCR 4: boot loader, kernel; PCR 11: unified kernel image" in refused[2]
            open_by_passphrase(console)
            assert cap_texts(console)
        world.site.approve(NAME)
        with changed.boot() as console:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)

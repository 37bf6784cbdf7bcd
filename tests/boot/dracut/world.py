"""A machine with dracut's initrd and two encrypted volumes, its server, and what its console says."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.boot.dracut import system
from tests.boot.hardware.machine import Console, Machine
from tests.boot.hardware.platform import PC, Platform
from tests.boot.images import cache, disk
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID
from tests.boot.site import Site
from tests.boot.world import NAME, REFUSED, ROOT_IS_OPEN, SELECTION, UNLOCKED, World, shared

PROMPT: Final = r"Please enter passphrase for disk [^\n]*(root|second)"


def at(directory: Path, image: Path | None = None, platform: Platform = PC) -> World:
    """The world in *directory*; its machine starts a unified kernel *image*, if there is one."""
    built = system.build()
    machine = Machine(
        directory / "machine",
        built.kernel,
        built.initrd,
        [directory / "root.img", directory / "second.img"],
        command_line=system.COMMAND_LINE,
        image=image,
        platform=platform,
    )
    return World(directory, built, Site(directory / "site"), machine, {"platform": platform})


def approve(
    directory: Path,
    selection: str = SELECTION,
    image: Path | None = None,
    platform: Platform = PC,
    *,
    opened: bool = False,
) -> None:
    """Make an enrolled and approved machine in *directory*; with *opened*, it waits for that and opens."""
    built = system.build()
    directory.mkdir()
    disk.copy(disk.root_image(built.root, built.name, ROOT_UUID), directory / "root.img")
    payload = directory / "payload"
    disk.filesystem(payload, 8192)
    disk.luks_image(directory / "second.img", payload, SECOND_UUID)
    world = at(directory, image, platform)
    with world.site:
        world.site.enroll(world.machine, NAME, world.root_disk, selection=selection)
        with world.machine.tpm as tpm:
            world.site.bind(world.machine, tpm, NAME, directory / "second.img")
        with world.boot() as console:
            console.wait_for(PROMPT)
            # With PCR 11 in it, which moves while a system runs, nothing was recorded at enrollment.
            assert console.wait_for(REFUSED)[1] == ("policy-empty" if image else "pcr-mismatch")
            if opened:
                world.site.approve(NAME)
                console.wait_for(UNLOCKED)
        if not opened:
            world.site.approve(NAME)


def approved(factory: pytest.TempPathFactory) -> World:
    """An enrolled and approved machine, made once for a whole run; to be copied, not used."""
    return at(cache.once(shared(factory) / "dracut", approve))


def open_by_passphrase(console: Console) -> None:
    """Type the passphrase at the prompt that is there; systemd tries it with the other volume, too."""
    console.type(disk.PASSPHRASE)
    console.wait_for(ROOT_IS_OPEN)

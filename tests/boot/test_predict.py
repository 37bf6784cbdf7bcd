"""The prediction against the boot that follows: a new initrd and another command line, and nobody types anything.

GRUB, by default, because most is measured there; ``LOADER=systemd-boot`` or ``LOADER=unified`` in the environment tries
another way to boot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.hardware.machine import COMMAND_LINE
from tests.boot.images import disk
from tests.boot.images.loaders import LOADERS, System, pc
from tests.boot.images.tree import Variant, build
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1200)]

#: All that a boot loader, a kernel, an initrd and a command line may be measured into, and the cap.
SELECTION = "sha256:0,2,4,7,8,9,11,12,15"
LOADER = os.environ.get("LOADER", "grub")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A machine that nobody has enrolled."""
    world = World.new(tmp_path / "world", Variant(python=True))
    yield world
    for image in tmp_path.rglob("*.img"):
        image.unlink()


def test_the_predicted_boot_opens_by_itself(world: World, tmp_path: Path) -> None:
    """Enrolled, approved, updated, predicted in the running system, approved before the reboot."""
    now, then = tmp_path / "now", tmp_path / "then"
    changed = build(Variant(python=True, touched="predicted")).initrd
    kernel, initrd, line = world.built.kernel, world.built.initrd, COMMAND_LINE
    old = System(version="6.1.0-28", kernel=kernel, initrd=initrd, options=line)
    new = System(version="6.1.0-29", kernel=kernel, initrd=changed, options=f"{line} changed=yes")
    LOADERS[LOADER](now, old, pc())
    LOADERS[LOADER](then, new, pc())
    update = world.directory / "update.img"
    disk.filesystem(update, 131072, then)
    disks = [world.root_disk, update]
    with world.site:
        world.site.enroll(world.machine, NAME, world.root_disk, selection=SELECTION)
        with world.boot(image=now, disks=disks) as console:
            console.wait_for(PROMPT)
            # PCR 11 moves while a system runs, so nothing was recorded at enrollment.
            assert console.wait_for(REFUSED)[1] == "policy-empty"
            open_by_passphrase(console)
            world.site.approve(NAME)
            console.shell("ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1")
            console.shell("mount -t securityfs none /sys/kernel/security")
            # Directory of the update; the machine itself has its partition mounted there.
            console.shell("mkdir -p /tmp/root/boot/efi; mount -r /dev/vdb /tmp/root/boot/efi")
            said = console.shell("clevis-attest-predict --root /tmp/root --label next; echo status $?", 300)
            assert "status 0" in said, console.shell("clevis-attest-predict --print --root /tmp/root", 300)
            assert 'announced: "next" waits for approval' in said
        world.site.operator("policy", "stage", NAME, "--announced", "next")
        with world.boot(image=then, disks=disks) as console:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
            assert "changed=yes" in console.shell("cat /proc/cmdline")

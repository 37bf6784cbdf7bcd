"""The prediction against the boot that follows: a new initrd and another command line, and nobody types anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot import disk
from tests.boot.loaders import LOADERS
from tests.boot.machine import COMMAND_LINE
from tests.boot.tree import Variant, build
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1200)]

#: All that a boot loader, a kernel, an initrd and a command line may be measured into, and the cap.
SELECTION = "sha256:0,2,4,7,8,9,12,15"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A machine that nobody has enrolled."""
    world = World.new(tmp_path / "world", Variant())
    yield world
    for image in tmp_path.rglob("*.img"):
        image.unlink()


@pytest.mark.parametrize("loader", sorted(LOADERS))
def test_the_predicted_boot_opens_by_itself(world: World, tmp_path: Path, loader: str) -> None:
    """Enrolled, approved, updated, predicted in the running system, approved before the reboot."""
    now, then = tmp_path / "now", tmp_path / "then"
    changed = build(Variant(touched="predicted")).initrd
    LOADERS[loader](now, "6.1.0-28", world.built.kernel, world.built.initrd, COMMAND_LINE)
    LOADERS[loader](then, "6.1.0-29", world.built.kernel, changed, f"{COMMAND_LINE} changed=yes")
    update = world.directory / "update.img"
    disk.filesystem(update, 131072, then)
    disks = [world.root_disk, update]
    with world.site:
        world.site.enroll(world.machine, NAME, world.root_disk, selection=SELECTION)
        with world.boot(image=now, disks=disks) as console:
            console.wait_for(PROMPT)
            assert console.wait_for(REFUSED)[1] == "pcr-mismatch"
            open_by_passphrase(console)
            world.site.operator("approve", NAME)
            console.shell("ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1")
            console.shell("mount -t securityfs none /sys/kernel/security")
            # Where the update is; the machine itself has its partition mounted there.
            console.shell("mkdir -p /tmp/root/boot/efi; mount -r /dev/vdb /tmp/root/boot/efi")
            said = console.shell("clevis-attest-predict --root /tmp/root --label next; echo status $?", 300)
            assert "status 0" in said, console.shell("clevis-attest-predict --print --root /tmp/root", 300)
            assert 'announced: "next" waits for approval' in said
        world.site.operator("policy", "approve", NAME, "next")
        with world.boot(image=then, disks=disks) as console:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
            assert "changed=yes" in console.shell("cat /proc/cmdline")

"""A machine whose initrd dracut made, with systemd in it, and two encrypted volumes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.boot import disk, dracut
from tests.boot.machine import Console, Machine
from tests.boot.site import Site
from tests.boot.tree import ROOT_UUID, SECOND_UUID
from tests.boot.world import NAME, REFUSED, ROOT_IS_OPEN, SELECTION, UNLOCKED, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1200)]

PROMPT: Final = r"Please enter passphrase for disk [^\n]*(root|second)"
#: What PCR 15 holds when it was extended once with the cap's event.
CAPPED: Final = hashlib.sha256(bytes(32) + hashlib.sha256(b"tang-attest/v1 cap\n").digest()).hexdigest()
#: Ask the server for the key of the first token of a disk, as the initrd does, and say only whether it was given.
BY_HAND: Final = (
    "cryptsetup token export --token-id 0 {device} | jose fmt -j- -Og jwe -o- | jose jwe fmt -i- -c |"
    " clevis-decrypt-attest >/run/key; echo exit $?; cat /run/key | sha256sum"
)
NO_KEY: Final = f"exit 1\n{hashlib.sha256().hexdigest()}"


def approve(directory: Path) -> None:
    """Make an enrolled and approved machine in *directory*."""
    built = dracut.build()
    directory.mkdir()
    disk.copy(disk.root_image(built.root, built.name, ROOT_UUID), directory / "root.img")
    payload = directory / "payload"
    disk.filesystem(payload, 8192)
    disk.luks_image(directory / "second.img", payload, SECOND_UUID)
    world = at(directory)
    with world.site:
        world.site.enroll(world.machine, NAME, world.root_disk, selection=SELECTION)
        with world.machine.tpm as tpm:
            world.site.bind(world.machine, tpm, NAME, directory / "second.img")
        with world.boot() as console:
            console.wait_for(PROMPT)
            assert console.wait_for(REFUSED)[1] == "pcr-mismatch"
        world.site.operator("approve", NAME)


def at(directory: Path) -> World:
    """The world in *directory*."""
    built = dracut.build()
    disks = [directory / "root.img", directory / "second.img"]
    machine = Machine(
        directory / "machine", built.kernel, built.initrd, disks, command_line=dracut.COMMAND_LINE
    )
    return World(directory, built, Site(directory / "site"), machine)


@pytest.fixture(scope="session")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], World]:
    """An enrolled and approved machine; to be copied, not used."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent  # which the workers share

    def get() -> World:
        with (directory / "dracut.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / "dracut" / "done").exists():
                approve(directory / "dracut")
                (directory / "dracut" / "done").touch()
        return at(directory / "dracut")

    return get


@pytest.fixture
def world(approved: Callable[[], World], tmp_path: Path) -> Iterator[World]:
    """A copy for one test; its disks are removed after it."""
    approved().copy(tmp_path / "world")
    yield at(tmp_path / "world")
    for image in tmp_path.glob("world/*.img"):
        image.unlink()


def open_by_passphrase(console: Console) -> None:
    """Type the passphrase at the prompt that is there; systemd tries it with the other volume, too."""
    console.type(disk.PASSPHRASE)
    console.wait_for(ROOT_IS_OPEN)


def test_dracut_an_approved_machine_boots_to_its_login_prompt_by_itself(world: World) -> None:
    """Nobody types anything; the server's audit record says who was let in."""
    with world.site, world.boot(systemd=True) as console:
        console.wait_for(UNLOCKED)
        console.wait_for(r"guest login:", timeout=400)
        newest = next(record for record in world.site.audit(NAME) if record["event"] == "unlock")
        assert newest["verdict"] == "permitted"
        assert "tang-attest: no server" not in console.said


def test_dracut_a_changed_boot_is_refused_and_the_passphrase_opens(world: World) -> None:
    """The console names the PCR, the passphrase opens, and the running system is capped; approved, it opens by itself.

    The cap comes after the last volume: it is there once, and both volumes are open.
    """
    changes: dict[str, Any] = {"command_line": f"{dracut.COMMAND_LINE} changed=yes"}
    with world.site:
        with world.boot(**changes) as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "pcr-mismatch"
            assert "PCR 9: initrd, command line" in refused[2]
            assert f"tang-attest approve {NAME}" in refused[2]
            open_by_passphrase(console)
            assert "opened without attestation (pcr-mismatch)" in console.said
            assert CAPPED in console.shell("tpm2 pcrread sha256:15").lower()
        world.site.operator("approve", NAME)
        with world.boot(**changes) as console:
            console.wait_for(UNLOCKED)
            assert "second" in console.wait_for(ROOT_IS_OPEN + r": ([^\n]*)\n")[1]
            assert CAPPED in console.shell("tpm2 pcrread sha256:15").lower()
            console.shell("ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1")
            said = console.shell(BY_HAND.format(device="/dev/vda"))
            assert "refused (capped)" in said
            assert NO_KEY in said


def test_dracut_the_emergency_shell_cannot_ask_for_the_key_of_another_disk(world: World) -> None:
    """The root disk is pulled out; the second one is opened by attestation, but before the shell it is closed again."""
    with world.site, world.boot(disks=world.machine.disks[1:]) as console:
        console.wait_for(r"tang-attest: this boot is capped", timeout=400)
        console.wait_for(r"tang-attest: second is closed")
        enter_shell(console)
        assert "second" not in console.shell("ls /dev/mapper")
        said = console.shell(BY_HAND.format(device="/dev/vda"))
        assert "refused (capped)" in said
        assert NO_KEY in said


def enter_shell(console: Console) -> None:
    """The emergency shell wants one more Enter."""
    console.wait_for(r"Entering emergency mode")
    console.wait_for(r"Press Enter for maintenance|# ")
    console.type("")


def test_dracut_where_there_is_nothing_to_cap_there_is_no_emergency_shell(world: World) -> None:
    """No TPM answers and the disks are missing: a TPM could still come up later, so nobody gets a shell."""
    with world.site, world.boot(has_tpm=False, disks=[]) as console:
        console.wait_for(r"tang-attest: no shell", timeout=400)
        console.wait_for(r"Reset the machine")
        console.type("\x03")
        with pytest.raises(AssertionError):
            console.wait_for(r"emergency mode|maintenance|# ", timeout=10)

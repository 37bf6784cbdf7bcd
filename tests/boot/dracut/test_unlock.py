"""A machine whose initrd dracut made, with systemd in it, and two encrypted volumes."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import pytest

from tests.boot.dracut import system
from tests.boot.dracut.world import PROMPT, open_by_passphrase
from tests.boot.hardware.cap import cap_texts, text
from tests.boot.hardware.machine import PATIENCE, Console, Network
from tests.boot.images import disk
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID
from tests.boot.world import NAME, REFUSED, ROOT_IS_OPEN, UNLOCKED, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: Ask the server for the key of the first token of a disk, as the initrd does, and say only whether it was given.
BY_HAND: Final = (
    "cryptsetup token export --token-id 0 {device} | jose fmt -j- -Og jwe -o- | jose jwe fmt -i- -c |"
    " clevis-decrypt-attest >/run/key; echo exit $?; cat /run/key | sha256sum"
)
NO_KEY: Final = f"exit 1\n{hashlib.sha256().hexdigest()}"


@pytest.fixture
def world(dracut_machine: World) -> World:
    """An enrolled and approved machine, for one test."""
    return dracut_machine


def test_dracut_an_approved_machine_boots_to_its_login_prompt_by_itself(world: World) -> None:
    """Nobody types anything; the server's audit record says who was let in."""
    with world.site, world.boot(systemd=True) as console:
        console.wait_for(UNLOCKED)
        console.wait_for(r"guest login:", 2 * PATIENCE)
        newest = next(record for record in world.site.audit(NAME) if record["event"] == "unlock")
        assert newest["verdict"] == "permitted"
        assert "tang-attest: no server" not in console.said


def test_dracut_a_changed_boot_is_refused_and_the_passphrase_opens(world: World) -> None:
    """The console names the PCR, the passphrase opens, and the running system is capped; approved, it opens by itself.

    The cap comes after the last volume: it is there once, and both volumes are open.
    """
    changes: dict[str, Any] = {"command_line": f"{system.COMMAND_LINE} changed=yes"}
    with world.site:
        with world.boot(**changes) as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "pcr-mismatch"
            assert "PCR 9: initrd, command line" in refused[2]
            assert f"tang-attest approve {NAME}" in refused[2]
            open_by_passphrase(console)
            assert "opened without attestation (pcr-mismatch)" in console.said
            assert cap_texts(console) == [text({ROOT_UUID: "passphrase", SECOND_UUID: "passphrase"})]
        world.site.approve(NAME)
        with world.boot(**changes) as console:
            console.wait_for(UNLOCKED)
            assert "second" in console.wait_for(ROOT_IS_OPEN + r": ([^\n]*)\n")[1]
            assert cap_texts(console) == [text({ROOT_UUID: "attested", SECOND_UUID: "attested"})]
            console.shell("ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1")
            said = console.shell(BY_HAND.format(device="/dev/vda"))
            assert "refused (capped)" in said
            assert NO_KEY in said


def test_dracut_a_silent_network_delays_neither_the_prompt_nor_the_passphrase(world: World) -> None:
    """Nobody answers DHCP: the passphrase wins over the pin, which has not even begun."""
    with world.site, world.boot(network=Network(cards=2, silent=True)) as console:
        console.wait_for(PROMPT)
        prompted = console.elapsed()
        open_by_passphrase(console)
        assert console.elapsed() - prompted < 120
        assert cap_texts(console)


def enter_shell(console: Console) -> None:
    """Press Enter as sulogin wants it, and see the emergency shell's prompt."""
    console.wait_for(r"Press Enter for maintenance")
    console.answer(r"to continue\): ", "", r"# ")


def test_dracut_the_emergency_shell_cannot_ask_for_the_key_of_another_disk(world: World) -> None:
    """The root disk is pulled out; the second one is opened by attestation, but before the shell it is closed again."""
    with world.site, world.boot(disks=world.machine.disks[1:]) as console:
        console.wait_for(r"tang-attest: this boot is capped")
        console.wait_for(r"tang-attest: second is closed")
        enter_shell(console)
        assert "second" not in console.shell("ls /dev/mapper")
        said = console.shell(BY_HAND.format(device="/dev/vda"))
        assert "refused (capped)" in said
        assert NO_KEY in said


def test_dracut_damage_to_an_opened_root_gives_no_shell_that_can_read_it(world: World) -> None:
    """Somebody without the passphrase damages the encrypted file system: it opens, cannot be mounted, and is closed."""
    with world.root_disk.open("r+b") as image:
        # Not the first block: systemd waits for ever for a volume on which it recognizes nothing.
        image.seek(disk.PAYLOAD_OFFSET + 4096)
        image.write(bytes(65536))
    with world.site, world.boot() as console:
        console.wait_for(r"tang-attest: this boot is capped")
        console.wait_for(r"tang-attest: root is closed")
        enter_shell(console)
        assert "root" not in console.shell("ls /dev/mapper")


def test_dracut_where_there_is_nothing_to_cap_there_is_no_emergency_shell(world: World) -> None:
    """No TPM answers and the disks are missing: a TPM could still come up later, so nobody gets a shell."""
    with world.site, world.boot(has_tpm=False, disks=[]) as console:
        console.wait_for(r"tang-attest: no shell")
        console.wait_for(r"Reset the machine")
        console.type("\x03")
        console.stays_without(r"emergency mode|maintenance|# ", 10)

"""A machine whose root opens by itself, or does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.boot.hardware.cap import cap_texts, text
from tests.boot.hardware.machine import COMMAND_LINE, PATIENCE, SERVER, SERVER_PORT, Machine, Network
from tests.boot.images import disk
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID, Variant, build
from tests.boot.world import (
    NAME,
    PROMPT,
    REFUSED,
    ROOT_IS_OPEN,
    SELECTION,
    UNLOCKED,
    World,
    open_by_passphrase,
)

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: The cap of a boot in which a person typed the passphrase, and of one in which nobody had to.
BY_PASSPHRASE = [text({ROOT_UUID: "passphrase"})]
BY_ATTESTATION = [text({ROOT_UUID: "attested"})]


def test_an_approved_machine_boots_to_its_login_prompt_by_itself(world: World) -> None:
    """Enrolled, in the approved state: nobody types anything; the server's audit record says who was let in."""
    with world.site, world.boot(systemd=True) as console:
        console.wait_for(UNLOCKED)
        console.wait_for(r"guest login:", 2 * PATIENCE)
        newest = next(record for record in world.site.audit(NAME) if record["event"] == "unlock")
    assert newest["verdict"] == "permitted"


def changed_kernel(world: World) -> Path:
    """The kernel with another version string in its header, which nothing reads at boot."""
    path = world.directory / "changed-kernel"
    image = world.built.kernel.read_bytes()
    assert b"(debian-kernel@" in image[:32768]
    path.write_bytes(image.replace(b"(debian-kernel@", b"(Debian-kernel@", 1))
    return path


def what_changed(world: World) -> set[str]:
    """The server's explanation of the newest refused boot: it has the machine's event log."""
    [newest] = json.loads(world.site.operator("observation", "list", "--limit", "1", "--json"))
    shown = json.loads(world.site.operator("observation", "show", str(newest["id"]), "--json"))
    assert shown["doubts"] == []
    return {change["sentence"].partition(" (claims")[0] for change in shown["changes"]}


@pytest.mark.parametrize(
    ("what", "pcr", "meaning", "told"),
    [
        pytest.param("command line", 9, "command line", {"the kernel command line"}, id="command line"),
        pytest.param("initrd", 9, "initrd", {"the initrd"}, id="initrd"),
        pytest.param("kernel", 4, "kernel", {"a boot application"}, id="kernel"),
    ],
)
def test_a_changed_boot_is_refused_until_it_is_approved(
    world: World, what: str, pcr: int, meaning: str, told: set[str]
) -> None:
    """The console names the PCR and the server the change; the passphrase opens; approved, it opens by itself."""
    changes: dict[str, object] = {}
    if what == "command line":
        # The network has to come up with a plain ip=dhcp, too.
        changes = {"command_line": f"{COMMAND_LINE} ip=dhcp"}
    elif what == "initrd":
        changes = {"initrd": build(Variant(touched="yes")).initrd}
    else:
        changes = {"kernel": changed_kernel(world)}
    with world.site:
        with world.boot(**changes) as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "pcr-mismatch"
            assert f"PCR {pcr}" in refused[2]
            assert meaning in refused[2]
            assert f"tang-attest approve {NAME}" in refused[2]
            open_by_passphrase(console)
            assert cap_texts(console) == BY_PASSPHRASE
        # QEMU before version 10 writes the initrd's size into the kernel's header.
        beside = {"a boot application"} if what == "initrd" else set()
        assert told <= what_changed(world) <= told | beside
        world.site.approve(NAME)
        with world.boot(**changes) as console:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
            assert cap_texts(console) == BY_ATTESTATION


def test_without_a_server_the_prompt_is_there_and_the_passphrase_opens(world: World) -> None:
    """The console says which addresses were tried, and clevis-attest-status says it again after the boot."""
    with world.boot() as console:
        console.wait_for(PROMPT)
        said = console.wait_for(r"tang-attest: no server gave an answer: ([^\n]*)\n")
        assert f"http://{SERVER}:{SERVER_PORT}" in said[1]
        open_by_passphrase(console)
        assert cap_texts(console) == BY_PASSPHRASE
        assert "the last unlock failed (unreachable)" in console.shell("clevis-attest-status")


def test_a_machine_that_waits_opens_when_its_server_is_back(world: World) -> None:
    """After a power failure the server may be the slower one; nobody has to go to the machine."""
    with world.site:
        network = world.network
    with world.boot(network=network) as console:
        console.wait_for(r"tang-attest: no server gave an answer")
        with world.site:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)


def test_without_a_network_card_the_prompt_is_there_and_the_passphrase_opens(world: World) -> None:
    """The console says that there is no network interface."""
    with world.site, world.boot(network=Network(cards=0)) as console:
        console.wait_for(PROMPT)
        console.wait_for(r"tang-attest: no network: there is no network interface")
        open_by_passphrase(console)


def test_a_silent_network_delays_neither_the_prompt_nor_the_passphrase(world: World) -> None:
    """Nobody answers DHCP: a passphrase typed at once wins over the pin, which is still waiting."""
    with world.site, world.boot(network=Network(cards=2, silent=True)) as console:
        console.wait_for(PROMPT)
        prompted = console.elapsed()
        open_by_passphrase(console)
        assert console.elapsed() - prompted < 120
        assert cap_texts(console) == BY_PASSPHRASE
        left = r"$(cat /dev/null $(grep -ls 'c[l]evis-\|ip[c]onfig' /proc/[0-9]*/cmdline) | tr '\0' ' ')"
        assert "left=[]" in console.shell(f'echo "left=[{left}]"')


def test_of_several_network_cards_the_one_with_an_answer_is_enough(world: World) -> None:
    """Two cables go nowhere, the third leads to the server."""
    with world.site, world.boot(network=Network(cards=3, server_port=world.site.port)) as console:
        console.wait_for(ROOT_IS_OPEN)
        assert "tang-attest: unlocked by attestation" in console.said


def test_a_disk_in_another_machine_stays_closed(world: World, tmp_path: Path) -> None:
    """Same hardware, kernel and initrd, and a key at the same handle of its TPM; but it is another TPM."""
    thief = Machine(
        tmp_path / "thief", world.built.kernel, world.built.initrd, [world.root_disk], world.network
    )
    decoy = tmp_path / "decoy.img"
    payload = tmp_path / "payload"
    disk.filesystem(payload, 4096)
    disk.luks_image(decoy, payload, "0f6e5a3c-0000-4000-8000-00000000000d")
    with world.site:
        world.site.enroll(thief, "pi-x", decoy, selection=SELECTION)
        with replace(thief, network=world.network).boot() as console:
            console.wait_for(PROMPT)
            assert console.wait_for(REFUSED)[1] == "signature-invalid"
            open_by_passphrase(console)


def test_a_removed_device_is_refused_for_good(world: World) -> None:
    """Its exchange key is destroyed; the passphrase still opens."""
    with world.site:
        world.site.operator("device", "remove", "--yes", NAME)
        with world.boot() as console:
            console.wait_for(PROMPT)
            assert console.wait_for(REFUSED)[1] == "key-unknown"
            open_by_passphrase(console)


#: Ask the server for the key of the first token of DEVICE, as the initrd does, and say only whether it was given.
BY_HAND = (
    "cryptsetup token export --token-id 0 {device} | jose fmt -j- -Og jwe -o- | jose jwe fmt -i- -c |"
    " clevis decrypt >/run/key; echo exit $?; wc -c </run/key"
)


def test_the_running_system_cannot_ask_for_its_own_key(world: World) -> None:
    """Root on the machine that was just let in makes an honest quote: refused as capped."""
    with world.site, world.boot() as console:
        console.wait_for(ROOT_IS_OPEN)
        console.shell("ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1")
        said = console.shell(BY_HAND.format(device="/dev/vda"))
        assert "refused (capped)" in said
        assert "exit 1\n0\n" in said


def test_a_second_volume_opens_in_the_same_boot(new_world: Callable[[Variant], World]) -> None:
    """The cap comes after the last volume, not after the first.

    The server speaks HTTPS with a key that the bindings name, and the second volume's binding is in an sss policy.
    """
    world = new_world(Variant(second=True))
    assert world.site.https
    with world.site, world.boot() as console:
        console.wait_for(UNLOCKED)
        assert "second" in console.wait_for(ROOT_IS_OPEN + r": ([^\n]*)\n")[1]
        assert cap_texts(console) == [text({ROOT_UUID: "attested", SECOND_UUID: "attested"})]


def test_a_rescue_shell_cannot_ask_for_the_key_of_another_disk(new_world: Callable[[Variant], World]) -> None:
    """The root disk is pulled out; the approved initrd gives a root shell, but capped."""
    world = new_world(Variant(second=True))
    with world.site, world.boot(disks=world.machine.disks[1:]) as console:
        console.wait_for(r"tang-attest: this boot is capped")
        console.wait_for(r"\(initramfs\)")
        said = console.shell(BY_HAND.format(device="/dev/vda"))
        assert "refused (capped)" in said
        assert "exit 1\n0\n" in said


def test_damage_to_an_opened_root_gives_no_shell_that_can_read_it(world: World) -> None:
    """Somebody without the passphrase damages the encrypted file system: it opens, cannot be mounted, and is closed."""
    with world.root_disk.open("r+b") as image:
        image.seek(disk.PAYLOAD_OFFSET)
        image.write(bytes(65536))
    with world.site, world.boot() as console:
        console.wait_for(PROMPT)
        console.wait_for(r"root: set up successfully")
        console.wait_for(r"tang-attest: this boot is capped")
        console.wait_for(r"tang-attest: root is closed")
        console.wait_for(r"\(initramfs\)")
        assert "root" not in console.shell("ls /dev/mapper")


def test_where_there_is_nothing_to_cap_there_is_no_rescue_shell(world: World) -> None:
    """No TPM answers and the root disk is missing: a TPM could still come up later, so nobody gets a shell."""
    with world.site, world.boot(has_tpm=False, disks=[]) as console:
        console.wait_for(r"tang-attest: no shell")
        console.wait_for(r"Reset the machine")
        assert "(initramfs)" not in console.said


def test_without_a_tpm_the_console_says_so_and_the_passphrase_opens(world: World) -> None:
    """The TPM is missing: one line, and a boot by passphrase."""
    with world.site, world.boot(has_tpm=False) as console:
        console.wait_for(PROMPT)
        console.wait_for(r"tang-attest: there is no TPM 2\.0")
        open_by_passphrase(console)


def test_a_reboot_that_does_not_reset_the_tpm_is_refused(world: World) -> None:
    """As on a board where nothing pulses the TPM's reset line: the PCRs of two boots are on top of each other."""
    with world.site, replace(world.machine, network=world.network).without_tpm_reset() as boot:
        with boot() as console:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
        with boot() as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "tpm-not-reset"
            open_by_passphrase(console)

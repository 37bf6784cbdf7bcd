"""Somebody holds the disks of an approved machine with initramfs-tools: each test is an attack that worked once.

Firmware, kernel, initrd and command line are as approved, and the TPM is the machine's own.  These attacks
need a screwdriver, an image of the disk, and no key.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.boot.hardware import efi_variable
from tests.boot.hardware.cap import HEADER, cap_texts, text
from tests.boot.hardware.machine import COMMAND_LINE, PATIENCE, Machine, Network
from tests.boot.images import disk
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID, Variant
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase
from tests.initrd import header

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: PID 1's shell sources this instead of initramfs-tools' own order: it asks for the key with the copied token.
_ORDER = """
exec >/dev/console 2>&1
echo "attacker: pid $$"
export PATH=/sbin:/usr/sbin:/bin:/usr/bin TPM2TOOLS_TCTI=device:/dev/tpmrm0
echo "attacker: PCR 15 $(tpm2 pcrread sha256:15 | sed -n 's/.*0x//p')"
clevis decrypt </scripts/jwe >/run/key
echo "attacker: $(wc -c </run/key) bytes of the key"
while :; do sleep 60; done
"""


def file_system(
    directory: Path, name: str, files: dict[str, str], links: dict[str, str], *, runnable: bool = False
) -> Path:
    """A small ext4 file system whose files may be run; with *runnable*, /bin/sh is this host's busybox with its libraries."""
    tree = directory / f"{name}.tree"
    for path in ("bin", "dev", "etc", "proc", "run", "sbin", "sys"):
        (tree / path).mkdir(parents=True)
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
        (tree / path).chmod(0o755)
    for path, target in links.items():
        (tree / path).symlink_to(target)
    if runnable:
        busybox = shutil.which("busybox")
        assert busybox
        shutil.copy(busybox, tree / "bin/sh")
        said = subprocess.run(["ldd", busybox], check=True, capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", said):
            (tree / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, tree / library[1:])
    image = directory / f"{name}.ext4"
    disk.filesystem(image, 16384, tree)
    return image


def own_volume(directory: Path, payload: Path, token: dict[str, object] | None = None) -> Path:
    """Somebody's own LUKS volume with the root's UUID and a passphrase of theirs, and a token that they copied."""
    image = directory / "own.img"
    disk.luks_image(image, payload, ROOT_UUID)
    if token is not None:
        # A token names a key slot: theirs has another key.
        keys = f"{disk.PASSPHRASE}\nanother key\n"
        for secret, command in (
            (keys, ["luksAddKey", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"]),
            (json.dumps(token), ["token", "import"]),
        ):  # fmt: skip
            arguments = ["cryptsetup", *command, "--batch-mode", str(image)]
            subprocess.run(arguments, input=secret.encode(), check=True, capture_output=True)
    return image


def compact(token: dict[str, object]) -> str:
    """The JWE of a token as clevis passes it on."""
    jwe = token["jwe"]
    assert isinstance(jwe, dict)
    return ".".join(jwe[name] for name in ("protected", "encrypted_key", "iv", "ciphertext", "tag"))


def test_usr_symlink_on_a_foreign_root_runs_code_only_after_the_cap(world: World, tmp_path: Path) -> None:
    """init mounts /usr as the root's fstab says, here over its own scripts: what then runs as PID 1 gets no key."""
    jwe = compact(header.token_of(world.root_disk))
    root = file_system(
        tmp_path, "root", {"etc/fstab": "/dev/vdb /usr ext4 defaults 0 0\n"}, {"usr": "/scripts"}
    )
    scripts = file_system(tmp_path, "scripts", {"local-bottom/ORDER": _ORDER, "jwe": jwe}, {})
    disks = [own_volume(tmp_path, root), scripts]
    with world.site, world.boot(disks=disks) as console:
        console.wait_for(PROMPT)
        console.type(disk.PASSPHRASE)
        console.wait_for("attacker: pid 1\n")
        assert console.wait_for(r"attacker: PCR 15 ([0-9A-F]{64})\n")[1] != "0" * 64
        assert console.wait_for(REFUSED)[1] == "capped"
        console.wait_for("attacker: 0 bytes of the key")


def test_a_hibernation_image_is_not_resumed(world: World, tmp_path: Path) -> None:
    """Somebody hibernates the same kernel and initrd on a machine of their own, and attaches that disk here."""
    line = f"{COMMAND_LINE} resume=/dev/vdb"
    swap = tmp_path / "swap.img"
    with swap.open("wb") as file:
        file.truncate(768 * 1024 * 1024)
    subprocess.run(["mkswap", "--quiet", str(swap)], check=True, capture_output=True)
    root = tmp_path / "their-root.img"
    disk.copy(world.root_disk, root)
    theirs = Machine(
        tmp_path / "theirs", world.built.kernel, world.built.initrd, [root, swap], Network(cards=0)
    )
    with theirs.boot() as console:
        console.wait_for(PROMPT)
        open_by_passphrase(console)
        console.shell("swapon /dev/vdb && cat /sys/block/vdb/dev >/sys/power/resume")
        # The machine goes off before it prints the line; the one that resumes the image prints it.
        console.type("echo disk >/sys/power/state; echo 'attacker: ''this was hibernated' >/dev/console")
        console.goes_off_without("attacker: this was hibernated", 2 * PATIENCE)
    with swap.open("rb") as file:
        file.seek(4086)
        assert file.read(10) == b"S1SUSPEND\0"

    with world.site, world.boot(command_line=line, disks=[world.root_disk, swap]) as console:
        console.wait_for(REFUSED)
        world.site.approve(NAME)
        console.wait_for("tang-attest: no hibernation image is resumed from /dev/vdb: vdb is not encrypted")
        console.wait_for(UNLOCKED)
        console.wait_for(ROOT_IS_OPEN)
        assert "this was hibernated" not in console.said
        assert cap_texts(console) == [text({ROOT_UUID: "attested"})]


def test_a_null_cipher_in_the_header_opens_nothing(world: World, tmp_path: Path) -> None:
    """The real token and key slot, but the data are plain text, says the header: the key is not used."""
    plain = file_system(tmp_path, "plain", {"usr/local/sbin/first-init": "#!/bin/sh\n"}, {})
    with world.root_disk.open("r+b") as image:
        image.seek(disk.PAYLOAD_OFFSET)
        image.write(plain.read_bytes())
    header.change(world.root_disk, header.null_segment)
    with world.site, world.boot() as console:
        console.wait_for(PROMPT)
        console.wait_for("tang-attest: a volume has a null cipher")
        time.sleep(20)
        assert "set up successfully" not in console.said
        assert "unlocked by attestation" not in console.said
    assert newest_verdict(world) == "permitted"


def test_a_copied_token_gets_no_key_and_does_not_count_as_attested(world: World, tmp_path: Path) -> None:
    """Somebody's own volume with the root's UUID and token: the key opens nothing, and their passphrase is one."""
    init = """#!/bin/sh
exec >/dev/console 2>&1
echo "attacker: the cap says"
while read -r line; do echo "attacker: $line"; done </run/clevis-attest/cap-events
while :; do read -r _; done
"""
    root = file_system(tmp_path, "root", {"usr/local/sbin/first-init": init}, {}, runnable=True)
    image = own_volume(tmp_path, root, header.token_of(world.root_disk))
    with world.site, world.boot(disks=[image]) as console:
        console.wait_for(PROMPT)
        console.wait_for("tang-attest: the key from attestation opens no volume that has its token")
        console.type(disk.PASSPHRASE)
        console.wait_for("attacker: the cap says")
        console.wait_for(f"attacker: {HEADER}attacker: passphrase {ROOT_UUID}\n")
        assert "unlocked by attestation" not in console.said
    assert newest_verdict(world) == "permitted"


def newest_verdict(world: World) -> str:
    """Return the server's words about the last unlock."""
    return str(next(record for record in world.site.audit(NAME) if record["event"] == "unlock")["verdict"])


def test_foreign_root_beside_an_attested_volume_is_closed(
    new_world: Callable[[Variant], World], tmp_path: Path
) -> None:
    """Their root by their passphrase, the second volume by attestation: its data would be theirs to read."""
    world = new_world(Variant(second=True))
    payload = file_system(tmp_path, "root", {"usr/local/sbin/first-init": "#!/bin/sh\n"}, {})
    disks = [own_volume(tmp_path, payload), world.machine.disks[1]]
    with world.site, world.boot(disks=disks) as console:
        console.wait_for(PROMPT)
        console.type(disk.PASSPHRASE)
        console.wait_for("second: set up successfully")
        console.wait_for(
            "tang-attest: the root is not the volume that was opened: root was not opened by attestation"
        )
        console.wait_for("tang-attest: (root|second) is closed")
        console.wait_for("tang-attest: (root|second) is closed")
        console.wait_for(r"\(initramfs\)")
        assert "second" not in console.shell("ls /dev/mapper")
        texts = cap_texts(console)
        assert texts[0] == text({ROOT_UUID: "passphrase", SECOND_UUID: "attested"})


def test_an_efi_variable_that_steers_the_running_system_caps_the_boot(world: World) -> None:
    """systemd of the opened root would read it as more command line: nothing opens by attestation while it is there."""
    words = "systemd.debug_shell systemd.setenv=BASH_ENV=/dev/vdb\0".encode("utf-16-le")
    efi_variable.add(world.machine.directory / "variables", efi_variable.SYSTEMD, "SystemdOptions", words)
    with world.site, world.boot() as console:
        console.wait_for("tang-attest: the EFI variable SystemdOptions adds to the kernel command line")
        console.wait_for("tang-attest: this boot is capped")
        console.wait_for(PROMPT)
        assert console.wait_for(REFUSED)[1] == "capped"
        open_by_passphrase(console)
        assert cap_texts(console) == [HEADER, text({ROOT_UUID: "passphrase"})]
        # The first line is the prompt and the command.
        assert console.shell("cat /run/clevis-attest/unmeasured").splitlines()[-1] == "SystemdOptions"


def test_a_cap_that_the_tpm_refuses_stops_the_boot_with_closed_volumes(world: World) -> None:
    """Somebody is on the TPM's wires: the volume opened by attestation, and nothing of it is mounted."""
    with world.site:
        machine = replace(world.machine, network=world.network)
        with machine.boot_with_interposer() as (console, interposer):
            console.wait_for("root: set up successfully")
            console.wait_for("tang-attest: this boot stops, because the TPM did not take the cap")
            console.wait_for("tang-attest: root is closed")
            console.wait_for("another medium opens its disks with the passphrase")
            time.sleep(10)
            assert interposer.refused == 3
            assert "first-init" not in console.said
            assert "(initramfs)" not in console.said


def test_approved_while_it_waits_at_its_prompt_it_opens_by_itself(world: World) -> None:
    """After an update: refused, looked at, approved, and open within 20 seconds; nobody types a passphrase."""
    with world.site, world.boot(command_line=f"{COMMAND_LINE} updated") as console:
        console.wait_for(PROMPT)
        assert console.wait_for(REFUSED)[1] == "pcr-mismatch"
        world.site.approve(NAME)
        approved = console.elapsed()
        console.wait_for("set up successfully")
        waited = console.elapsed() - approved
        print(f"open {waited:.1f} s after the approval")
        console.wait_for(UNLOCKED)
        console.wait_for(ROOT_IS_OPEN)
        assert cap_texts(console) == [text({ROOT_UUID: "attested"})]
        # The machine asks every 20 seconds; beside other emulated machines the exchange takes some times as long.
        assert waited < 180, f"{waited:.0f} s after the approval"

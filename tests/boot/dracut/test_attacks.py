"""Attacks on a machine with dracut's initrd by somebody who holds its disks, its firmware or its TPM's wires.

Every selected PCR is as approved (or the passphrase was typed), and still nobody but the approved system gets the key.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.boot.dracut import system
from tests.boot.dracut.world import PROMPT, open_by_passphrase
from tests.boot.hardware import efi_variable
from tests.boot.hardware.cap import HEADER, cap_texts, text
from tests.boot.images import disk
from tests.boot.images.foreign import FOREIGN, ChangeEvents, foreign_disk
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID
from tests.boot.world import NAME, REFUSED, ROOT_IS_OPEN, UNLOCKED, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

_ATTESTED: Final = text({ROOT_UUID: "attested", SECOND_UUID: "attested"})
_BY_HAND: Final = text({ROOT_UUID: "passphrase", SECOND_UUID: "passphrase"})


@pytest.fixture
def world(dracut_machine: World) -> World:
    """An enrolled and approved machine, for one test."""
    return dracut_machine


def test_dracut_approved_while_it_waits_at_its_prompt_it_opens_by_itself(world: World) -> None:
    """Nobody types a passphrase into refused software: it has its key 20 seconds after `approve`, and opens both volumes."""
    with world.site, world.boot(command_line=f"{system.COMMAND_LINE} changed=yes") as console:
        console.wait_for(PROMPT)
        assert console.wait_for(REFUSED)[1] == "pcr-mismatch"
        world.site.approve(NAME)
        approved = time.monotonic()
        while not (given := _keys_given(world)) and time.monotonic() < approved + 180:
            time.sleep(0.1)
        waited = time.monotonic() - approved
        assert given
        console.wait_for(UNLOCKED)
        console.wait_for(ROOT_IS_OPEN)
        assert cap_texts(console) == [_ATTESTED]
        # The machine asks every 20 seconds; beside other emulated machines the exchange takes some times as long.
        assert waited < 180, f"{waited:.0f} s after the approval"


def _keys_given(world: World) -> int:
    """Number of exchanges of the server."""
    log = (world.directory / "site/server.log").read_text()
    return sum("code=ok" in line and "target=/rec/" in line for line in log.splitlines())


def test_dracut_what_nobody_measured_caps_before_systemd_reads_it(world: World) -> None:
    """An EFI variable masks the cap, and a credential of the firmware rewrites one of our scripts: both are seen first."""
    masks = "rd.systemd.mask=clevis-attest-cap.service\0".encode("utf-16-le")
    efi_variable.add(world.machine.directory / "variables", efi_variable.SYSTEMD, "SystemdOptions", masks)
    script = "f+ /usr/lib/clevis-attest/clevis-attest-wait-network 755 - - - #!/bin/sh"
    credential = ("-smbios", f"type=11,value=io.systemd.credential:tmpfiles.extra={script}")
    with world.site, world.boot(options=credential) as console:
        console.wait_for("tang-attest: the EFI variable SystemdOptions adds to the kernel command line")
        console.wait_for("tang-attest: the firmware's tables .SMBIOS type 11. carry words for systemd")
        console.wait_for("tang-attest: this boot is capped")
        console.wait_for(PROMPT)
        assert console.wait_for(REFUSED)[1] == "capped"
        open_by_passphrase(console)
        # One text of /init, when no volume was open, and one after the passphrase.
        assert cap_texts(console) == [HEADER, _BY_HAND]
        # The first line is the prompt and the command.
        seen = console.shell("cat /run/clevis-attest/unmeasured").splitlines()[-2:]
        assert seen == ["SystemdOptions", "SMBIOS"]


def test_dracut_a_masked_cap_means_no_root(world: World) -> None:
    """The root is not mounted, every volume is closed, and the shell comes when the boot is capped."""
    masked = f"{system.COMMAND_LINE} rd.systemd.mask=clevis-attest-cap.service"
    with world.site, world.boot(command_line=masked) as console:
        console.wait_for(PROMPT)
        console.type(disk.PASSPHRASE)
        console.wait_for("tang-attest: this boot is capped")
        console.wait_for("tang-attest: root is closed")
        assert "first-init" not in console.said


def test_dracut_a_tpm_that_does_not_take_the_cap_means_no_boot(world: World) -> None:
    """Its wire is cut after the quotes: what attestation opened is closed, the console says why, and there is no shell."""
    with world.site:
        machine = replace(world.machine, network=world.network)
        with machine.boot_with_interposer() as (console, interposer):
            console.wait_for("tang-attest: root is closed")
            console.wait_for("tang-attest: no boot: the TPM did not take the cap")
            console.wait_for("tang-attest: no shell: the TPM did not take the cap")
            console.stays_without(r"emergency mode|maintenance|first-init|# ", 10)
            assert interposer.refused > 0


def test_dracut_a_foreign_file_system_with_the_roots_uuid_does_not_become_the_root(
    world: World, tmp_path: Path
) -> None:
    """It is not encrypted and keeps emitting change events, so that its name is what root= means: the volumes are closed."""
    foreign = foreign_disk(tmp_path, disk.ROOT_FILESYSTEM)
    disks = [*world.machine.disks, foreign]
    with (
        world.site,
        ChangeEvents(tmp_path / "qmp.sock", "d2", foreign) as events,
        world.boot(disks=disks, options=events.options) as console,
    ):
        events.begin()
        console.wait_for("tang-attest: the root is not the volume that was opened: vdc is not encrypted")
        console.wait_for("tang-attest: this boot is capped")
        assert FOREIGN not in console.said
        assert "first-init" not in console.said


def test_dracut_a_key_that_opens_nothing_leaves_the_prompt_there(world: World) -> None:
    """The slots were replaced and their tokens are still the old ones, as an interrupted regeneration leaves them."""
    for volume in world.machine.disks:
        _replace_slot(volume, 1)
    with world.site, world.boot() as console:
        console.wait_for(PROMPT)
        console.wait_for("tang-attest: the key from attestation opens no volume that has its token")
        # systemd gives a volume up after three wrong keys.
        console.stays_without(r"emergency mode|maintenance|is closed|first-init", 60)
        open_by_passphrase(console)
        assert cap_texts(console) == [_BY_HAND]


def _replace_slot(image: Path, slot: int) -> None:
    """Another passphrase is in *slot*, and the token that names it stays."""
    run = ["cryptsetup", "--batch-mode"]
    token = subprocess.run(
        [*run, "token", "export", "--token-id", "0", image], check=True, capture_output=True
    )
    subprocess.run([*run, "luksKillSlot", image, str(slot)], check=True, input=disk.PASSPHRASE.encode())
    other = image.with_suffix(".passphrase")
    other.write_text("another passphrase")
    subprocess.run(
        [
            *run,
            "luksAddKey",
            "--key-slot",
            str(slot),
            "--pbkdf=pbkdf2",
            "--pbkdf-force-iterations=1000",
            image,
            other,
        ],
        check=True,
        input=disk.PASSPHRASE.encode(),
    )
    subprocess.run([*run, "token", "remove", "--token-id", "0", image], check=True)
    parsed = json.loads(token.stdout)
    assert parsed["type"] == "clevis"
    parsed["keyslots"] = [str(slot)]
    subprocess.run([*run, "token", "import", image], check=True, input=json.dumps(parsed).encode())

"""The check of the root: from the mounted file system down to the volumes that attestation opened."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boot.images import disk
from tests.initrd.scene import EVERY_SHELL, OTHER, UUID, Scene

CHECK = "clevis-attest-root-check"
KNOWN = f"{UUID} aes-xts-plain64 512 4096 -"

pytestmark = pytest.mark.parametrize("shell", EVERY_SHELL)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A machine without a TPM, which the check does not ask."""
    return Scene(tmp_path / "scene")


def accepted(
    scene: Scene, shell: str, target: Path | str | None = None, against: str = "any-machine"
) -> None:
    """The check passes, says against what it checked, and leaves everything open."""
    assert scene.run(shell, CHECK, target or scene.root) == 0, scene.said
    assert (scene.run_directory / "root-checked").read_text() == f"{against}\n"
    assert scene.closed() == []
    assert scene.said == ""


def refused(scene: Scene, shell: str, why: str, target: Path | str | None = None) -> None:
    """The check closes every volume, says why, and takes back what an earlier check said."""
    scene.run_directory.mkdir(parents=True, exist_ok=True)
    (scene.run_directory / "root-checked").touch()
    volumes = sorted(path.name for path in scene.tables.iterdir())
    assert scene.run(shell, CHECK, target or scene.root) == 1
    assert not (scene.run_directory / "root-checked").exists()
    assert (
        f"tang-attest: the root is not the volume that was opened: {why}. The volumes are closed\n"
        in scene.said
    )
    assert scene.closed() == [f"closed {name}" for name in volumes]
    assert not (scene.run_directory / "attested").exists()


def test_a_root_on_the_volume_that_attestation_opened_passes(shell: str, scene: Scene) -> None:
    """Mounted, and as a device before it is mounted; with what the image knows, and in an image for any machine."""
    scene.volume()
    scene.mount("254:0")
    accepted(scene, shell)
    accepted(scene, shell, scene.directory / "dev/dm-0")
    scene.knows(KNOWN)
    accepted(scene, shell, against="image")
    accepted(scene, shell, scene.directory / "dev/dm-0", against="image")


def test_a_key_that_is_shown_as_zeros_passes(shell: str, scene: Scene) -> None:
    """Without the kernel's keyring; and a sector of 512 bytes is not mentioned."""
    scene.volume(key="0" * 128, options="1 allow_discards")
    scene.mount("254:0")
    scene.knows(f"{UUID} aes-xts-plain64 512 512 -")
    accepted(scene, shell, against="image")


def test_lvm_raid_and_partitions_on_opened_volumes_pass(shell: str, scene: Scene) -> None:
    """Every way down is encrypted."""
    scene.disk("vdb", "254:32")
    scene.volume("dm-0", "253:0", "a")
    scene.volume("dm-1", "253:1", "b", "vdb", uuid=OTHER, attested=False)
    scene.mark(OTHER, "254:32")
    scene.mapper("dm-2", "253:2", "vg-part1", "LVM-1", "dm-0")
    scene.mapper("dm-3", "253:3", "vg-part2", "LVM-2", "dm-1")
    raid = scene.disk("md0", "9:0")
    for slave in ("dm-2", "dm-3"):
        (raid / "slaves" / slave).symlink_to(scene.directory / "sys/class/block" / slave)
    scene.disk("md0p1", "259:0", partition_of="md0")
    scene.mount("259:0")
    accepted(scene, shell)


def test_verity_on_an_opened_volume_passes(shell: str, scene: Scene) -> None:
    """Its name for device-mapper begins like a volume's."""
    scene.volume()
    scene.mapper("dm-1", "254:1", "verified", "CRYPT-VERITY-x-verified", "dm-0")
    scene.mount("254:1")
    accepted(scene, shell)


def test_any_root_passes_when_attestation_opened_nothing(shell: str, scene: Scene) -> None:
    """A passphrase or no volume at all: the boot is capped, and nothing of the owner is open."""
    scene.disk("vdb", "254:32")
    scene.mount("254:32")
    accepted(scene, shell, against="no-attestation")
    scene.volume(attested=False)
    accepted(scene, shell, against="no-attestation")


def test_foreign_file_system_with_the_roots_uuid_is_refused(shell: str, scene: Scene) -> None:
    """Attestation opened the right volume, and another disk became the root."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mount("254:32")
    refused(scene, shell, "vdb is not encrypted")


def test_what_lies_on_top_of_the_root_is_what_counts(shell: str, scene: Scene) -> None:
    """Two mounts at the same place: the last one is what runs."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mount("254:0")
    scene.mount("254:32")
    refused(scene, shell, "vdb is not encrypted")


def test_foreign_usr_over_the_right_root_is_refused(shell: str, scene: Scene) -> None:
    """Programs in /usr run as soon as the root does."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mount("254:0")
    scene.mount("254:32", "/usr")
    refused(scene, shell, "vdb is not encrypted")


def test_plain_volume_group_of_the_same_name_is_refused(shell: str, scene: Scene) -> None:
    """LVM took the root's volume group from a disk that nobody opened."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mapper("dm-1", "254:1", "vg-root", "LVM-foreign", "vdb")
    scene.mount("254:1")
    refused(scene, shell, "vdb is not encrypted")


def test_volume_group_that_lies_partly_on_a_plain_disk_is_refused(shell: str, scene: Scene) -> None:
    """Each way down has to come to an opened volume."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mapper("dm-1", "254:1", "vg-root", "LVM-x", "dm-0", "vdb")
    scene.mount("254:1")
    refused(scene, shell, "vdb is not encrypted")


def test_device_mapper_device_on_nothing_is_refused(shell: str, scene: Scene) -> None:
    """A target without a disk."""
    scene.volume()
    scene.mapper("dm-1", "254:1", "zero", "zero")
    scene.mount("254:1")
    refused(scene, shell, "dm-1 is not encrypted")


@pytest.mark.parametrize("foreign", ["vdb", "vdc2"])
def test_second_btrfs_device_that_is_not_encrypted_is_refused(shell: str, scene: Scene, foreign: str) -> None:
    """A disk with the file system's UUID and a newer generation."""
    scene.volume()
    if foreign == "vdb":
        scene.disk("vdb", "254:32")
    else:
        scene.disk("vdc", "254:48")
        scene.disk("vdc2", "254:50", partition_of="vdc")
    devices = scene.directory / "sys/fs/btrfs/1234-5678/devices"
    devices.mkdir(parents=True)
    (devices / "dm-0").symlink_to(scene.directory / "sys/class/block/dm-0")
    scene.mount("0:40", kind="btrfs", source=f"{scene.directory}/dev/dm-0")
    accepted(scene, shell)
    (devices / foreign).symlink_to(scene.directory / "sys/class/block" / foreign)
    refused(scene, shell, f"{'vdb' if foreign == 'vdb' else 'vdc'} is not encrypted")


@pytest.mark.parametrize("cipher", ["cipher_null-ecb", "capi:ecb(cipher_null)-plain", "CIPHER_NULL-ecb"])
def test_null_cipher_is_refused(shell: str, scene: Scene, cipher: str) -> None:
    """The real token opens a volume whose header says that its data are not encrypted."""
    scene.volume(cipher=cipher, key="-")
    scene.mount("254:0")
    refused(scene, shell, f"root has the cipher {cipher}")


def test_null_cipher_of_a_part_is_refused(shell: str, scene: Scene) -> None:
    """A header may have several segments."""
    scene.volume()
    with (scene.tables / "root").open("a") as table:
        table.write("204800 8 crypt cipher_null-ecb - 0 254:16 204800\n")
    scene.mount("254:0")
    refused(scene, shell, "root has the cipher cipher_null-ecb")


def test_part_that_is_not_encrypted_is_refused(shell: str, scene: Scene) -> None:
    """As in a header that is being encrypted for the first time."""
    scene.volume()
    with (scene.tables / "root").open("a") as table:
        table.write("204800 8 linear 254:16 204800\n")
    scene.mount("254:0")
    refused(scene, shell, "root is partly linear")


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (f"{OTHER} aes-xts-plain64 512 4096 -", f"root has the UUID {UUID}, which is none of this image's volumes"),
        (f"{UUID} aes-xts-plain 512 4096 -", "root has the cipher aes-xts-plain64, not aes-xts-plain"),
        (f"{UUID} aes-xts-plain64 256 4096", "root has the key size 512, not 256"),
        (f"{UUID} aes-xts-plain64 512 512", "root has the sector size 4096, not 512"),
    ],
)  # fmt: skip
def test_volume_that_is_not_as_the_image_knows_it_is_refused(
    shell: str, scene: Scene, known: str, why: str
) -> None:
    """UUID, cipher, key size, sector size: the image is measured, the header is not."""
    scene.volume()
    scene.mount("254:0")
    scene.knows(known)
    refused(scene, shell, why)


def test_what_the_image_does_not_know_of_a_volume_is_not_compared(shell: str, scene: Scene) -> None:
    """The volume was not there when the image was built; its UUID is from crypttab."""
    scene.volume()
    scene.mount("254:0")
    scene.knows(f"{UUID} - - - -")
    accepted(scene, shell, against="image")


def test_root_by_passphrase_beside_a_volume_by_attestation_is_refused(shell: str, scene: Scene) -> None:
    """Somebody's own volume with the root's UUID would read the other one."""
    scene.disk("vdb", "254:32")
    scene.volume(attested=False)
    scene.volume("dm-1", "254:1", "second", "vdb", uuid=OTHER, attested=False)
    scene.mark(OTHER, "254:32")
    scene.mount("254:0")
    refused(scene, shell, "root was not opened by attestation, but another volume was")


def test_mark_for_another_device_with_the_uuid_does_not_count(shell: str, scene: Scene) -> None:
    """The key was tried on the real disk; the root is on somebody's own with the same UUID."""
    scene.disk("vdb", "254:32")
    scene.volume("dm-0", "254:0", "root", "vdb")
    scene.mount("254:0")
    refused(scene, shell, "root was not opened by attestation, but another volume was")


def test_plain_dm_crypt_is_refused(shell: str, scene: Scene) -> None:
    """It has no header, and anybody's key opens it."""
    scene.volume("dm-1", "254:1", "second", uuid=OTHER)
    scene.mapper("dm-0", "254:0", "root", "CRYPT-PLAIN-root", "vda")
    scene.mount("254:0")
    refused(scene, shell, "root is no LUKS volume")


def luks(scene: Scene, name: str, passphrase: str = "") -> str:
    """A real LUKS header as the disk *name*; what the image would know of it."""
    image = scene.directory / "dev" / name
    payload = scene.directory / "payload"
    disk.filesystem(payload, 4096)
    disk.luks_image(image, payload, UUID)
    scene.run("dash", "clevis-attest-volumes", image)
    return scene.output.strip()


def test_root_by_passphrase_with_the_volume_key_that_the_image_knows_passes(shell: str, scene: Scene) -> None:
    """Only the owner's passphrase opens that one."""
    scene.disk("vdb", "254:32")
    scene.volume(attested=False)
    scene.volume("dm-1", "254:1", "second", "vdb", uuid=OTHER, attested=False)
    scene.mark(OTHER, "254:32")
    scene.mount("254:0")
    known = luks(scene, "vda")
    assert known.startswith(f"{UUID} aes-xts-plain64 512 4096 ")
    scene.knows(known)
    accepted(scene, shell, against="image")


def test_another_volume_key_than_the_image_knows_is_refused(shell: str, scene: Scene) -> None:
    """Everything else of the header is right, and the mark is there: key slots with a null cipher open with any key."""
    scene.volume()
    scene.mount("254:0")
    scene.knows(luks(scene, "vda"))
    luks(scene, "vda")  # the same once more, with a digest of its own
    refused(scene, shell, "root has another volume key than when this image was built")


def test_every_device_of_a_zfs_pool_counts(shell: str, scene: Scene) -> None:
    """The mount names the pool, and zpool its devices."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mount("0:41", kind="zfs", source="rpool/ROOT/debian")
    status = "  pool: rpool\n\tNAME\n\trpool ONLINE\n\t  /dev/dm-0  ONLINE 0 0 0\n"
    (scene.directory / "status").write_text(status)
    scene.program("zpool", f'#!/bin/sh\n[ "$*" = "status -L -P rpool" ] && cat {scene.directory}/status\n')
    accepted(scene, shell)
    (scene.directory / "status").write_text(f"{status}\t  /dev/vdb  ONLINE 0 0 0\n")
    refused(scene, shell, "vdb is not encrypted")


def test_pool_of_which_nothing_is_known_is_refused(shell: str, scene: Scene) -> None:
    """No zpool in the image, or another pool."""
    scene.volume()
    scene.mount("0:41", kind="zfs", source="rpool/ROOT/debian")
    scene.program("zpool", "#!/bin/sh\nexit 1\n")
    refused(scene, shell, "nothing is known of the pool rpool")


def test_every_disk_below_an_overlay_counts(shell: str, scene: Scene) -> None:
    """overlayroot moves the root away and lays a tmpfs over it."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mount("0:42", kind="overlay", source="overlayroot")
    scene.mount("254:0", "-ro")
    scene.mount("0:43", "-rw", kind="tmpfs", source="tmpfs")
    accepted(scene, shell)
    scene.mount("254:32", "-other")
    refused(scene, shell, "vdb is not encrypted")


def test_overlay_on_no_disk_is_refused(shell: str, scene: Scene) -> None:
    """A live system in memory."""
    scene.volume()
    scene.mount("0:42", kind="overlay", source="overlay")
    refused(scene, shell, f"the overlay at {scene.root} is on no block device")


def test_root_on_no_block_device_is_refused(shell: str, scene: Scene) -> None:
    """A network's file system, or one in memory."""
    scene.volume()
    scene.mount("0:50", kind="nfs4", source="192.0.2.1:/root")
    refused(scene, shell, f"the nfs4 at {scene.root} is on no block device")


def test_nothing_mounted_is_refused(shell: str, scene: Scene) -> None:
    """And so is a device that does not exist."""
    scene.volume()
    refused(scene, shell, f"nothing is mounted at {scene.root}")


def test_device_that_is_none_is_refused(shell: str, scene: Scene) -> None:
    """Before it is mounted."""
    scene.volume()
    refused(scene, shell, "/dev/nothing is no block device", "/dev/nothing")


def test_volume_that_cannot_be_closed_loses_its_key(shell: str, scene: Scene) -> None:
    """Something holds it: its key is wiped, and the person is told."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.mount("254:32")
    text = (scene.directory / "bin/cryptsetup").read_text()
    scene.program("cryptsetup", text.replace("close) rm", "close) exit 5; rm"))
    assert scene.run(shell, CHECK, scene.root) == 1
    assert scene.closed() == ["suspended root"]
    assert "a volume cannot be closed" in scene.said


@pytest.mark.parametrize("attested", [True, False])
def test_hibernation_image_on_an_opened_volume_may_be_resumed(
    shell: str, scene: Scene, attested: bool
) -> None:
    """By attestation or by a passphrase; LVM may lie between."""
    scene.volume(attested=attested)
    scene.mapper("dm-1", "254:1", "vg-swap", "LVM-1", "dm-0")
    assert scene.run(shell, CHECK, "--resume", scene.directory / "dev/dm-1") == 0
    assert scene.output == ""


@pytest.mark.parametrize("attested", [True, False])
def test_hibernation_image_outside_the_opened_volumes_is_not_resumed(
    shell: str, scene: Scene, attested: bool
) -> None:
    """In any boot: the keys of what is open are in memory.  Nothing is closed, for the root is another matter."""
    scene.volume(attested=attested)
    scene.disk("vdb", "254:32")
    (scene.directory / "dev/vdb").touch()
    assert scene.run(shell, CHECK, "--resume", scene.directory / "dev/vdb") == 1
    assert scene.output == "vdb is not encrypted\n"
    assert scene.run(shell, CHECK, "--resume", "/dev/nothing") == 1
    assert scene.closed() == []


def test_hibernation_image_on_somebodys_own_volume_is_not_resumed(shell: str, scene: Scene) -> None:
    """Opened by their passphrase, beside what attestation opened."""
    scene.volume()
    scene.disk("vdb", "254:32")
    scene.volume("dm-1", "254:1", "swap", "vdb", uuid=OTHER, attested=False)
    assert scene.run(shell, CHECK, "--resume", scene.directory / "dev/dm-1") == 1
    assert "swap was not opened by attestation" in scene.output


def test_a_pin_that_still_asks_has_given_nothing(shell: str, scene: Scene) -> None:
    """The passphrase was typed while it asked: its mark is there, and its process."""
    scene.volume(attested=False)
    scene.mount("254:0")
    scene.run_directory.mkdir(parents=True, exist_ok=True)
    (scene.run_directory / f"gave-key.{os.getpid()}").touch()
    accepted(scene, shell, against="no-attestation")
    (scene.run_directory / "gave-key.4194305").touch()  # above the kernel's highest
    refused(scene, shell, "root was not opened by attestation, but another volume was")


@contextmanager
def trial(scene: Scene, command: str) -> Iterator[None]:
    """A key that a pin gave is tried by a process that runs *command*, with ``mark`` and ``witness`` as its variables."""
    run = scene.run_directory
    run.mkdir(parents=True, exist_ok=True)
    mark = run / "gave-key.4194305"  # above the kernel's highest: the pin is done
    mark.touch()
    script = f'mark={mark} witness={run}/witness.$$; echo "$mark" >"$witness"; echo ready; {command}'
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.kill()


def test_a_key_that_is_tried_in_vain_was_not_given(shell: str, scene: Scene) -> None:
    """The passphrase was typed meanwhile: the check waits for the end of the trial."""
    scene.volume(attested=False)
    scene.mount("254:0")
    with trial(scene, 'sleep 2; rm "$mark" "$witness"'):
        accepted(scene, shell, against="no-attestation")


def test_a_key_that_is_tried_and_opens_a_volume_was_given(shell: str, scene: Scene) -> None:
    """The root was opened by a passphrase meanwhile."""
    scene.volume(attested=False)
    scene.mount("254:0")
    attested = scene.run_directory / "attested"
    with trial(scene, f'sleep 2; mkdir {attested}; echo 254:32 >{attested}/{OTHER}; rm "$witness"'):
        refused(scene, shell, "root was not opened by attestation, but another volume was")


def test_a_trial_without_an_end_gave_its_key(shell: str, scene: Scene) -> None:
    """The check waits for a limited time, and not for a process that is gone."""
    script = scene.directory / "lib" / CHECK
    text = script.read_text()
    assert "patience=30 " in text
    script.write_text(text.replace("patience=30 ", "patience=1 "))
    scene.volume(attested=False)
    scene.mount("254:0")
    with trial(scene, "exec sleep 600"):
        refused(scene, shell, "root was not opened by attestation, but another volume was")

"""The cloud-init example of contrib/: its script with a software TPM and a real volume, and its file by cloud-init's checker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.boot.images.base import cloud_tree
from tests.pin.conftest import Server
from tests.pin.machine import Completed, Disk, Machine

EXAMPLE = Path(__file__).parents[2] / "contrib" / "cloud-init"


@pytest.fixture
def seed(machine: Machine, server: Server, name: str) -> Path:
    """Files that the user data write on /run; the policy's values are those of the machine."""
    directory = machine.directory / "seed"
    directory.mkdir(mode=0o700)
    config = {"url": server.url, "thp": server.operator.thp, "name": name}
    (directory / "pin.json").write_text(json.dumps(config, separators=(",", ":")))
    (directory / "token").write_text(server.operator.token(name) + "\n")
    return directory


def first_boot(machine: Machine, volume: Path, seed: Path) -> Completed:
    """The script, as runcmd runs it."""
    return machine.run(EXAMPLE / "first-boot", volume, seed, timeout=240)


def empty_volume(machine: Machine) -> Path:
    """A volume with nothing in it."""
    path = machine.directory / "volume"
    with path.open("wb") as image:
        image.truncate(32 << 20)
    return path


def opened(machine: Machine, volume: Path) -> bytes:
    """The passphrase that attestation gives for the volume."""
    slots = machine.run("clevis", "luks", "list", "-d", volume).stdout.decode()
    return machine.run("clevis", "luks", "pass", "-d", volume, "-s", slots.partition(":")[0]).stdout


@pytest.mark.slow
def test_an_empty_volume_is_formatted_and_bound(machine: Machine, seed: Path) -> None:
    """Attestation alone opens it; neither a key nor the token is left; the second run changes nothing."""
    volume = empty_volume(machine)
    done = first_boot(machine, volume, seed)
    assert done.returncode == 0, done.stderr
    passphrase = opened(machine, volume)
    tried = machine.run(
        "cryptsetup", "open", "--test-passphrase", "--key-file", "-", volume, stdin=passphrase
    )
    assert passphrase
    assert tried.returncode == 0
    dump = json.loads(machine.run("cryptsetup", "luksDump", "--dump-json-metadata", volume).stdout)
    assert list(dump["keyslots"]) == ["1"]
    assert sorted(path.name for path in seed.iterdir()) == ["pin.json"]
    before = volume.read_bytes()
    again = first_boot(machine, volume, seed)
    assert (again.returncode, b"is bound already" in again.stderr) == (0, True)
    assert volume.read_bytes() == before
    machine.boot_with_another(4)
    assert opened(machine, volume) == b""


@pytest.mark.slow
def test_a_recovery_passphrase_stays(machine: Machine, seed: Path) -> None:
    """The volume opens by it as well, and its file goes."""
    volume = empty_volume(machine)
    (seed / "recovery").write_bytes(b"from the vault")
    assert first_boot(machine, volume, seed).returncode == 0
    for secret in (opened(machine, volume), b"from the vault"):
        tried = machine.run(
            "cryptsetup", "open", "--test-passphrase", "--key-file", "-", volume, stdin=secret
        )
        assert tried.returncode == 0
    assert not (seed / "recovery").exists()


def test_a_volume_with_something_in_it_stays(machine: Machine, seed: Path) -> None:
    """A file system, or LUKS whose passphrase nobody gave: an error, and not a byte is changed."""
    volume = empty_volume(machine)
    assert machine.run("mkfs.ext4", "-q", volume).returncode == 0
    luks = Disk(machine, "luks2").path
    for path, why in ((volume, b"is not empty"), (luks, b"give its passphrase")):
        before = path.read_bytes()
        done = first_boot(machine, path, seed)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
        assert path.read_bytes() == before


@pytest.mark.slow
def test_a_refused_machine_leaves_no_secret(machine: Machine, seed: Path) -> None:
    """The run fails, so cloud-init reports it; the token's file is gone."""
    (seed / "token").write_text("A" * 43)
    done = first_boot(machine, empty_volume(machine), seed)
    assert done.returncode == 1
    assert b"refused (token-invalid)" in done.stderr
    assert sorted(path.name for path in seed.iterdir()) == ["pin.json"]


def test_the_user_data_has_the_script() -> None:
    """Word for word, and with the modes that keep the token from others."""
    data = yaml.safe_load((EXAMPLE / "user-data.yaml").read_text())
    files = {Path(each["path"]).name: each for each in data["write_files"]}
    assert files["tang-attest-first-boot"]["content"] == (EXAMPLE / "first-boot").read_text()
    assert {files[name]["permissions"] for name in ("token", "pin.json")} == {"0600"}
    assert all(each["path"].startswith("/run/") for name, each in files.items() if "first-boot" not in name)
    json.loads(files["pin.json"]["content"])
    assert data["runcmd"] == [["/usr/local/sbin/tang-attest-first-boot", "/dev/disk/by-id/virtio-data"]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cloud_init_accepts_the_user_data(tmp_path: Path) -> None:
    """The schema checker of Debian's cloud-init, in a root of its own; it refuses a misspelled key."""
    tree, _ = cloud_tree()
    good = (EXAMPLE / "user-data.yaml").read_text()
    for text, valid in ((good, True), (good.replace("permissions:", "permision:"), False)):
        file = tree / "tmp" / f"user-data-{os.getpid()}"
        file.write_text(text)
        try:
            done = subprocess.run(
                ["chroot", tree, "cloud-init", "schema", "--config-file", f"/tmp/{file.name}"],
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
            )
        finally:
            file.unlink()
        assert (done.returncode == 0) is valid, done.stdout + done.stderr

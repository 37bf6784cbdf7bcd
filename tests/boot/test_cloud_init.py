"""A cloud machine with the user data of contrib/cloud-init: enrolled by its first boot, opened by attestation
from then on.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.boot.hardware.machine import PATIENCE
from tests.boot.images import disk
from tests.boot.images.cache import ROOT
from tests.boot.images.tree import ROOT_UUID, Variant
from tests.boot.site import Site
from tests.boot.world import PROMPT, REFUSED, ROOT_IS_OPEN, SELECTION, UNLOCKED, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

_EXAMPLE: Final = ROOT / "contrib" / "cloud-init" / "user-data.yaml"
_BOUND: Final = "tang-attest first boot: {volume} is bound"
#: The data volume is empty, and the initrd asks for it all the same.
_NO_HEADER: Final = "data: cryptsetup failed"
_MACHINE: Final = "web-1"


def user_data(site: Site) -> str:
    """Return the example with this server's address and token, and with a root to bind before the data
    volume.
    """
    site.operator("policy", "create", "webservers", "--selection", SELECTION)
    terms = ("--policy", "webservers", "--machines", "2", "--name", "web-*", "--allow-unverified-ek")
    token = json.loads(site.operator("token", "create", *terms, "--json"))["token"]
    data: dict[str, Any] = yaml.safe_load(_EXAMPLE.read_text())
    files = {each["path"]: each for each in data["write_files"]}
    files["/run/tang-attest/pin.json"]["content"] = json.dumps(site.pin(), separators=(",", ":"))
    files["/run/tang-attest/token"]["content"] = token
    data["write_files"].append(
        {"path": "/run/tang-attest/recovery", "permissions": "0600", "content": disk.PASSPHRASE}
    )
    [[script, volume]] = data["runcmd"]
    data["runcmd"] = [[script, f"/dev/disk/by-uuid/{ROOT_UUID}"], [script, volume]]
    return f"#cloud-config\n{yaml.safe_dump(data)}"


def seed_disk(path: Path, text: str) -> None:
    """Write the disk from which cloud-init's data source NoCloud takes the user data *text*."""
    subprocess.run(["mkfs.vfat", "-n", "CIDATA", "-C", path, "1024"], check=True, capture_output=True)
    network = {"version": 2, "ethernets": {"eth0": {"dhcp4": True}}}
    files = {
        "user-data": text,
        "meta-data": yaml.safe_dump({"instance-id": "i-1", "local-hostname": _MACHINE}),
        "network-config": yaml.safe_dump(network),
    }
    for name, content in files.items():
        subprocess.run(["mcopy", "-i", path, "-", f"::{name}"], input=content.encode(), check=True)


def attached(name: str, path: Path) -> tuple[str, ...]:
    """Return QEMU's options for one more disk, with its name as serial number."""
    return (
        *("-drive", f"if=none,id={name},format=raw,cache=unsafe,file={path}"),
        *("-device", f"virtio-blk-pci,drive={name},serial={name}"),
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A machine that boots for the first time; its disks are removed after the test."""
    yield World.new(tmp_path / "world", Variant(cloud=True))
    for image in tmp_path.rglob("*.img"):
        image.unlink()


def test_user_data_enroll_a_machine_whose_volumes_then_open_by_attestation(
    world: World, tmp_path: Path
) -> None:
    """The root's passphrase is typed once, at the first boot, and nothing for the data volume; the second is
    refused until its state is approved.
    """
    volume, seed = tmp_path / "data.img", tmp_path / "seed.img"
    with volume.open("wb") as image:
        image.truncate(64 << 20)
    data = attached("data", volume)
    with world.site as site:
        seed_disk(seed, user_data(site))
        with world.boot(systemd=True, options=(*data, *attached("seed", seed))) as console:
            console.wait_for(PROMPT)
            console.type(disk.PASSPHRASE)
            for told in (*[_NO_HEADER] * 2, "data: maximum number of tries exceeded"):
                console.answer("Please unlock disk data", "", told)
            console.wait_for(_BOUND.format(volume=f"/dev/disk/by-uuid/{ROOT_UUID}"), 2 * PATIENCE)
            console.wait_for(_BOUND.format(volume="/dev/disk/by-id/virtio-data"))
        with world.boot(options=data) as console:
            assert console.wait_for(REFUSED)[1] == "policy-empty"
            site.approve(_MACHINE)
            console.wait_for(UNLOCKED)
            assert "data root" in console.wait_for(f"{ROOT_IS_OPEN}: [^,]*,")[0]

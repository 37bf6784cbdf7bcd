"""LUKS2 disk images without device-mapper: cryptsetup writes the header, `cryptography` the payload.

dm-crypt with aes-xts-plain64 encrypts sector by sector; the tweak is the sector's number, counted in blocks of
512 bytes whatever the sector size, little-endian.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.boot.images import cache

PASSPHRASE: Final = "correct horse"

#: The UUID of the file system in a root image; somebody who held the disk once may know it.
ROOT_FILESYSTEM: Final = "0f6e5a3c-0000-4000-8000-0000000000f5"

PAYLOAD_OFFSET: Final = 16 * 1024 * 1024
_SECTOR: Final = 4096
#: A passphrase costs next to nothing here: under emulation, the default would take minutes.
_CHEAP: Final = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
#: The test's volume key, so that the payload can be written without opening the volume.
_KEY: Final = bytes(range(64))


def luks_image(image: Path, payload: Path, uuid: str) -> None:
    """Write *image*: LUKS2 with :data:`PASSPHRASE`, and *payload* in it."""
    size = payload.stat().st_size
    assert size % _SECTOR == 0
    with image.open("wb") as file:
        file.truncate(PAYLOAD_OFFSET + size)
    with tempfile.NamedTemporaryFile() as key:
        key.write(_KEY)
        key.flush()
        command = ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", uuid]
        command += ["--cipher", "aes-xts-plain64", "--key-size", "512", "--volume-key-file", key.name]
        command += [
            "--sector-size",
            str(_SECTOR),
            "--offset",
            str(PAYLOAD_OFFSET // 512),
            *_CHEAP,
            "--key-file=-",
            str(image),
        ]
        subprocess.run(command, input=PASSPHRASE.encode(), check=True, capture_output=True)
    with payload.open("rb") as source, image.open("r+b") as target:
        target.seek(PAYLOAD_OFFSET)
        index = 0
        while sector := source.read(_SECTOR):
            tweak = (index * (_SECTOR // 512)).to_bytes(16, "little")
            encryptor = Cipher(algorithms.AES(_KEY), modes.XTS(tweak)).encryptor()
            target.write(encryptor.update(sector))
            index += 1


def root_image(root: Path, name: str, uuid: str) -> Path:
    """The encrypted image of a root tree; a test copies it."""
    return cache.entry(
        "disk", cache.key(name, uuid, Path(__file__)), lambda path: _root_image(path, root, uuid), keep=4
    )


def _root_image(image: Path, root: Path, uuid: str) -> None:
    used = int(
        subprocess.run(["du", "-sk", str(root)], capture_output=True, check=True, text=True).stdout.split()[0]
    )
    size = (used * 5 // 4) // 4 * 4 + 16384
    payload = image.with_suffix(".payload")
    filesystem(payload, size, root, ROOT_FILESYSTEM)
    luks_image(image, payload, uuid)
    payload.unlink()


def filesystem(path: Path, kibibytes: int, root: Path | None = None, uuid: str | None = None) -> None:
    """An ext4 file system, with the tree *root* in it, and *uuid* or a random one."""
    path.unlink(missing_ok=True)
    # Not lazily: a machine that mounts it to write would fill its tables with zeros, encrypted, for minutes.
    command = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=0",
    ]
    if root is not None:
        command += ["-d", str(root)]
    if uuid is not None:
        command += ["-U", uuid]
    subprocess.run([*command, str(path), f"{kibibytes}k"], check=True, capture_output=True)


def copy(source: Path, target: Path) -> None:
    """A copy that shares blocks with its source where the file system can."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", str(source), str(target)], check=True)


def clevis_bind(image: Path, pin: str, configuration: str, environment: dict[str, str]) -> None:
    """``clevis luks bind`` to an image file."""
    command = ["clevis", "luks", "bind", "-y", "-k", "-", "-d", str(image), pin, configuration]
    result = subprocess.run(
        command,
        input=PASSPHRASE.encode(),
        env={**os.environ, **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr).decode()

"""The scripts that every initrd has, run in a directory that stands for the machine.

Their paths are moved below the directory in a copy of the scripts: the environment of an initrd can be steered, so the
scripts themselves take no path from it.  The TPM is a real one in software, cryptsetup is real; the kernel's part of
device-mapper, which machines for tests do not have, is a tree of files and a `dmsetup` that prints them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.boot.images.cache import ROOT

SHELLS: Final = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
#: For ``parametrize``: the shell of most images at each `make check`, the others with every test.
EVERY_SHELL: Final = [
    pytest.param(name, marks=[] if name == "busybox" else [pytest.mark.slow]) for name in SHELLS
]
SCRIPTS: Final = ("cap", "close", "mark", "root-check", "volumes")

UUID: Final = "0f6e5a3c-0000-4000-8000-000000000001"
OTHER: Final = "0f6e5a3c-0000-4000-8000-000000000002"

_DMSETUP: Final = """#!/bin/sh
case $1 in
    table) cat "@tables@/$2" ;;
    ls) for table in "@tables@"/*; do [ -e "$table" ] && printf '%s\\t(254:0)\\n' "${table##*/}"; done ;;
esac
"""
_CRYPTSETUP: Final = """#!/bin/sh
case $1 in
    close) rm "@tables@/$2" && echo "closed $2" >>"@said@"; exit ;;
    luksSuspend) echo "suspended $2" >>"@said@"; exit ;;
esac
exec "@cryptsetup@" "$@"
"""


class Scene:
    """A machine in its initrd."""

    def __init__(self, directory: Path, environment: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.environment = {**(environment or os.environ)}
        self.run_directory = directory / "run/clevis-attest"
        self.tables = directory / "tables"
        for path in (
            *("sys/block", "sys/class/block", "sys/dev/block", "sys/devices", "sys/fs/btrfs"),
            *("dev", "etc/clevis-attest", "run", "lib", "bin", "root", "tables"),
        ):
            (directory / path).mkdir(parents=True)
        self.console = directory / "console"
        self.console.touch()
        self._mounts: list[str] = []
        self._write_mounts()
        for name in SCRIPTS:
            script = ROOT / f"initrd/clevis-attest-{name}"
            self.program(f"clevis-attest-{name}", self.moved(script.read_text()), "lib")
        self.program("dmsetup", _DMSETUP.replace("@tables@", str(self.tables)))
        cryptsetup = _CRYPTSETUP.replace("@tables@", str(self.tables)).replace(
            "@said@", str(directory / "said")
        )
        self.program("cryptsetup", cryptsetup.replace("@cryptsetup@", str(shutil.which("cryptsetup"))))
        self.program("umount", f'#!/bin/sh\nsed -i "\\\\# $1 #d" {directory}/mountinfo\n')
        self.program("modprobe", "#!/bin/sh\n")

    def moved(self, text: str) -> str:
        """The same shell, with its paths below the directory."""
        places = {
            "device:/dev/tpmrm0": self.environment.get("TPM2TOOLS_TCTI", "device:/nowhere"),
            "/proc/self/mountinfo": f"{self.directory}/mountinfo",
            "/usr/lib/clevis-attest": f"{self.directory}/lib",
            "/etc/clevis-attest": f"{self.directory}/etc/clevis-attest",
            "/run/clevis-attest": str(self.run_directory),
            ">/dev/console": f">>{self.console}",
            "/dev/tpmrm": f"{self.directory}/dev/tpmrm",
            '"/dev/$node"': f'"{self.directory}/dev/$node"',
            "/sys/": f"{self.directory}/sys/",
        }
        for place, path in places.items():
            text = text.replace(place, path)
        return text

    def program(self, name: str, text: str, where: str = "bin") -> Path:
        """A program of the machine, instead of this host's."""
        path = self.directory / where / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(
        self, shell: str, name: str, *arguments: str | Path, stdin: bytes = b"", timeout: float = 240
    ) -> int:
        """The exit status of one of the scripts."""
        command = [*SHELLS[shell], str(self.directory / "lib" / name), *map(str, arguments)]
        path = f"{self.directory / 'bin'}:{self.environment['PATH']}"
        result = subprocess.run(
            command,
            env=self.environment | {"PATH": path},
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        self.output = (result.stdout + result.stderr).decode()
        return result.returncode

    @property
    def said(self) -> str:
        """Return the text that a person saw on the console."""
        return self.console.read_text().replace("\r", "")

    def disk(self, name: str, number: str, *, partition_of: str = "") -> Path:
        """A block device's directory in sysfs."""
        directory = self.directory / "sys/devices" / partition_of / name
        (directory / "slaves").mkdir(parents=True)
        (directory / "dev").write_text(f"{number}\n")
        if partition_of:
            (directory / "partition").write_text("1\n")
        for link in (f"sys/class/block/{name}", f"sys/dev/block/{number}", f"sys/block/{name}"):
            (self.directory / link).symlink_to(directory)
        return directory

    def mapper(self, node: str, number: str, name: str, uuid: str, *slaves: str) -> Path:
        """A device of device-mapper that lies on others."""
        directory = self.disk(node, number)
        (directory / "dm").mkdir()
        (directory / "dm/name").write_text(f"{name}\n")
        (directory / "dm/uuid").write_text(f"{uuid}\n")
        for slave in slaves:
            (directory / "slaves" / slave).symlink_to(self.directory / "sys/class/block" / slave)
        (self.directory / "dev" / node).touch()
        return directory

    def volume(
        self,
        node: str = "dm-0",
        number: str = "254:0",
        name: str = "root",
        *slaves: str,
        uuid: str = UUID,
        cipher: str = "aes-xts-plain64",
        key: str = ":64:logon:cryptsetup:0f6e5a3c-d0",
        options: str = "1 sector_size:4096",
        attested: bool = True,
    ) -> None:
        """An open LUKS volume, on vda (254:16) unless *slaves* say otherwise; the mark of attestation names vda."""
        if not slaves:
            if not (self.directory / "sys/class/block/vda").exists():
                self.disk("vda", "254:16")
            slaves = ("vda",)
        self.mapper(node, number, name, f"CRYPT-LUKS2-{uuid.replace('-', '')}-{name}", *slaves)
        (self.tables / name).write_text(f"0 204800 crypt {cipher} {key} 0 254:16 32768 {options}\n")
        if attested:
            self.mark(uuid, "254:16")

    def mark(self, uuid: str, number: str = "") -> None:
        """Attestation opened a volume."""
        (self.run_directory / "attested").mkdir(parents=True, exist_ok=True)
        (self.run_directory / "attested" / uuid).write_text(f"{number}\n" if number else "")

    def knows(self, *lines: str) -> None:
        """The image was built for these volumes."""
        (self.directory / "etc/clevis-attest/volumes").write_text("".join(f"{line}\n" for line in lines))

    def mount(self, number: str, point: str = "", kind: str = "ext4", source: str = "/dev/x") -> None:
        """A mounted file system, at the root's directory and below."""
        self._mounts.append(
            f"29 1 {number} / {self.directory}/root{point} rw,relatime shared:1 - {kind} {source} rw"
        )
        self._write_mounts()

    @property
    def root(self) -> Path:
        """Mount point of the root."""
        return self.directory / "root"

    def closed(self) -> list[str]:
        """The volumes that were closed."""
        said = self.directory / "said"
        return said.read_text().splitlines() if said.exists() else []

    def _write_mounts(self) -> None:
        (self.directory / "mountinfo").write_text(
            "22 27 0:21 / /proc rw - proc proc rw\n" + "".join(f"{line}\n" for line in self._mounts)
        )

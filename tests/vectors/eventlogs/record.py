"""Record the event logs of real boots: OVMF and what it starts measure into swtpm, and Linux prints log and PCRs.

    .venv/bin/python -m tests.vectors.eventlogs.record SCRATCH [kernel-changed] [uki] [secure-boot]

Needs root's tools only to run (apt-get download, dpkg, cpio, objcopy, qemu-system-x86_64, swtpm_setup), no root.
Each boot takes about a minute under emulation.  The logs differ with the versions of OVMF, shim, GRUB, systemd and
Linux, so a new recording replaces NAME.bin and pcrs/NAME-pcrs.json at once.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
KERNEL: Final = "linux-image-6.1.0-56-cloud-amd64"
PACKAGES: Final = (KERNEL, "busybox-static", "shim-signed", "grub-efi-amd64-signed", "systemd-boot-efi")
FIRMWARE: Final = Path("/usr/share/OVMF")
LINE: Final = "console=ttyS0 quiet no_timer_check"

INIT: Final = """#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t sysfs s /sys
/bin/busybox mount -t securityfs s /sys/kernel/security
/bin/busybox mount -t devtmpfs d /dev
echo BEGIN-LOG
/bin/busybox base64 /sys/kernel/security/tpm0/binary_bios_measurements
echo END-LOG
for i in $(/bin/busybox seq 0 23); do
    echo PCR $i $(/bin/busybox cat /sys/class/tpm/tpm0/pcr-sha256/$i)
done
/bin/busybox poweroff -f
"""

#: Addresses at which the stub expects its sections (systemd-stub(7) of version 252).
SECTIONS: Final = {".osrel": 0x20000, ".cmdline": 0x30000, ".linux": 0x2000000, ".initrd": 0x3000000}

GRUB: Final = """set timeout=0
linux /vmlinuz {line}
initrd /initrd.img
boot
"""


class Parts:
    """Parts of the boots, unpacked in *scratch*."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch.absolute()
        self.root = self.scratch / "packages"
        if not self.root.exists():
            self.scratch.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", *PACKAGES], cwd=self.scratch, check=True)
            for package in self.scratch.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, self.root], check=True)
        self.kernel = next(self.root.glob("boot/vmlinuz-*"))
        self.initrd = self._initrd("initrd.img", "")
        self.changed_initrd = self._initrd("changed-initrd.img", "# one more line\n")

    def _initrd(self, name: str, more: str) -> Path:
        tree = self.scratch / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        for directory in ("bin", "dev", "proc", "sys"):
            (tree / directory).mkdir(parents=True)
        shutil.copy(self.root / "bin" / "busybox", tree / "bin" / "busybox")
        (tree / "init").write_text(INIT + more)
        (tree / "init").chmod(0o755)
        names = "".join(f"{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
        archive = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            capture_output=True,
            check=True,
        ).stdout
        path = self.scratch / name
        path.write_bytes(gzip.compress(archive, mtime=0))
        return path

    def system_partition(self, files: dict[str, Path | str]) -> list[str]:
        """QEMU's arguments for a FAT file system of *files*."""
        esp = self.scratch / "esp"
        shutil.rmtree(esp, ignore_errors=True)
        for name, content in files.items():
            path = esp / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content.read_bytes())
        return [
            *("-drive", f"if=none,id=esp,format=raw,readonly=on,file=fat:{esp}"),
            *("-device", "virtio-blk-pci,drive=esp,bootindex=0"),
        ]

    def boot(self, what: list[str], *, secure_boot: bool = False) -> tuple[bytes, dict[str, str]]:
        """Boot once; the log, and the values of the SHA-256 bank by PCR."""
        state = self.scratch / "tpm"
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", state, "--pcr-banks", "sha256"],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        tpm = f"type=unixio,path={state}/socket"
        with subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", tpm]
        ) as swtpm:
            try:
                return self._run(what, state, secure_boot=secure_boot)
            finally:
                swtpm.terminate()

    def _run(self, what: list[str], state: Path, *, secure_boot: bool) -> tuple[bytes, dict[str, str]]:
        code, variables = ("CODE_4M.secboot", "VARS_4M.ms") if secure_boot else ("CODE_4M", "VARS_4M")
        shutil.copy(FIRMWARE / f"OVMF_{variables}.fd", state / "variables")
        console = self.scratch / "console.log"
        console.unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"]
        command += ["-machine", f"q35,smm={'on' if secure_boot else 'off'}", "-accel", "tcg,thread=multi"]
        command += ["-cpu", "max", "-m", "512", "-serial", f"file:{console}", "-monitor", "none"]
        command += ["-chardev", f"socket,id=c,path={state}/socket", "-tpmdev", "emulator,id=t,chardev=c"]
        command += ["-device", "tpm-crb,tpmdev=t"]
        command += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE / f'OVMF_{code}.fd'}"]
        command += ["-drive", f"if=pflash,format=raw,unit=1,file={state / 'variables'}"]
        if secure_boot:
            command += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        subprocess.run(command + what, check=True, timeout=600)
        said = console.read_text(errors="replace").replace("\r", "")
        log = re.search(r"BEGIN-LOG\n(.*?)END-LOG", said, re.DOTALL)
        if log is None:
            raise SystemExit(f"no log on the console:\n{said[-4000:]}")
        values = re.findall(r"^PCR (\d+) ([0-9A-Fa-f]{64})$", said, re.MULTILINE)
        return base64.b64decode(log[1]), {pcr: value.lower() for pcr, value in values}


def kernel_changed(parts: Parts) -> tuple[bytes, dict[str, str]]:
    """Started with -kernel, as ovmf.bin was, with another initrd and a word more on the command line."""
    line = "console=ttyS0 quiet init=/bin/sh"
    start = ["-kernel", str(parts.kernel), "-initrd", str(parts.changed_initrd), "-append", line]
    return parts.boot(start)


def uki(parts: Parts) -> tuple[bytes, dict[str, str]]:
    """A unified kernel image, started by the firmware from a disk."""
    image, line, release = (parts.scratch / name for name in ("image.efi", "line", "os-release"))
    line.write_text(LINE)
    release.write_text("ID=debian\nVERSION_ID=12\n")
    contents = {".osrel": release, ".cmdline": line, ".linux": parts.kernel, ".initrd": parts.initrd}
    command: list[str | Path] = ["objcopy"]
    for name, address in SECTIONS.items():
        command += [f"--add-section={name}={contents[name]}", f"--change-section-vma={name}={address:#x}"]
    stub = parts.root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    subprocess.run([*command, stub, image], check=True)
    return parts.boot(parts.system_partition({"EFI/BOOT/BOOTX64.EFI": image}))


def secure_boot(parts: Parts) -> tuple[bytes, dict[str, str]]:
    """Debian's signed shim, GRUB and kernel under Secure Boot with Microsoft's keys."""
    files: dict[str, Path | str] = {
        "EFI/BOOT/BOOTX64.EFI": parts.root / "usr/lib/shim/shimx64.efi.signed",
        "EFI/BOOT/grubx64.efi": parts.root / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        "EFI/debian/grub.cfg": GRUB.format(line=LINE),
        "vmlinuz": parts.kernel,
        "initrd.img": parts.initrd,
    }
    return parts.boot(parts.system_partition(files), secure_boot=True)


BOOTS: Final[dict[str, Callable[[Parts], tuple[bytes, dict[str, str]]]]] = {
    "kernel-changed": kernel_changed,
    "uki": uki,
    "secure-boot": secure_boot,
}


def main(scratch: str, *names: str) -> None:
    """Record the boots called *names*, or all."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    parts = Parts(Path(scratch))
    for name in names or BOOTS:
        log, values = BOOTS[name](parts)
        (HERE / f"{name}.bin").write_bytes(log)
        (HERE / "pcrs" / f"{name}-pcrs.json").write_text(json.dumps({"sha256": values}, indent=1) + "\n")
        print(f"{name}: {len(log)} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])

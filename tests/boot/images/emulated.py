"""Run a command that may start programs of arm64, on a machine of another architecture.

    subprocess.run([*emulated.PREFIX, "chroot", tree, "true"])

Debian's own registration of qemu-user-static serves where it is there.  Otherwise the command gets a user namespace
with a registration of its own (Linux 6.7), so that nothing changes for the rest of the machine.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

#: Before a command; a program, because the namespaces are those of a process.
PREFIX: Final = (sys.executable, __file__)

_EMULATOR: Final = "/usr/bin/qemu-aarch64-static"
_BINFMT: Final = Path("/proc/sys/fs/binfmt_misc")
#: Linux' Documentation/admin-guide/binfmt-misc.rst: an ELF header with 64 bits, little-endian, EM_AARCH64, as a program
#: or a shared object.  F opens the emulator now, so that it is found from inside a chroot.
_MAGIC: Final = r"\x7fELF\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
_MASK: Final = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
_REGISTRATION: Final = f":qemu-aarch64:M::{_MAGIC}:{_MASK}:{_EMULATOR}:F"

#: linux/sched.h
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000


def is_arm64(root: Path) -> bool:
    """Return True if the programs in the tree *root* are those of arm64."""
    header = (root / "usr/bin/env").read_bytes()[:20]
    return header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 0xB7


def _registered() -> bool:
    return platform.machine() == "aarch64" or (_BINFMT / "qemu-aarch64").exists()


def _enter_namespaces() -> None:
    """Move this process into namespaces in which it is root, with the users and groups of the machine."""
    parent, (waiting, ready) = os.getpid(), os.pipe()
    # The maps must be written from outside.
    helper = os.fork()
    if helper == 0:
        os.read(waiting, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}/{name}").write_text("0 0 65536\n")
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(ready, b".")
    assert os.waitpid(helper, 0)[1] == 0, "the maps of the user namespace cannot be written"


def _register() -> None:
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    mounted = subprocess.run(
        ["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        sys.exit(
            f"arm64 programs cannot run here ({mounted.stderr.strip()}). Linux before 6.7 needs Debian's registration:"
            " systemctl restart systemd-binfmt"
        )
    (_BINFMT / "register").write_text(_REGISTRATION)


def main(command: list[str]) -> None:
    """Become *command*."""
    if not _registered():
        _enter_namespaces()
        _register()
    os.execvp(command[0], command)  # noqa: S606 # as the rest of this process, without a shell


if __name__ == "__main__":
    main(sys.argv[1:])

"""A minimal Debian root tree, from this machine's own apt sources."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.boot.images import cache

#: Packages of a small machine with an encrypted root, without ours.
PACKAGES: Final = (
    "linux-image-cloud-amd64",  # TPM drivers built in, and few modules
    "initramfs-tools",
    "busybox",
    "zstd",
    "cryptsetup-initramfs",
    "clevis-luks",
    "clevis-initramfs",
    "tpm2-tools",
    "libtss2-tcti-device0",
    "systemd-sysv",
    "udev",
    "kmod",
    "iproute2",
)

_SOURCES: Final = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
_NEEDLESS: Final = ("doc", "man", "locale", "info", "lintian", "bash-completion")


def base_tree(packages: tuple[str, ...] = PACKAGES, kind: str = "base") -> tuple[Path, str]:
    """The tree and the name of this version of it; another set of packages has a *kind* of its own in the cache."""
    sources = [path for path in _SOURCES if path.exists() and path.stat().st_size]
    name = cache.key("1", *packages, *(path.read_text() for path in sources))
    return cache.entry(kind, name, lambda path: _bootstrap(path, sources, packages), keep=1), name


def _bootstrap(path: Path, sources: list[Path], packages: tuple[str, ...]) -> None:
    suite = next(
        line.partition("=")[2]
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    with tempfile.TemporaryDirectory() as work:
        # Proxies and what a snapshot archive needs, but no hooks of this machine.
        configuration = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=True
        ).stdout
        wanted = ("Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries")
        options = Path(work) / "apt.conf"
        options.write_text(
            "".join(f"{line}\n" for line in configuration.splitlines() if line.startswith(wanted))
        )
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--aptopt={options}"]
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NEEDLESS]
        command += [f"--include={','.join(packages)}", suite, str(path), *map(str, sources)]
        # INITRD=No: the initrd is made later, once, with our parts in it.
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "INITRD": "No"}, check=False
        )
        assert result.returncode == 0, f"mmdebstrap: {result.stderr}"

"""Minimal Debian root trees, from this machine's own apt sources."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from tests.boot.images import cache, emulated

#: Packages of a small machine with an encrypted root, without ours.
_COMMON: Final = (
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
PACKAGES: Final = ("linux-image-cloud-amd64", *_COMMON)  # TPM drivers built in, and few modules
ARM64_PACKAGES: Final = (
    "linux-image-cloud-arm64",  # the other kernel of arm64 has no driver for the emulated TPM
    *_COMMON,
    "grub-efi-arm64-bin",
    "systemd-boot-efi",
)
#: The second Debian whose parts of the initrd are tested; on a machine with it, the only one.
NEWER: Final = "trixie"
#: Debian 12, wherever the tests run: its GRUB for arm64 measures no initrd, and Debian 13's does.
_ARM64_SUITE: Final = "bookworm"

_SOURCES: Final = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
_NEEDLESS: Final = ("doc", "man", "locale", "info", "lintian", "bash-completion")


def base_tree(
    packages: tuple[str, ...] = PACKAGES, kind: str = "base", suite: str | None = None
) -> tuple[Path, str]:
    """Return a root tree of a Debian *suite* (this machine's by default), and the name of this version of it.

    Each other set of packages has a *kind* of its own in the cache.
    """
    suite = suite or own_suite()
    return _tree(kind if suite == own_suite() else f"{suite}{kind}", packages, suite, "")


def cloud_tree() -> tuple[Path, str]:
    """Return the root tree of a cloud machine, and the name of this version of it."""
    return base_tree((*PACKAGES, "cloud-init"), "cloudbase")


def suites() -> tuple[str, ...]:
    """Return the suites in which parts of the initrd are tested: this machine's, and the newer one."""
    return (own_suite(),) if own_suite() == NEWER else (own_suite(), NEWER)


def arm64_tree() -> tuple[Path, str]:
    """The tree of a machine of arm64 with Debian 12, and the name of this version of it."""
    return _tree("arm64base", ARM64_PACKAGES, _ARM64_SUITE, "arm64")


def _tree(kind: str, packages: tuple[str, ...], suite: str, architecture: str) -> tuple[Path, str]:
    """The tree with *packages*, of this machine's architecture if *architecture* is empty."""
    sources = {
        path.name: _for_suite(path, suite) for path in _SOURCES if path.exists() and path.stat().st_size
    }
    name = cache.key("2", suite, architecture, *packages, *sources.values())
    build = partial(_bootstrap, sources=sources, packages=packages, suite=suite, architecture=architecture)
    return cache.entry(kind, name, build, keep=2), name


def own_suite() -> str:
    """Return the code name of this machine's Debian."""
    return next(
        line.partition("=")[2]
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )


def _for_suite(sources: Path, suite: str) -> str:
    """Return the text of an apt sources file with another suite of Debian in it."""
    return re.sub(rf"\b{own_suite()}\b", suite, sources.read_text())


def _bootstrap(
    path: Path, *, sources: dict[str, str], packages: tuple[str, ...], suite: str, architecture: str
) -> None:
    with tempfile.TemporaryDirectory() as work:
        for name, text in sources.items():
            (Path(work) / name).write_text(text)
        # Proxies and what a snapshot archive needs, but no hooks of this machine.
        configuration = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=True
        ).stdout
        wanted = ("Acquire::http", "Acquire::https", "Acquire::Check", "Acquire::Retries")
        options = Path(work) / "apt.conf"
        options.write_text(
            "".join(f"{line}\n" for line in configuration.splitlines() if line.startswith(wanted))
        )
        command = [*emulated.PREFIX] if architecture else []
        command += ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--aptopt={options}"]
        command += [f"--architectures={architecture}"] if architecture else []
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NEEDLESS]
        command += [f"--include={','.join(packages)}", suite, str(path)]
        command += [str(Path(work) / name) for name in sources]
        # INITRD=No: the initrd is made later, once, with our parts in it.
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "INITRD": "No"}, check=False
        )
        assert result.returncode == 0, f"mmdebstrap: {result.stderr}"

"""Minimal Debian systems of a suite in which packages are installed, and the packages of this working tree for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.boot.images import cache
from tests.boot.images.base import own_suite

#: The distributions that packages are built for, the older first.
SUITES: Final = ("bookworm", "trixie")
SOURCES: Final = [
    path
    for path in (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
    if path.exists() and path.stat().st_size
]


def sources(suite: str) -> dict[str, str]:
    """This machine's way to the archive, for *suite*: names of files, and their texts."""
    return {path.name: re.sub(rf"\b{own_suite()}\b", suite, path.read_text()) for path in SOURCES}


def _bootstrap(path: Path, suite: str) -> None:
    """A minimal Debian of *suite*."""
    options = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as directory:
        # Proxies and what a snapshot archive needs, but no hooks of this machine.
        config = Path(directory, "apt.conf")
        config.write_text(
            "\n".join(re.findall(r"^Acquire::(?:https?|Check|Retries).*", options, re.MULTILINE))
        )
        files = [Path(directory, name) for name in sources(suite)]
        for file in files:
            file.write_text(sources(suite)[file.name])
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=ca-certificates"),
                *(f"--aptopt={config}", suite, str(path), *map(str, files)),
            ],
            check=True,
        )


class Machine:
    """A root file system, in which commands run as root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, script: str, *, binds: dict[Path, str] | None = None) -> str:
        """Return the output of *script*, on either stream; its mounts and processes end with it.

        *binds* are directories of this machine, and where the script sees them.
        """
        mounts = [f"mount --rbind /{name} {self.root}/{name}" for name in ("dev", "sys")]
        for source, target in (binds or {}).items():
            (self.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {source} {self.root}{target}")
        environment = [
            *("HOME=/root", "LANG=C.UTF-8", "USER=root", "DEBIAN_FRONTEND=noninteractive"),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *(f"{name}={value}" for name, value in os.environ.items() if name.endswith("_proxy")),
        ]
        result = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"),
                f'{" && ".join(mounts)} && mount -t proc proc {self.root}/proc; exec chroot "$@"',
                *("sh", str(self.root), "env", "-i", *environment, "bash", "-euc", script),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{script}\n{result.stdout[-3000:]}"
        return result.stdout

    def traces(self) -> list[str]:
        """Every file and directory that has our name, and what dpkg and systemd remember of us."""
        return self.run(
            r"find / -xdev '(' -path /proc -o -path /sys -o -path /dev -o -path /srv ')' -prune -o "
            r"'(' -name '*tang-attest*' -o -name '*clevis*attest*' ')' -print -prune | sort"
        ).splitlines()


@contextmanager
def machine(directory: Path, suite: str) -> Iterator[Machine]:
    """A Debian of *suite* below *directory*, for one test."""
    name = cache.key("2", suite, *sources(suite).values())
    base = cache.entry(f"minbase_{suite}", name, lambda path: _bootstrap(path, suite), keep=1)
    root = directory / f"root-{suite}"
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
    for path in map(
        Path, ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf")
    ):
        if path.is_file():
            shutil.copyfile(path, root / path.relative_to("/"))
    yield Machine(root)
    shutil.rmtree(root)


def built(directory: Path, suite: str, architecture: str | None = None) -> dict[str, Path]:
    """The packages of this working tree, built once below *directory*, which all processes of the run share; by name."""

    def build(path: Path) -> None:
        options = ["--suite", suite, *(["--arch", architecture] if architecture else [])]
        subprocess.run(["tools/build-deb", *options, str(path)], cwd=cache.ROOT, check=True)

    output = cache.once(directory / f"deb-{suite}-{architecture or 'own'}", build)
    return {path.name.split("_")[0]: path for path in output.rglob("*.deb")}

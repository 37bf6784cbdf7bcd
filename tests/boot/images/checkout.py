"""A root of another Debian with this checkout in it: its tests run there with that Debian's programs and Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.boot.images import cache
from tests.boot.images.base import base_tree
from tests.boot.images.tree import chroot

#: The checkout, in the root.
_PLACE: Final = Path("root/tang-attest")
#: Settings of this machine that pip needs, as tools/fresh-root takes them.
_SETTINGS: Final = ("/etc/pip.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
#: Inputs of .venv, and what pip needs to install the checkout itself.
_INPUTS: Final = ("tools/setup", "tools/apt-packages", "requirements.lock", "pyproject.toml")
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")


def _packages() -> tuple[str, ...]:
    """Return the packages of tools/apt-packages without those of boots, packages, NixOS and the model."""
    text = (cache.ROOT / "tools/apt-packages").read_text().partition("# boot tests")[0]
    return (
        *(name for line in text.splitlines() for name in line.partition("#")[0].split()),
        "git",
        "make",
        "procps",
    )


def _image(suite: str) -> Path:
    """Return a root of *suite* with the packages and .venv; the tests do not change it."""
    base, base_name = base_tree(_packages(), "checkoutbase", suite)
    name = cache.key(base_name, Path(__file__), *(cache.ROOT / file for file in _INPUTS))
    return cache.entry(f"{suite}checkout", name, lambda path: _build(path, base), keep=1)


def _build(path: Path, base: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(path)], check=True)
    for file in map(Path, _SETTINGS):
        if file.is_file():
            target = path / file.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    _copy_sources(path / _PLACE)
    proxies = "".join(f"export {name}='{os.environ[name]}'; " for name in _PROXIES if name in os.environ)
    chroot(path, f"{proxies}export HOME=/root; cd /{_PLACE} && SETUP_APT=no tools/setup")


def _copy_sources(target: Path) -> None:
    """Copy what git knows or would add; changes that are not committed count."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=cache.ROOT, check=True, capture_output=True).stdout
    there = b"\0".join(name for name in names.split(b"\0") if name and (cache.ROOT / name.decode()).exists())
    target.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["tar", "--create", "--null", "--files-from=-"],
        cwd=cache.ROOT,
        input=there,
        check=True,
        capture_output=True,
    ).stdout
    subprocess.run(["tar", "--extract", "--no-same-owner"], cwd=target, input=archive, check=True)


@contextmanager
def checkout(suite: str, directory: Path) -> Iterator[Path]:
    """Yield a root of *suite* with this checkout as it is now; what is written goes to *directory*."""
    image = _image(suite)
    root, upper, work = (directory / name for name in ("root", "upper", "work"))
    for path in (root, upper, work):
        path.mkdir()
    options = f"lowerdir={image},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(root)], check=True)
    try:
        for path in (root / _PLACE).iterdir():
            if path.name not in (".venv", "build"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _copy_sources(root / _PLACE)
        yield root
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def run(root: Path, command: str, *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run *command* in the checkout, with processes and mounts that end with it."""
    script = (
        'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && mount -t sysfs -o ro sysfs "$0/sys" && '
        'mount -t tmpfs tmpfs "$0/run" && exec chroot "$0" env -i HOME=/root LANG=C.UTF-8 TERM=dumb '
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -c "$1"'
    )
    # A shell that has more to do than this command remains as PID 1, and reaps.
    inside = f"cd /{_PLACE} && {command}; exit $?"
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, str(root), inside],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip

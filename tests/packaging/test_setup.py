"""tools/setup finds out what is missing, on each supported Debian and on machines that are none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boot.images.cache import ROOT

#: Packages of tools/apt-packages that Debian 13 has under another name.
T64 = ("libtss2-tcti-device0", "libtss2-tcti-swtpm0")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with the script and its list, and programs that stand for a machine."""
    (tmp_path / "tools").mkdir()
    for name in ("setup", "apt-packages"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools")
    program(tmp_path, "apt-get", 'echo "$@" >>called; exit 1')
    return tmp_path


def program(checkout: Path, name: str, script: str) -> None:
    """Put a program before those of this machine."""
    path = checkout / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def dpkg(checkout: Path, installed: dict[str, str]) -> None:
    """Stand for a dpkg that has these packages, each with its Provides; as of version 1.22."""
    lines = "".join(f"installed {name}, {provides}\n" for name, provides in installed.items())
    (checkout / "status").write_text(f"{lines}config-files gcc, c-compiler\n")
    program(checkout, "dpkg-query", f"cat {checkout}/status")


def run(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the directory, with its programs first."""
    environment = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def wanted(checkout: Path) -> list[str]:
    """Names in tools/apt-packages."""
    lines = (checkout / "tools/apt-packages").read_text().splitlines()
    return [name for line in lines for name in line.partition("#")[0].split()]


def missing(checkout: Path) -> list[str]:
    """Packages that the script would install."""
    done = run(checkout, "bash", "-c", ". tools/setup; missing_packages")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_provided_package_is_not_missing(checkout: Path) -> None:
    """As in Debian 13; with a version, without one, and with several names."""
    names = wanted(checkout)
    assert set(T64) <= set(names)
    real = {name: "" for name in names if name not in T64}
    dpkg(
        checkout,
        real | {"lib-t64": "some-other (= 1), libtss2-tcti-device0 (= 4.1.3-1.2)", "swtpm-t64": T64[1]},
    )
    assert missing(checkout) == []


def test_a_package_that_is_not_installed_is_missing(checkout: Path) -> None:
    """A removed package with configuration files is not installed, and a similar name is another package."""
    real = {name: "" for name in wanted(checkout) if name not in ("gcc", *T64)}
    dpkg(checkout, real | {"gcc-12": "c-compiler", "libtss2-tcti-device0t64x": "libtss2-tcti-device0-dev"})
    assert missing(checkout) == ["gcc", T64[1], T64[0]]


def test_this_machine_misses_nothing() -> None:
    """By its own dpkg; the tests run where `make setup` has installed all, or where SETUP_APT=no leaves that to others."""
    done = subprocess.run(
        ["bash", "-c", ". tools/setup; installed_packages"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"bash", "dpkg"} <= set(done.stdout.split())
    assert "awk" in done.stdout.split()  # provided only


def test_a_32_bit_system_is_told_before_anything_is_installed(checkout: Path) -> None:
    """One sentence: wheels are missing there, and the pin works."""
    dpkg(checkout, {})
    program(checkout, "getconf", "echo 32")
    done = run(checkout, "tools/setup")
    assert done.returncode == 1
    assert done.stderr == (
        "setup: the server needs a 64-bit system: google-re2, asyncpg and uvloop have no wheels for 32-bit ARM; "
        "the pin runs there.\n"
    )
    assert not (checkout / "called").exists()

"""The Debian packages, in a Debian 12 that has nothing else: they install, work, and go without a trace but the keys."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tang_attest
from tests.boot.images import cache
from tools.runtime_lock import runtime_lock

DRACUT = "clevis-dracut-attest"
NAMES = ["clevis-initramfs-attest", "clevis-pin-attest", "tang-attest"]
SOURCES = [
    path
    for path in (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
    if path.exists() and path.stat().st_size
]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages of this working tree, built once in a run; by name."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent  # shared by the workers
    built = directory / "deb"
    with (directory / "deb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            subprocess.run(["tools/build-deb", str(directory / "deb.partial")], cwd=cache.ROOT, check=True)
            (directory / "deb.partial").rename(built)
    return {path.name.split("_")[0]: path for path in built.rglob("*.deb")}


def _bootstrap(path: Path) -> None:
    """A minimal Debian of this machine's release, with this machine's way to the archive."""
    suite = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    assert suite
    options = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        # Proxies and what a snapshot archive needs, but no hooks of this machine.
        file.write("\n".join(re.findall(r"^Acquire::(?:https?|Check|Retries).*", options, re.MULTILINE)))
        file.flush()
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=ca-certificates"),
                *(f"--aptopt={file.name}", suite[1], str(path), *map(str, SOURCES)),
            ],
            check=True,
        )


class Machine:
    """A root file system, in which commands run as root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, script: str) -> str:
        """Return the output of *script*, on either stream; its mounts and processes end with it."""
        mounts = "".join(f"mount --rbind /{name} {self.root}/{name} && " for name in ("dev", "sys"))
        environment = [
            *("HOME=/root", "LANG=C.UTF-8", "USER=root", "DEBIAN_FRONTEND=noninteractive"),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *(f"{name}={value}" for name, value in os.environ.items() if name.endswith("_proxy")),
        ]
        result = subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"),
                f'{mounts} mount -t proc proc {self.root}/proc; exec chroot "$@"',
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


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A Debian of its own."""
    name = cache.key("1", *(path.read_text() for path in SOURCES))
    base = cache.entry("minbase", name, _bootstrap, keep=1)
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
    for path in map(Path, ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")):
        if path.is_file():
            shutil.copyfile(path, root / path.relative_to("/"))
    yield Machine(root)
    shutil.rmtree(root)


def _field(package: Path, name: str) -> str:
    return subprocess.run(
        ["dpkg-deb", "--field", str(package), name], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_changelog_has_the_version() -> None:
    """The packages' version is the program's."""
    changelog = (cache.ROOT / "packaging/debian/changelog").read_text()
    assert changelog.startswith(f"tang-attest ({tang_attest.__version__}) ")


def test_a_library_that_is_not_locked_is_not_shipped() -> None:
    """Every library in the package has a hash in requirements.lock."""
    with pytest.raises(SystemExit, match=r"requirements\.lock lacks nothing-known"):
        runtime_lock("known==1 \\\n    --hash=sha256:00\n", {"nothing-known"})  # type: ignore[arg-type]


@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_packages_hold_what_they_should(packages: dict[str, Path]) -> None:
    """Root owns every file, nothing of the build is left, and the libraries are those that run, not those that test."""
    assert sorted(packages) == sorted([DRACUT, *NAMES])
    listings = {}
    for name, package in packages.items():
        listing = subprocess.run(
            ["dpkg-deb", "--contents", str(package)], capture_output=True, text=True, check=True
        ).stdout
        assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}
        assert {line[:10] for line in listing.splitlines()} <= {
            *("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx")
        }
        listings[name] = {line.split()[5] for line in listing.splitlines()}
    libraries = {
        path.split("/")[7]
        for path in listings["tang-attest"]
        if "/site-packages/" in path and path[-1] != "/"
    }
    assert {"tang_attest", "aiohttp", "tpm2_pytss"} <= libraries
    assert (
        libraries & {"pip", "setuptools", "pytest", "_pytest", "mypy", "hypothesis", "uv", "tests"} == set()
    )
    assert not [
        path for path in listings["tang-attest"] if path.endswith((".pyc", "RECORD", "direct_url.json"))
    ]
    files = [path for listing in listings.values() for path in listing if path[-1] != "/"]
    assert [path for path in set(files) if files.count(path) > 1] == []
    for name in (DRACUT, "clevis-initramfs-attest"):
        trigger = subprocess.run(
            ["dpkg-deb", "--info", str(packages[name]), "triggers"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "activate-noawait update-initramfs" in trigger
    assert "libtss2-esys" in _field(packages["tang-attest"], "Depends")


SERVE = """
cd /var/lib/tang-attest
TANG_ATTEST_HOST=127.0.0.1 TANG_ATTEST_PORT=0 TANG_ATTEST_PORT_FILE=/var/lib/tang-attest/port \
    setpriv --reuid tang-attest --regid tang-attest --clear-groups --no-new-privs --bounding-set=-all \
    $(sed -n s/^ExecStart=//p /lib/systemd/system/tang-attest.service) &
for _ in $(seq 300); do [ ! -s port ] || break; sleep 0.1; done
curl --silent --fail --show-error "http://127.0.0.1:$(cat port)/adv"
kill -TERM $!
wait $!
rm port
"""


@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_a_debian_machine_from_install_to_purge(packages: dict[str, Path], machine: Machine) -> None:
    """apt finds every dependency; an administrator needs no more than the commands that are shown; keys survive."""
    for name in NAMES:
        shutil.copy(packages[name], machine.root / "srv")
    assert machine.traces() == []
    machine.run("apt-get --quiet update")
    said = machine.run("apt-get --quiet --yes install --no-install-recommends /srv/*.deb")
    assert "    tang-attest init\n    systemctl start tang-attest\n" in said

    # Installed files
    assert machine.run("tang-attest --version") == f"tang-attest, version {tang_attest.__version__}\n"
    unit = "/lib/systemd/system/tang-attest.service"
    assert machine.run(f"systemd-analyze verify --man=no {unit}") == ""
    machine.run(f"systemd-analyze security --offline=true --threshold=15 --no-pager {unit}")
    assert machine.run("systemctl is-enabled tang-attest") == "enabled\n"
    assert machine.run("stat -c '%U %G %a' /var/lib/tang-attest") == "tang-attest tang-attest 700\n"
    assert machine.run("clevis encrypt attest --summary").startswith("Encrypts using")
    assert machine.run("find /usr/lib/tang-attest -name '*.pyc' | wc -l") != "0\n"
    machine.run("[ -s /usr/share/man/man8/tang-attest.8.gz ]")
    machine.run("[ -s /usr/share/man/man8/tang-attest-device-verify.8.gz ]")
    machine.run("[ -s /usr/share/zsh/vendor-completions/_tang-attest ]")
    machine.run("[ -s /usr/share/fish/vendor_completions.d/tang-attest.fish ]")
    assert "observation\n" in machine.run(
        ". /usr/share/bash-completion/completions/tang-attest; COMP_WORDS=(tang-attest ob); COMP_CWORD=1;"
        " _tang_attest_completion tang-attest; printf '%s\\n' ${COMPREPLY[@]}"
    )

    # Root makes the state, and it is the service's
    assert re.search(r"^[\w-]{43}$", machine.run("tang-attest init"), re.MULTILINE)
    assert machine.run("find /var/lib/tang-attest ! -user tang-attest") == ""
    assert machine.run("stat -c %a /var/lib/tang-attest/kek") == "400\n"
    assert '"payload"' in machine.run(SERVE)

    # Root's other commands, also with a file that only root may read
    machine.run("tang-attest token create --name pi-b --record --allow-unverified-ek")
    shutil.copy(cache.ROOT / "tests/vectors/ek/infineon-ecc-root.pem", machine.root / "root/vendor.pem")
    machine.run("chmod 600 /root/vendor.pem; cd /root; tang-attest ek-root add vendor.pem")
    assert "operator:root" in machine.run("tang-attest audit")
    assert machine.run("find /var/lib/tang-attest ! -user tang-attest") == ""

    # A state directory of root's own stays root's
    machine.run("tang-attest --state /root/state init")
    assert machine.run("find /root/state ! -user root; rm -r /root/state") == ""

    # Upgrade: settings and keys stay
    machine.run("echo 'port = 7501' >>/etc/tang-attest.toml; cp /var/lib/tang-attest/kek /srv")
    said = machine.run("dpkg --install /srv/tang-attest_*.deb; grep 7501 /etc/tang-attest.toml")
    assert "tang-attest init" not in said

    # With dracut instead of initramfs-tools, apt would find everything too
    (machine.root / "srv/dracut").mkdir()
    shutil.copy(packages[DRACUT], machine.root / "srv/dracut")
    said = machine.run("apt-get --quiet --yes --simulate install --no-install-recommends /srv/dracut/*.deb")
    assert f"Inst {DRACUT} " in said
    assert "Remv clevis-initramfs-attest " in said

    # The end: initramfs-tools has nothing to forget
    machine.run("mkdir /var/lib/clevis-attest; echo enrolled >/var/lib/clevis-attest/pi-b")
    machine.run(f"apt-get --quiet --yes remove {' '.join(NAMES)}; [ -e /etc/tang-attest.toml ]")
    said = machine.run("apt-get --quiet --yes purge clevis-pin-attest tang-attest")
    assert "still in /var/lib/tang-attest" in said
    assert "still in /var/lib/clevis-attest" in said
    assert machine.traces() == ["/var/lib/clevis-attest", "/var/lib/tang-attest"]
    machine.run("cmp /var/lib/tang-attest/kek /srv/kek; [ -s /var/lib/clevis-attest/pi-b ]")

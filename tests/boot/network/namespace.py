"""The network step of a real initrd, in network namespaces instead of a machine: seconds instead of a boot.

The initrd is unpacked and entered with chroot.  It has one network card, the end of a cable; at the other end is a
:class:`Lan`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.boot.images import cache
from tests.boot.images.tree import Built

ROUTER: Final = "192.0.2.1"
ROUTER_6: Final = "2001:db8::1"
PORT: Final = 8000
_STEP: Final = "BOOT=local /bin/sh /scripts/local-top/clevis-attest-net"
_PATIENCE: Final = 300.0


def unpack(built: Built, directory: Path) -> Path:
    """The files of the initrd, for one test; its own tree has the program that unpacks it."""
    script = 'mount --bind "$0" "$1/mnt" && exec chroot "$1" unmkinitramfs /mnt/initrd /mnt/unpacked'
    subprocess.run(["cp", "--reflink=auto", str(built.initrd), str(directory / "initrd")], check=True)
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(directory), str(built.root)],
        check=True,
        capture_output=True,
    )
    return directory / "unpacked"


@dataclass
class Guest:
    """The inside of an initrd with a network card."""

    root: Path
    pid: int
    router: int
    terminal: int  #: both ends of the pipe that is /dev/console
    said: bytes = b""

    def run(self, script: str) -> str:
        """Return the output of *script* in the initrd."""
        command = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "chroot", str(self.root)]
        environment = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        return _run([*command, *environment, "/bin/sh", "-c", script])

    def raise_network(self) -> None:
        """Run the network step; it goes on in the background."""
        self.run(f"{_STEP} </dev/null >/dev/null 2>&1")

    def plug(self, state: str) -> None:
        """The cable is plugged in (``up``) or pulled out (``down``) at its other end."""
        _run(["nsenter", "-t", str(self.router), "-n", "ip", "link", "set", "cable", state])

    def wait_for_network(self) -> None:
        """Until the step says that the pin can begin."""
        deadline = time.monotonic() + _PATIENCE
        while (self.root / "run/clevis-attest/network-pending").exists():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    @property
    def log(self) -> str:
        """Notes of the step itself."""
        return (self.root / "run/clevis-attest/network.log").read_text()

    @property
    def console(self) -> str:
        """Console as a person saw it."""
        with suppress(BlockingIOError):
            self.said += os.read(self.terminal, 65536)
        return self.said.decode()

    def fetch(self, host: str) -> str:
        """Answer of the web server at the other end to the initrd's curl."""
        return self.run(f"curl -sSf --max-time 100 'http://{host}:{PORT}/hello'")


@contextmanager
def guest(root: Path, command_line: str, *, dhcp: bool = False, prefix: str = "") -> Iterator[Guest]:
    """An initrd with *command_line* whose cable leads to a router, which answers DHCP, advertises *prefix*, or neither."""
    with ExitStack() as stack:
        router = stack.enter_context(_held("--net"))
        machine = stack.enter_context(_held("--net", "--mount", "--pid", "--uts"))
        at_router, in_machine = (
            ["nsenter", "-t", str(router), "-n"],
            ["nsenter", "-t", str(machine), "-n", "-m"],
        )
        _run([*at_router, "ip", "link", "add", "cable", "type", "veth", "peer", "name", "eth0"])
        _run([*at_router, "ip", "link", "set", "eth0", "netns", str(machine)])
        for command in (
            "link set cable up",
            f"addr add {ROUTER}/24 dev cable",
            f"addr add {ROUTER_6}/64 dev cable nodad",
        ):
            _run([*at_router, "ip", *command.split()])
        _furnish(root, command_line)
        mounts = 'mount -t sysfs sysfs "$0/real" && mount -t proc proc "$0/proc" && mount --bind "$0/cmdline" "$0/proc/cmdline"'
        _run([*in_machine, "-p", "sh", "-c", mounts, str(root)])
        (root.parent / "hello").write_text("hello\n")
        servers = [
            [sys.executable, "-m", "http.server", "--bind", "::", "--directory", str(root.parent), str(PORT)]
        ]
        if dhcp:
            servers.append(["busybox", "udhcpd", "-f", str(_udhcpd(root.parent))])
        if prefix:
            servers.append([sys.executable, "-m", "tests.boot.network.router", "cable", prefix])
        for server in servers:
            stack.enter_context(_background([*at_router, *server], root.parent / "servers.log"))
        terminal = os.open(root / "dev/console", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, terminal)
        yield Guest(root, machine, router, terminal)


def _furnish(root: Path, command_line: str) -> None:
    """Mounts that the kernel and init would have made."""
    # veth is no hardware, which the step looks for; the state of the link is the kernel's.
    card = root / "sys/class/net/eth0"
    for path in (card, root / "real", root / "proc", root / "dev", root / "run"):
        path.mkdir(parents=True, exist_ok=True)
    (card / "device").touch()
    for name in ("operstate", "flags"):
        (card / name).symlink_to(f"/real/class/net/eth0/{name}")
    (root / "cmdline").write_text(f"quiet {command_line}\n")
    # Not a file: every line would replace the one before.
    os.mkfifo(root / "dev/console")
    for name, minor in (("null", 3), ("urandom", 9)):
        _run(["mknod", str(root / "dev" / name), "c", "1", str(minor)])


def _udhcpd(directory: Path) -> Path:
    path = directory / "udhcpd.conf"
    leases = directory / "leases"
    leases.touch()
    path.write_text(
        f"start 192.0.2.20\nend 192.0.2.30\ninterface cable\nlease_file {leases}\npidfile {directory}/udhcpd.pid\n"
        f"option subnet 255.255.255.0\noption router {ROUTER}\noption dns {ROUTER}\n"
    )
    return path


@contextmanager
def _held(*namespaces: str) -> Iterator[int]:
    """A process in new namespaces; they end with it."""
    with _background(["unshare", *namespaces, "--fork", "--kill-child", "sleep", "infinity"]) as outer:
        children = Path(f"/proc/{outer}/task/{outer}/children")
        deadline = time.monotonic() + _PATIENCE
        # unshare has made the namespaces when its child is `sleep`.
        while (
            not (pids := children.read_text().split())
            or "sleep" not in Path(f"/proc/{pids[0]}/comm").read_text()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield int(pids[0])


@contextmanager
def _background(command: list[str], log: Path | None = None) -> Iterator[int]:
    with (log or Path("/dev/null")).open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cache.ROOT
        )
    try:
        yield process.pid
    finally:
        process.kill()  # unshare ignores anything milder while its child runs
        process.wait()


def _run(command: list[str]) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=120
    )
    assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
    return result.stdout

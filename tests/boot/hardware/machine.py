"""A computer: QEMU under emulation, firmware that measures, a software TPM, a serial console.

    machine = Machine(directory, kernel=..., initrd=..., disks=[...], command_line=...)
    with machine.boot() as console:
        console.wait_for("login:")

Everything that survives a boot (the TPM's memory, the firmware's variables, the disks) is in the machine's
directory.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Final

from tests.boot.hardware.interposer import Interposer
from tests.boot.hardware.platform import PC, Platform
from tests.boot.hardware.pulse import EmulatorHung, Pulse
from tests.boot.hardware.qmp import connect
from tests.boot.hardware.reset_line import ResetLine
from tests.swtpm import Swtpm

#: TEST-NET-1 (RFC 5737): an address that the host can never have.
SERVER: Final = "192.0.2.100"
SERVER_PORT: Final = 7500

#: Seconds to wait for what takes half a minute on an idle machine: a busy one may be many times slower, and what is
#: waited for either comes or does not.
PATIENCE: Final = 300.0
#: Parts that cost time under emulation and prove nothing here.
FASTER: Final = "mitigations=off cryptomgr.notests"
#: no_timer_check: on a busy host, the kernel's check of the emulated timer fails now and then, and it panics.
COMMAND_LINE: Final = (
    f"console=ttyS0 quiet loglevel=3 no_timer_check net.ifnames=0 {FASTER}"
    " root=/dev/mapper/root ro fastboot init=/usr/local/sbin/first-init"
)


#: Seconds after which a prompt that is still shown has lost what was typed.
_LOST_S: Final = 15.0
#: Characters of the console that a failure shows.
_SHOWN: Final = 4000


class NotSeen(AssertionError):
    """The console did not say what a test waited for."""


class Console:
    """The serial console: everything it said is kept, and waited for in order."""

    def __init__(self, path: Path, log: Path) -> None:
        self._socket = connect(path)
        self._log = log.open("ab")
        self._condition = threading.Condition()
        self._said = ""
        self._position = 0
        self._open = True
        self._hung = ""
        self.started = time.monotonic()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def said(self) -> str:
        """Everything so far, without escape sequences."""
        with self._condition:
            return self._said

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The next place where *pattern* matches, after the last one that was waited for.

        Raises :exc:`NotSeen` after *timeout* seconds or when the machine goes off, and :exc:`EmulatorHung` at once when
        the emulator hangs.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            while True:
                match = re.compile(pattern).search(self._said, self._position)
                if match:
                    self._position = match.end()
                    return match
                if self._hung:
                    raise EmulatorHung(f"{self._hung}; the console said last:\n{self._said[-_SHOWN:]}")
                left = deadline - time.monotonic()
                if left <= 0 or not self._open:
                    why = f"in {timeout:.0f} s" if self._open else "before the machine went off"
                    raise NotSeen(f"no {pattern!r} {why}; the console said:\n{self._said[-_SHOWN:]}")
                self._condition.wait(left)

    def elapsed(self) -> float:
        """Seconds since power on."""
        return time.monotonic() - self.started

    def type(self, line: str) -> None:
        """Type a line."""
        self._socket.sendall(line.encode() + b"\r")

    def answer(self, prompt: str, line: str, pattern: str) -> re.Match[str]:
        """Type *line* at *prompt*, and return the match of *pattern* that follows.

        sulogin discards its input after it has prompted (TCSAFLUSH in getpasswd), so a line that comes at once may be lost.
        It is typed again only while the prompt is the last thing that the console shows.
        """
        self.wait_for(prompt)
        deadline = time.monotonic() + PATIENCE
        while True:
            self.type(line)
            try:
                return self.wait_for(pattern, _LOST_S)
            except NotSeen:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if not re.search(rf"(?:{prompt})\s*\Z", self.said):
                    return self.wait_for(pattern, left)

    def hang(self, reason: str) -> None:
        """Let everybody who waits, now or later, fail with *reason*."""
        with self._condition:
            self._hung = reason
            self._condition.notify_all()

    def shell(self, command: str, timeout: float = PATIENCE) -> str:
        """Return the output of *command* in the shell that first-init (or the initrd) runs on the console."""
        marker = f"done-{time.monotonic_ns()}"
        # The marker is typed in two parts, so that the echo of the command is not taken for its end.
        self.type(f"{command}; echo '{marker[:6]}''{marker[6:]}' $?")
        match = self.wait_for(rf"(?s)\n(.*?){marker} (\d+)", timeout)
        return match[1].replace("\r", "")

    def close(self) -> None:
        with suppress(OSError):  # a machine that is off hung up already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._log.close()

    def _read(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except OSError:
                data = b""
            with self._condition:
                if data:
                    if not self._log.closed:
                        self._log.write(data)
                        self._log.flush()
                    text = data.decode(errors="replace")
                    self._said += re.sub(r"\x1b(\[[0-9;?=]*[A-Za-z]|[a-z0-9])", "", text).replace("\r", "")
                else:
                    self._open = False
                self._condition.notify_all()
            if not data:
                return


@dataclass(frozen=True)
class Network:
    """Network of the machine."""

    cards: int = 1
    #: The port on 127.0.0.1 behind SERVER:SERVER_PORT; None and the network answers DHCP but has no server.
    server_port: int | None = None
    silent: bool = False  #: a cable with nobody at its other end


@dataclass
class Machine:
    """A machine that can be booted again and again."""

    directory: Path
    kernel: Path
    initrd: Path
    disks: list[Path]
    network: Network = field(default_factory=Network)
    _: KW_ONLY
    command_line: str = COMMAND_LINE
    platform: Platform = PC
    has_tpm: bool = True
    #: A unified kernel image on an EFI system partition, instead of kernel, initrd and command line; or a directory that
    #: holds all of such a partition.
    image: Path | None = None
    systemd: bool = False  #: a whole boot to a login prompt; without, a shell as soon as the root is open
    #: More of QEMU's options: what else somebody may plug in, or write into the firmware.
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        variables = self.directory / "variables"
        if not variables.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.platform.variables is None:
                variables.touch()
            else:
                shutil.copy(self.platform.variables, variables)
            Swtpm(self.directory / "tpm", create_ek_cert=True, banks=("sha256",))

    @property
    def tpm(self) -> Swtpm:
        """Its TPM, for use while the machine is off."""
        return _kept_tpm(self.directory / "tpm")

    @contextmanager
    def boot(self) -> Iterator[Console]:
        """Power on, until the end of the block."""
        with self._tpm_for_qemu() as tpm, self._start(tpm) as console:
            yield console

    @contextmanager
    def without_tpm_reset(self) -> Iterator[Callable[[], AbstractContextManager[Console]]]:
        """Yield a machine that boots, again and again, as a machine with nothing on its TPM's reset line: it keeps its PCRs."""
        with (
            self._tpm_for_qemu() as tpm,
            ResetLine(self.directory / "reset-line.sock", tpm) as cut,
        ):
            yield lambda: self._start(cut)

    @contextmanager
    def boot_with_interposer(self) -> Iterator[tuple[Console, Interposer]]:
        """Power on, with somebody on the TPM's wires who lets everything pass but the cap."""
        with self._tpm_for_qemu() as tpm:
            interposer = Interposer(self.directory / "interposer.sock", tpm)
            with interposer as wires, self._start(wires) as console:
                yield console, interposer

    @contextmanager
    def _start(self, chardev: Path) -> Iterator[Console]:
        serial, qmp = self.directory / "serial", self.directory / "qmp"
        for path in (serial, qmp):
            path.unlink(missing_ok=True)
        with ExitStack() as stack:
            log = stack.enter_context((self.directory / "qemu.log").open("ab"))
            qemu = subprocess.Popen(
                self._command(serial, qmp, chardev), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(_end, qemu)
            try:
                console = Console(serial, self.directory / "console.log")
            except OSError:
                raise AssertionError((self.directory / "qemu.log").read_text(errors="replace")) from None
            stack.callback(console.close)
            stack.enter_context(Pulse(qemu.pid, qmp, console.hang))
            yield console

    @contextmanager
    def _tpm_for_qemu(self) -> Iterator[Path]:
        """swtpm with a control channel that QEMU understands, over the machine's TPM state."""
        path = self.directory / "swtpm.sock"
        path.unlink(missing_ok=True)
        with (self.directory / "swtpm.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(
                        "swtpm",
                        "socket",
                        "--tpm2",
                        "--tpmstate",
                        f"dir={(self.directory / 'tpm' / 'state').absolute()}",
                    ),
                    *("--ctrl", f"type=unixio,path={path}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait_until_exists(path)
            yield path
        finally:
            _end(process)

    def _command(self, console: Path, qmp: Path, tpm: Path) -> list[str]:
        command = [self.platform.emulator, "-nodefaults", "-display", "none", *self.platform.board]
        command += self.platform.flash(self.directory / "variables")
        if self.has_tpm:
            command += ["-chardev", f"socket,id=tpm,path={tpm}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
            command += ["-device", f"{self.platform.tpm},tpmdev=tpm0"]
        if self.image is None:
            command += [
                "-kernel",
                str(self.kernel),
                "-initrd",
                str(self.initrd),
                "-append",
                self.command_line,
            ]
        command += ["-serial", f"unix:{console},server=on,wait=off", "-monitor", "none"]
        command += ["-qmp", f"unix:{qmp},server=on,wait=off"]
        for number, disk in enumerate(self.disks):
            command += ["-drive", f"if=none,id=d{number},format=raw,cache=unsafe,file={disk}"]
            serial = "systemd" if self.systemd else f"disk{number}"
            command += ["-device", f"virtio-blk-pci,drive=d{number},serial={serial}"]
        if self.image is not None:
            command += [
                "-drive",
                f"if=none,id=esp,format=raw,snapshot=on,file=fat:{self._system_partition()}",
            ]
            command += [part for device in self.platform.boot_disk for part in ("-device", device)]
        for number in range(self.network.cards):
            command += [
                "-netdev",
                self._netdev(number),
                "-device",
                f"virtio-net-pci,netdev=n{number},romfile=",
            ]
        return [*command, *self.options, "-no-reboot"]

    def _system_partition(self) -> Path:
        """A directory with the image where the firmware looks for it; QEMU makes a FAT file system of it."""
        assert self.image is not None
        directory = self.directory / "esp"
        shutil.rmtree(directory, ignore_errors=True)
        if self.image.is_dir():
            shutil.copytree(self.image, directory)
            return directory
        target = directory / "EFI" / "BOOT" / self.platform.boot_file
        target.parent.mkdir(parents=True)
        shutil.copy(self.image, target)
        return directory

    def _netdev(self, number: int) -> str:
        # Only the last of several cards is plugged in: the first to answer is not the first in the list.
        if self.network.silent or number < self.network.cards - 1:
            return f"hubport,id=n{number},hubid={number}"
        options = f"user,id=n{number},restrict=on,net=192.0.2.0/24,host=192.0.2.2,dhcpstart=192.0.2.15,dns=192.0.2.3"
        if self.network.server_port is not None:
            forward = f"socat - TCP:127.0.0.1:{self.network.server_port}"
            options += f",guestfwd=tcp:{SERVER}:{SERVER_PORT}-cmd:{forward}"
        return options


def _kept_tpm(directory: Path) -> Swtpm:
    """A TPM whose state exists already."""
    tpm = object.__new__(Swtpm)
    tpm.directory, tpm.state, tpm.log, tpm.ca = (
        directory,
        *(directory / name for name in ("state", "swtpm.log", "ca")),
    )
    tpm.port, tpm._process = 0, None
    return tpm


def _wait_until_exists(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

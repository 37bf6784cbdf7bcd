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
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from tests.boot.hardware.evidence import examine
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
#: norandmaps: QEMU translates a program again for each address at which it is mapped.
FASTER: Final = "mitigations=off cryptomgr.notests norandmaps"
#: Linux answers every magic key, so that a machine on which a test waits in vain tells the place of each processor.
TELLING: Final = "sysrq_always_enabled"
#: no_timer_check: on a busy host, the kernel's check of the emulated timer fails now and then, and it panics.
COMMAND_LINE: Final = (
    f"console=ttyS0 quiet loglevel=3 no_timer_check net.ifnames=0 {FASTER} {TELLING}"
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
        #: Return the state of the machine, for a failure to show; Linux' answers may follow on the console.
        self.examine: Callable[[], str] = str
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
        the emulator hangs; both show what the console said and what :attr:`examine` finds.
        """
        if match := self._next(pattern, timeout):
            return match
        return self._fail(
            f"no {pattern!r} {f'in {timeout:.0f} s' if self._open else 'before the machine went off'}"
        )

    def stays_without(self, pattern: str, seconds: float) -> None:
        """Watch the console for *seconds*, or until the machine goes off: nothing matches *pattern*."""
        match = self._next(pattern, seconds)
        assert match is None, f"the console said {match[0]!r}:\n{self.said[-_SHOWN:]}"
        if self._hung:
            self._fail(self._hung)

    def goes_off_without(self, pattern: str, timeout: float = PATIENCE) -> None:
        """Wait until the machine goes off: nothing matches *pattern* before."""
        self.stays_without(pattern, timeout)
        if self._open:
            self._fail(f"the machine did not go off in {timeout:.0f} s")

    def _next(self, pattern: str, timeout: float) -> re.Match[str] | None:
        """Wait for the next match; None after *timeout* seconds, or when the machine goes off or its emulator hangs."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while True:
                match = re.compile(pattern).search(self._said, self._position)
                if match:
                    self._position = match.end()
                    return match
                left = deadline - time.monotonic()
                if left <= 0 or self._hung or not self._open:
                    return None
                self._condition.wait(left)

    def _fail(self, reason: str) -> NoReturn:
        """Raise an error that shows the console and the state of the machine, unless it is off."""
        error, why = (EmulatorHung, self._hung) if self._hung else (NotSeen, reason)
        shown = max(0, len(self.said) - _SHOWN)
        found = self.examine() if self._open else ""
        raise error(f"{why}; the console said last:\n{self.said[shown:]}\n{found}")

    def elapsed(self) -> float:
        """Seconds since power on."""
        return time.monotonic() - self.started

    def type(self, line: str) -> None:
        """Type a line."""
        self.press(f"{line}\r")

    def press(self, key: str) -> None:
        """Type a key."""
        self._socket.sendall(key.encode())

    def answer(self, prompt: str, line: str, pattern: str) -> re.Match[str]:
        """Type *line* at *prompt*, and return the match of *pattern* that follows.

        sulogin discards its input after it has prompted (TCSAFLUSH in getpasswd), so a line that comes at once may be lost.
        It is typed again only while the prompt is the last thing that the console shows.
        """
        self.wait_for(prompt)
        deadline = time.monotonic() + PATIENCE
        while True:
            self.type(line)
            left = deadline - time.monotonic()
            if left <= _LOST_S:
                return self.wait_for(pattern, left)
            if match := self._next(pattern, _LOST_S):
                return match
            if not re.search(rf"(?:{prompt})\s*\Z", self.said):
                return self.wait_for(pattern, deadline - time.monotonic())

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
        # A busy shell prompts after the echo of what was typed, and so before the output.
        return re.sub(r"(?m)^guest# ", "", match[1].replace("\r", ""))

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
        serial, qmp, spare = (self.directory / name for name in ("serial", "qmp", "spare-qmp"))
        for path in (serial, qmp, spare):
            path.unlink(missing_ok=True)
        with ExitStack() as stack:
            log = stack.enter_context((self.directory / "qemu.log").open("ab"))
            qemu = subprocess.Popen(
                self._command(serial, (qmp, spare), chardev), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(_end, qemu)
            try:
                console = Console(serial, self.directory / "console.log")
            except OSError:
                raise AssertionError((self.directory / "qemu.log").read_text(errors="replace")) from None
            stack.callback(console.close)
            console.examine = partial(examine, qemu.pid, spare, console.press)
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

    def _command(self, console: Path, qmp: tuple[Path, ...], tpm: Path) -> list[str]:
        command = [self.platform.emulator, "-nodefaults", "-display", "none", *self.platform.board]
        command += ["-name", "guest,debug-threads=on"]
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
        command += [part for path in qmp for part in ("-qmp", f"unix:{path},server=on,wait=off")]
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

"""A machine with the pin and a software TPM, and a server that a person operates from the command line."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli import forked
from tests.ports import free_port
from tests.swtpm import Swtpm

PIN = Path(__file__).parent.parent.parent / "clevis-pin"
#: Every kind of byte that shells like to lose.
SECRET = b"the passphrase\0of a disk\xff\n"

Completed = subprocess.CompletedProcess[bytes]


class Operator:
    """``tang-attest`` over one state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.thp = self.run("init").strip()

    def try_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command, whatever comes of it."""
        return forked.run(forked.command("--state", self.state, *arguments), text=True, timeout=240)

    def run(self, *arguments: str) -> str:
        """Return the output of the command."""
        result = self.try_run(*arguments)
        assert result.returncode == 0, f"{' '.join(arguments)}: {result.stderr}"
        return result.stdout

    def token(self, name: str, *options: str) -> str:
        """A token that records the machine's state as its policy, also for a name that a machine has."""
        always = ("--record", "--force", "--allow-unverified-ek", "--again")
        return self.run("token", "create", "--name", name, *always, *options).strip()

    @contextmanager
    def serve(self, *options: str) -> Iterator[int]:
        """The server's port, while it runs."""
        port_file = self.state / "port"
        port_file.unlink(missing_ok=True)
        listen = (
            "--host",
            "127.0.0.1",
            "--port",
            str(free_port()),
            "--port-file",
            port_file,
            "--workers",
            "1",
        )
        command = forked.command("--state", self.state, "serve", *listen, *options)
        with (self.state / "log").open("ab") as log:
            process = forked.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while not (port_file.exists() and port_file.read_text().strip()):
                assert process.poll() is None, (self.state / "log").read_text()
                assert time.monotonic() < deadline, "the server does not start"
                time.sleep(0.02)
            yield int(port_file.read_text())
        finally:
            process.terminate()
            process.wait(120)


@dataclass
class Machine:
    """World of the pin: a TPM, a state directory that stays, a run directory that a reboot clears, a console."""

    directory: Path
    tpm: Swtpm
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("state", "run", "tmp"):
            (self.directory / name).mkdir(parents=True)
        self.baseline = self.contexts()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command of this machine."""
        return {
            **self.tpm.environment,
            "PATH": f"{PIN}:{os.environ['PATH']}",
            "CLEVIS_ATTEST_STATE_DIR": str(self.directory / "state"),
            "CLEVIS_ATTEST_RUN_DIR": str(self.directory / "run"),
            "CLEVIS_ATTEST_CONSOLE": str(self.directory / "console"),
            "TMPDIR": str(self.directory / "tmp"),
            **self.extra,
        }

    def run(self, *command: str | Path, stdin: bytes = b"", timeout: float = 240) -> Completed:
        """A command of this machine, whatever its exit code, without a terminal."""
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
            start_new_session=True,
        )

    def start(self, *command: str, stdin: bytes) -> subprocess.Popen[bytes]:
        """A command in the background that reads *stdin*."""
        source = self.directory / "stdin"
        source.write_bytes(stdin)
        with source.open("rb") as opened:
            return subprocess.Popen(
                command, cwd=self.directory, env=self.environment, stdin=opened,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip

    def try_encrypt(self, *options: str, **config: Any) -> Completed:
        """``clevis encrypt attest``, whatever comes of it."""
        return self.run("clevis", "encrypt", "attest", json.dumps(config), *options, stdin=SECRET)

    def encrypt(self, **config: Any) -> bytes:
        """The JWE of SECRET; the server's keys are trusted unless *config* says which."""
        result = self.try_encrypt("-y", **config)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    def decrypt(self, jwe: bytes, **extra: str) -> Completed:
        """``clevis decrypt``."""
        before = self.extra
        self.extra = before | extra
        try:
            return self.run("clevis", "decrypt", stdin=jwe)
        finally:
            self.extra = before

    def reboot(self) -> None:
        """The TPM is reset, /run is empty."""
        self.tpm.restart()
        for path in (self.directory / "run").iterdir():
            path.unlink()

    def boot_with_another(self, *pcrs: int) -> None:
        """Reboot, and another component is measured into these PCRs."""
        self.reboot()
        for pcr in pcrs:
            self.tpm.run("tpm2", "pcrextend", f"{pcr}:sha256={'00' * 32}")

    def contexts(self) -> str:
        """Objects and sessions that are loaded into the TPM, or saved out of it."""
        kinds = ("handles-transient", "handles-loaded-session", "handles-saved-session")
        return "".join(self.tpm.run("tpm2", "getcap", kind).stdout.decode() for kind in kinds)

    def leftovers(self) -> list[str]:
        """Files that a command should not have left behind."""
        files = [str(path) for path in (self.directory / "tmp").rglob("*")]
        files += [str(path) for path in (self.directory / "run").rglob("work.*")]
        now = self.contexts()
        return files + ([now] if now != self.baseline else [])

    @property
    def console(self) -> str:
        """Output on the console."""
        path = self.directory / "console"
        return path.read_bytes().decode() if path.exists() else ""

    @property
    def last(self) -> dict[str, Any]:
        """The record of the last unlock."""
        record: dict[str, Any] = json.loads((self.directory / "run" / "last.json").read_bytes())
        return record


# --- JWEs --------------------------------------------------------------------------------------------------------


def header(jwe: bytes) -> dict[str, Any]:
    """The protected header."""
    encoded = jwe.split(b".")[0]
    members: dict[str, Any] = json.loads(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
    return members


def with_header(jwe: bytes, members: dict[str, Any]) -> bytes:
    """The JWE with another header, which no longer opens: the header is authenticated."""
    encoded = base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=")
    return b".".join([encoded, *jwe.split(b".")[1:]])


def readdressed(jwe: bytes, *urls: str) -> bytes:
    """The JWE with other servers in its header."""
    members = header(jwe)
    members["clevis"]["attest"]["url"] = list(urls)
    return with_header(jwe, members)


# --- disks -------------------------------------------------------------------------------------------------------


class Disk:
    """A LUKS image of one machine; no device-mapper is needed to test a passphrase."""

    def __init__(self, machine: Machine, kind: str, name: str = "disk") -> None:
        self.machine, self.path = machine, machine.directory / f"{name}.{kind}"
        self.key = machine.directory / "key"
        self.key.write_bytes(b"typed by a person")
        with self.path.open("wb") as image:
            image.truncate(32 << 20)
        quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
        made = machine.run("cryptsetup", "luksFormat", "-q", "--type", kind, *quick, self.path, self.key)
        assert made.returncode == 0, made.stderr.decode()

    def bind(self, pin: str, config: dict[str, Any]) -> str:
        """``clevis luks bind``; return its messages."""
        command = (
            "clevis",
            "luks",
            "bind",
            "-y",
            "-f",
            "-k",
            self.key,
            "-d",
            self.path,
            pin,
            json.dumps(config),
        )
        bound = self.machine.run(*command)
        assert bound.returncode == 0, bound.stderr.decode()
        return bound.stderr.decode()

    def passphrase(self, slot: int = 1) -> bytes:
        """``clevis luks pass``; empty when it fails."""
        return self.machine.run("clevis", "luks", "pass", "-d", self.path, "-s", str(slot)).stdout

    def opens_with(self, passphrase: bytes) -> bool:
        """Return True if cryptsetup accepts a passphrase."""
        tried = self.machine.run(
            "cryptsetup", "open", "--test-passphrase", "--key-file", "-", self.path, stdin=passphrase
        )
        return tried.returncode == 0


# --- other processes ---------------------------------------------------------------------------------------------


def command_lines(group: int) -> list[bytes]:
    """The command lines and environments of all processes in a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getpgid(int(entry.name)) == group:
                found.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def until_gone(group: int) -> None:
    """Wait until no process of a process group is left; a zombie has no command line."""
    deadline = time.monotonic() + 120
    while left := [line for line in command_lines(group) if line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def ended(process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> float:
    """Send a signal to one process only, as sss does; seconds until it was gone."""
    begun = time.monotonic()
    process.send_signal(how)
    process.wait(120)
    return time.monotonic() - begun


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    crt, key = directory / "server.crt", directory / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=elsewhere.example", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "30",
         "-keyout", str(key), "-out", str(crt)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return crt, key


def pin_of(crt: Path) -> str:
    """``sha256//...`` of a certificate's public key."""
    spki = subprocess.run(
        ["openssl", "x509", "-in", str(crt), "-noout", "-pubkey"], check=True, capture_output=True
    ).stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "der"], input=spki, check=True, capture_output=True
    )
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-binary"], input=der.stdout, check=True, capture_output=True
    )
    return "sha256//" + base64.b64encode(digest.stdout).decode()

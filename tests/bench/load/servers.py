"""The server under measurement: ``tang-attest serve`` as a process of its own, over a Tang directory and a registry."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from tang_attest.config import Settings
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.compose import opened
from tang_attest.service.enrollment.tokens import TokenTerms
from tests.bench.load.client import ask
from tests.ports import free_port
from tests.tang.servers import TANGD

#: The program as it is installed.
PROGRAM: Final = Path(sys.executable).parent / "tang-attest"
_START_SECONDS: Final = 120.0
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; ``startup_s`` is the time from its spawning to its first answer."""

    port: int
    pid: int
    startup_s: float

    def memory_mb(self) -> float:
        """Resident memory (RSS) of all its processes."""
        return memory_mb(self.pid)

    def worker_mb(self) -> float:
        """The same of its largest process, which is a worker."""
        return max(_rss_kb(pid) for pid in _family(self.pid)) / 1024

    def cpu_s(self) -> float:
        """Processor time that it has used, in all its processes."""
        return cpu_s(self.pid)


def memory_mb(pid: int) -> float:
    """Resident memory (RSS), in MB, of process *pid* and those that it started."""
    return sum(_rss_kb(each) for each in _family(pid)) / 1024


def cpu_s(pid: int) -> float:
    """Processor time, in s, of process *pid* and those that it started and that still run."""
    ticks = 0
    for each in _family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    """*pid* and those that it started."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [pid, *(each for child in children for each in _family(child))]


def _rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("the server is gone")


@contextmanager
def serve(
    state: Path,
    tang_dir: Path | None,
    log: Path,
    port: int = 0,
    *,
    workers: int = 1,
    database: str | None = None,
    flags: Sequence[str] = (),
) -> Iterator[Server]:
    """``tang-attest serve``: the machines of *state*, or *database*, and plain Tang over *tang_dir* beside them.

    *flags* are more of its command line.
    """
    port_file = log.with_suffix(".port")
    port_file.unlink(missing_ok=True)
    command: list[str | Path] = [PROGRAM, "--state", state, "serve", "--port-file", port_file]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    command += flags
    if database is not None:
        command += ["--database", database]
    if tang_dir is not None:
        command += ["--plain-tang", "--tang-dir", tang_dir]
    begin = time.perf_counter()
    with log.open("ab") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        port = _wait_for(port_file, process, log, tls="--tls-key" in flags)
        yield Server(port, process.pid, time.perf_counter() - begin)
    finally:
        process.terminate()
        process.wait(120)


def _wait_for(port_file: Path, process: subprocess.Popen[bytes], log: Path, *, tls: bool) -> int:
    # The file is written when requests are answered; over TLS that has to do.
    deadline = time.perf_counter() + _START_SECONDS
    while time.perf_counter() < deadline and process.poll() is None:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            port = int(port_file.read_text())
            if tls or ask(port, "GET", "/adv").status == 200:
                return port
        time.sleep(0.005)
    raise RuntimeError(f"tang-attest does not start; it says:\n{log.read_text()}")


@contextmanager
def tangd(tang_dir: Path) -> Iterator[int]:
    """Debian's tangd behind socat, a process for each connection as under systemd; yields its port."""
    port = free_port()
    # With what makes socat fast: its own backlog is 5, and a connection that finds it full waits a second; without
    # nodelay an answer on a kept connection waits 40 ms for the acknowledgment of its head.
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog={_BACKLOG}"
    process = subprocess.Popen(["socat", listen, f"EXEC:{TANGD} {tang_dir}"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.perf_counter() + _START_SECONDS
        while time.perf_counter() < deadline and process.poll() is None:
            with suppress(ConnectionRefusedError):
                if ask(port, "GET", "/adv").status == 200:
                    break
            time.sleep(0.02)
        else:
            raise RuntimeError("tangd does not answer")
        yield port
    finally:
        process.terminate()
        process.wait(120)


def init(state: Path) -> None:
    """``tang-attest init``."""
    subprocess.run([PROGRAM, "--state", state, "init"], check=True, capture_output=True, timeout=600)


def create_tokens(state: Path, selections: Sequence[str], database: str | None = None) -> list[str]:
    """One-time tokens, as ``tang-attest token create --record --allow-unverified-ek`` makes them."""

    async def create() -> list[str]:
        async with opened(Settings(state=state, database=database)) as it:
            return [(await it.tokens.create(_terms(selection)))[0] for selection in selections]

    return asyncio.run(create())


def _terms(selection: str) -> TokenTerms:
    return TokenTerms(
        name=None,
        policy=None,
        record=True,
        selection=Selection.parse(selection),
        cap_pcr=15,
        allow_unverified_ek=True,
        force=True,  # a software TPM that nothing was measured into has PCRs of zeros
        valid_for=timedelta(hours=1),
        learn_for=timedelta(hours=1),
    )

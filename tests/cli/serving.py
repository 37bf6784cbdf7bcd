"""``tang-attest serve`` as a process of its own, and a client that sees bytes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli import forked
from tests.cli.forked import command
from tests.cli.transcript import environment, run

#: Starting takes a second on an idle machine; the tests run beside others.
PATIENCE_S = 120


@dataclass
class Serving:
    """A server that listens."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    #: Bytes of the log that were read, and the records in them.
    _read: int = field(default=0, init=False)
    _records: list[dict[str, Any]] = field(default_factory=list, init=False)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def records(self) -> list[dict[str, Any]]:
        """The log, which has to be JSON line by line; a line that is still being written comes later."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            whole, end, _ = log.read().rpartition(b"\n")
        self._records += [json.loads(line) for line in whole.splitlines()]
        self._read += len(whole + end)
        return [dict(record) for record in self._records]

    def listening(self) -> dict[str, Any]:
        """The record of the start; the port file is there before it, and a worker may log before its supervisor."""
        return self.logged("listening")[0]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The records of *event*, once there is one: a client may see a thing before the server logs it."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := [record for record in self.records() if record["event"] == event]):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return found


def clean_environment(**variables: str) -> dict[str, str]:
    """The process's environment without what would configure the server, and *variables*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TANG_ATTEST_")}
    return kept | {"TANG_ATTEST_CONFIG": os.devnull} | variables


def program(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``tang-attest`` to its end."""
    return forked.run(command(*arguments), text=True, timeout=PATIENCE_S, env=clean_environment(**variables))


def initialize(state: Path) -> None:
    """Make the state with ``tang-attest init``, in this process: a start of Python takes half a second."""
    with environment():
        _, stderr, code = run("--state", str(state), "init")
    assert code == 0, stderr


def serving(
    directory: Path, *arguments: str | Path, port: str = "0", **variables: str
) -> AbstractContextManager[Serving]:
    """A server over ``directory/state`` (made beforehand, if at all), on the loopback."""
    return _serving(forked.Popen, directory, arguments, port, variables)


def serving_started(
    directory: Path, *arguments: str | Path, **variables: str
) -> AbstractContextManager[Serving]:
    """The same, by a program that does its own imports: it takes half a second more."""
    return _serving(subprocess.Popen, directory, arguments, "0", variables)


@contextlib.contextmanager
def _serving(
    start: Callable[..., subprocess.Popen[bytes]],
    directory: Path,
    arguments: Sequence[str | Path],
    port: str,
    variables: Mapping[str, str],
) -> Iterator[Serving]:
    port_file, log = directory / "port", directory / "log"
    port_file.unlink(missing_ok=True)
    flags: list[str | Path] = [
        "--host",
        "127.0.0.1",
        "--port-file",
        port_file,
        *(["--port", port] if port else []),
        *("--workers", "1"),  # a test that wants more says so
    ]
    with log.open("wb") as stderr:
        process = start(
            command("--state", directory / "state", "serve", *flags, *arguments),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=clean_environment(**variables),
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not port_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield Serving(process, int(port_file.read_text()), log)
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def request(
    port: int, method: str, target: str, body: Any = None, tls: ssl.SSLContext | None = None
) -> tuple[int, Any]:
    """Status and body (JSON where it is) of one request; *body* is JSON, or bytes as they are."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    if tls is not None:
        connection = tls.wrap_socket(connection, server_hostname="localhost")
    with connection:
        connection.sendall(head(method, target, len(data)) + data)
        return answer(connection)


def head(method: str, target: str, length: int) -> bytes:
    """The head of a request."""
    return (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Status and body of the answer that comes."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    lines, _, body = received.partition(b"\r\n\r\n")
    status = int(lines.split()[1])
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body

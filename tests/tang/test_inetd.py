"""``tang-attest tangd DIR`` answers one connection, wherever a service manager passes it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest.protocol.values.base64url import unb64u
from tests.cli import forked
from tests.cli.forked import command
from tests.cli.serving import PATIENCE_S, clean_environment
from tests.ports import free_port, listens
from tests.tang.servers import TANGD, generate, keygen, public, send, thumbprint

ADV = b"GET /adv HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key directory as tangd-keygen makes it."""
    directory = tmp_path_factory.mktemp("tang")
    keygen(directory, "sig", "exc")
    return directory


def ours(keys: Path, *options: str) -> list[str]:
    """The command line."""
    return command("tangd", keys, *options)


def launcher(directory: Path, keys: Path) -> Path:
    """One program without arguments, for those that split a command line at spaces."""
    path = directory / "tangd"
    path.write_text(f'#!/bin/sh\ncd {Path.cwd()}\nexec {sys.executable} -m tang_attest tangd "{keys}"\n')
    path.chmod(0o755)
    return path


def talk(program: list[str], *pieces: bytes) -> bytes:
    """Return the output of a program for a client that sends *pieces*, closes its half, and reads to the end."""
    ours_end, theirs = socket.socketpair()
    process = forked.Popen(
        program,
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    theirs.close()
    with ours_end:
        ours_end.settimeout(PATIENCE_S)
        for piece in pieces:
            ours_end.sendall(piece)
        ours_end.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: ours_end.recv(65536), b""))
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    return answer


def bodies(answer: bytes) -> list[bytes]:
    """The bodies of answers that came one after the other."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        found.append(rest[:length])
        answer = rest[length:]
    return found


def payload(body: bytes) -> list[str]:
    """The signed keys of an advertisement, in no order: tangd's is that of the directory."""
    return sorted(
        json.dumps(key, sort_keys=True) for key in json.loads(unb64u(json.loads(body)["payload"]))["keys"]
    )


@pytest.mark.parametrize("count", [1, 3])
def test_requests_before_a_half_closed_end_are_answered(keys: Path, count: int) -> None:
    """The client closes its half at once, as `nc -N` does: every answer comes, as from tangd."""
    expected = bodies(talk([TANGD, str(keys)], *[ADV] * count))
    answered = bodies(talk(ours(keys), *[ADV] * count))
    assert [payload(body) for body in answered] == [payload(body) for body in expected]
    assert len(answered) == count


def test_an_exchange(keys: Path) -> None:
    """X by ``jose``, Y the same as tangd's."""
    kid = thumbprint(json.loads((keys / "exc.jwk").read_text()))
    x = json.dumps(public(generate(alg="ECMR"))).encode()
    head = f"POST /rec/{kid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(x)}\r\n\r\n".encode()
    [reply] = bodies(talk(ours(keys), head, x))
    [expected] = bodies(talk([TANGD, str(keys)], head, x))
    assert json.loads(reply) == json.loads(expected)


@pytest.mark.parametrize("endpoint", ["api/x", "/api/x", "/api/x/"])
def test_an_endpoint(keys: Path, endpoint: str) -> None:
    """Spelled with or without slashes around it."""
    answer = talk(ours(keys, "-e", endpoint), ADV.replace(b"/adv", b"/api/x/adv"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert talk(ours(keys, "-e", endpoint), ADV).startswith(b"HTTP/1.1 404")


def test_pipes_instead_of_a_socket(keys: Path) -> None:
    """As under a shell, or an inetd that has pipes."""
    done = forked.run(ours(keys), sent=ADV * 2, timeout=PATIENCE_S, env=clean_environment())
    assert done.returncode == 0
    assert len(bodies(done.stdout)) == 2


def test_inetd_gets_no_line_of_log(keys: Path) -> None:
    """inetd makes standard error the connection, too: nothing but the answer reaches the client."""
    ours_end, theirs = socket.socketpair()
    process = forked.Popen(
        ours(keys),
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        stderr=theirs.fileno(),
        env=clean_environment(),
    )
    theirs.close()
    with ours_end:
        ours_end.settimeout(PATIENCE_S)
        ours_end.sendall(ADV)
        ours_end.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: ours_end.recv(65536), b""))
    assert process.wait(PATIENCE_S) == 0
    assert len(bodies(answer)) == 1


@contextlib.contextmanager
def listening(arguments: list[str], port: int) -> Iterator[None]:
    """A service manager that listens on *port*."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment()
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not listens(process.pid, port):  # a connection would start a program
            assert time.monotonic() < deadline, "nobody listens"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.parametrize("manner", ["socat", "inetd", "listen-fds"])
def test_a_manager_that_accepts(keys: Path, tmp_path: Path, manner: str) -> None:
    """socat; systemd's Accept=yes with StandardInput=socket, as in tangd@.service, and without."""
    port, program = free_port(), launcher(tmp_path, keys)
    if manner == "socat":
        arguments = ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", f"EXEC:{program}"]
    else:
        activate = shutil.which("systemd-socket-activate")
        assert activate, "systemd is missing"
        inetd = ["--inetd"] if manner == "inetd" else []
        arguments = [activate, "--listen", f"127.0.0.1:{port}", "--accept", *inetd, str(program)]
    with listening(arguments, port):
        for _ in range(2):
            answer = send(port, "GET", "/adv")
            assert answer.status == 200
            assert answer.content_type == "application/jose+json"


def test_a_listening_socket_is_refused(keys: Path) -> None:
    """A socket unit with Accept=no has no connection to give."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = forked.run(
            ours(keys), stdin=listener.fileno(), text=True, timeout=PATIENCE_S, env=clean_environment()
        )
    assert done.returncode == 1
    assert "(setting-invalid)" in done.stderr
    assert "Accept=yes" in done.stderr


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    """One sentence on stderr, and nothing for the client."""
    done = forked.run(ours(tmp_path / "none"), sent=ADV, timeout=PATIENCE_S, env=clean_environment())
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"is not a directory" in done.stderr


@pytest.mark.parametrize(
    "rubbish", [b"", b"\r\n", b"nonsense\r\n\r\n", b"GET /adv HTTP/1.1\r\n", b"\x16\x03\x01\x00"]
)
def test_rubbish_ends_in_peace(keys: Path, rubbish: bytes) -> None:
    """No traceback, and an end."""
    talk(ours(keys), rubbish)

"""Enrollment that is interrupted: killed at any point, answers that are lost, disks that are full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import PIN, SECRET, Machine, header

pytestmark = pytest.mark.slow

#: The programs that change something outside the process and the TPM; TANG_ATTEST_KILL_ALL=1 wraps all that the pin
#: runs, which takes a quarter of an hour.
_CHANGING = ("curl", "mv")
_ALL = (*_CHANGING, "tpm2", "jose", "mkdir", "cat", "sha256sum", "od", "tr", "sync", "rm")

_WRAPPER = """#!/bin/bash
# Runs the program; after the one that is meant, the whole group of the command that is being tested is killed.
number=$(flock {counter}.lock bash -c 'n=$(($(<{counter}) + 1)); echo $n >{counter}; echo $n')
{program} "$@"
code=$?
[[ $number != "$KILL_AFTER" ]] || kill -9 0
exit $code
"""


class Killer:
    """Wraps programs so that the N-th that is run kills the command that ran it."""

    def __init__(self, machine: Machine, programs: tuple[str, ...]) -> None:
        self.machine = machine
        self.directory, self.counter = machine.directory / "wrapped", machine.directory / "counter"
        self.directory.mkdir()
        for name in programs:
            program = shutil.which(name)
            assert program is not None
            wrapper = self.directory / name
            wrapper.write_text(_WRAPPER.format(counter=self.counter, program=program))
            wrapper.chmod(0o755)

    def run(self, number: int, *command: str | Path) -> subprocess.CompletedProcess[bytes]:
        """The command, killed at that point; its exit code is -9 then."""
        self.counter.write_text("0")
        path = f"{self.directory}:{PIN}:{os.environ['PATH']}"
        before, self.machine.extra = self.machine.extra, {"PATH": path, "KILL_AFTER": str(number)}
        try:
            return self.machine.run(*command, stdin=SECRET)
        finally:
            self.machine.extra = before


def _forget(machine: Machine, server: Server, name: str) -> None:
    """The machine and the server are as before the enrollment, but for the AK."""
    server.operator.run("device", "remove", "--yes", name)
    for path in (machine.directory / "state").iterdir():
        path.unlink()


@pytest.mark.timeout(1200)
def test_killed_at_any_point(machine: Machine, server: Server, name: str) -> None:
    """kill -9 after each program that changes something: the same command heals it, and there is one device."""
    killer = Killer(machine, _ALL if os.environ.get("TANG_ATTEST_KILL_ALL") else _CHANGING)
    for number in range(1, 200):
        token = server.operator.token(name)
        config = json.dumps({"url": server.url, "name": name, "token": token})
        killed = killer.run(number, PIN / "clevis-encrypt-attest", config, "-y")
        again = machine.run(PIN / "clevis-encrypt-attest", config, "-y", stdin=SECRET)
        assert again.returncode == 0, (number, again.stderr)
        assert machine.decrypt(again.stdout).stdout == SECRET, number
        left = sorted(path.name for path in (machine.directory / "state").iterdir())
        assert left == [f"{header(again.stdout)['kid']}.json"], number
        assert not list((machine.directory / "run").glob("work.*")), number
        _forget(machine, server, name)
        # The kernel's resource manager, which is not here, removes objects of a dead process.
        machine.tpm.run("tpm2", "flushcontext", "-t", check=False)
        machine.tpm.run("tpm2", "flushcontext", "-l", check=False)
        if killed.returncode != -signal.SIGKILL:
            assert killed.returncode == 0, killed.stderr
            break
    assert number > 4


class _Lossy(ThreadingHTTPServer):
    """Stands between a machine and the server, and loses answers to the last request of an enrollment."""

    upstream = ""
    lose = 0
    finishes = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Lossy

    def do_GET(self) -> None:
        self.forward(None)

    def do_POST(self) -> None:
        self.forward(self.rfile.read(int(self.headers["Content-Length"])))

    def forward(self, body: bytes | None) -> None:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.upstream + self.path, body, headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - http, on loopback
                status, data = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, data = error.code, error.read()
        if self.path == "/attest/enroll/finish":
            self.server.finishes += 1
            if self.server.lose > 0:
                self.server.lose -= 1
                self.close_connection = True
                return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def _lossy(upstream: str, lose: int) -> Iterator[tuple[str, _Lossy]]:
    proxy = _Lossy(("127.0.0.1", 0), _Handler)
    proxy.upstream, proxy.lose = upstream, lose
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_one_lost_answer_is_asked_for_again(machine: Machine, server: Server, name: str) -> None:
    """Nobody notices: the pin sends the request again."""
    token = server.operator.token(name)
    with _lossy(server.url, 1) as (url, proxy):
        jwe = machine.encrypt(url=url, name=name, token=token)
        assert proxy.finishes == 2
    assert machine.leftovers() == []
    assert [path.suffix for path in (machine.directory / "state").iterdir()] == [".json"]
    assert header(jwe)["clevis"]["attest"]["name"] == name


def test_all_answers_lost(machine: Machine, server: Server, name: str) -> None:
    """The command fails and says what to do; later the same command, even without the token, completes it."""
    token = server.operator.token(name)
    with _lossy(server.url, 100) as (url, proxy):
        failed = machine.try_encrypt("-y", url=url, name=name, token=token)
        assert failed.returncode == 1
        assert b"run the same command again" in failed.stderr
        assert name in server.operator.run("device", "list")
        proxy.lose = 0
        healed = machine.try_encrypt("-y", url=url, name=name)
        assert healed.returncode == 0, healed.stderr
        assert b"was interrupted is complete" in healed.stderr
        assert machine.decrypt(healed.stdout).stdout == SECRET
    assert machine.leftovers() == []


def test_an_interrupted_enrollment_that_is_over(machine: Machine, server: Server, name: str) -> None:
    """The operator removed the device meanwhile: without a token that is said, with a new one it begins anew."""
    token = server.operator.token(name)
    with _lossy(server.url, 100) as (url, proxy):
        assert machine.try_encrypt("-y", url=url, name=name, token=token).returncode == 1
        proxy.lose = 0
        server.operator.run("device", "remove", "--yes", name)
        over = machine.try_encrypt("-y", url=url, name=name)
        assert over.returncode == 1
        assert b"refused (token-used)" in over.stderr
        assert b"begin anew" in over.stderr
        jwe = machine.encrypt(url=url, name=name, token=server.operator.token(name))
        assert machine.decrypt(jwe).stdout == SECRET


def _unused(server: Server, name: str) -> bool:
    tokens = json.loads(server.operator.run("token", "list", "--json"))
    return [token["used_at"] for token in tokens if token["name"] == name] == [None]


def test_a_state_directory_that_cannot_be_made(machine: Machine, server: Server, name: str) -> None:
    """It is found before the token is spent; afterwards the same token is good."""
    state = machine.directory / "state"
    state.rmdir()
    state.write_text("in the way")
    token = server.operator.token(name)
    refused = machine.try_encrypt("-y", url=server.url, name=name, token=token)
    assert refused.returncode == 1
    assert f"cannot write {state}".encode() in refused.stderr
    assert _unused(server, name)
    state.unlink()
    assert machine.decrypt(machine.encrypt(url=server.url, name=name, token=token)).stdout == SECRET


def test_a_full_disk(machine: Machine, server: Server, name: str) -> None:
    """A file system without a free block: nothing is spent, and no half a file stays."""
    state = machine.directory / "state"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "full", str(state)], check=True)
    try:
        filler = state / "filler"
        with filler.open("wb") as file:
            while True:
                try:
                    os.write(file.fileno(), b"x" * 4096)
                except OSError:
                    break
        token = server.operator.token(name)
        refused = machine.try_encrypt("-y", url=server.url, name=name, token=token)
        assert refused.returncode == 1
        assert f"cannot write {state}".encode() in refused.stderr
        assert _unused(server, name)
        assert [path.name for path in state.iterdir()] == ["filler"]
        filler.unlink()
        assert machine.decrypt(machine.encrypt(url=server.url, name=name, token=token)).stdout == SECRET
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_what_killed_runs_left_is_swept(machine: Machine, jwe: bytes, server: Server) -> None:
    """Private directories in /run of processes that are no more; those of living ones stay."""
    run = machine.directory / "run"
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (run / f"work.{pid}.1").mkdir()
        (run / f"work.{pid}.1" / "secret").write_text("x")
    machine.encrypt(url=server.url)
    assert [path.name for path in run.glob("work.*")] == [f"work.{os.getpid()}.1"]
    assert machine.decrypt(jwe).stdout == SECRET

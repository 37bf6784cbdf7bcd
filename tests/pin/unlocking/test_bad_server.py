"""Servers that lie, hang or talk nonsense: the pin ends soon, says one printable line, and gives nothing away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.pin.bad_server import ANSWERS
from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine, readdressed

pytestmark = pytest.mark.slow

#: These are answers to a request that was understood, so no other server is asked.
FINAL = {"unknown", "always-expired", "escapes"}
#: These come with status 200 and are found out when the key is computed.
LATE = {"other-curve", "not-a-point", "injection", "private"}


def is_printable(line: str) -> bool:
    """One line of ASCII without control characters."""
    return line.isascii() and line.endswith("\n") and line[:-1].isprintable() and len(line) < 1200


@pytest.fixture
def bound(machine: Machine, jwe: bytes) -> bytes:
    machine.extra |= {"CLEVIS_ATTEST_REQUEST_TIMEOUT": "1", "CLEVIS_ATTEST_TOTAL_TIMEOUT": "3"}
    return jwe


def test_every_lie_is_refused(machine: Machine, bound: bytes, bad: str) -> None:
    """No answer of a lying server opens, crashes or confuses the pin, and none of its words reaches a terminal raw."""
    for mode in ANSWERS:
        attempt = machine.decrypt(readdressed(bound, f"{bad}/{mode}"))
        said = attempt.stderr.decode()
        assert attempt.returncode == 1, mode
        assert attempt.stdout == b"", mode
        assert is_printable(said), (mode, said)
        assert said.startswith("tang-attest: "), (mode, said)
        assert machine.leftovers() == [], mode
    assert not Path("/tmp/owned").exists()
    assert machine.console.replace("\r\n", "").isprintable()


@pytest.mark.parametrize("mode", ["hang", "trickle", "huge"])
def test_time_and_memory_are_bounded(machine: Machine, bound: bytes, bad: str, mode: str) -> None:
    """A server that never finishes costs one time limit: without its setting, that is ten seconds."""
    begun = time.monotonic()
    attempt = machine.decrypt(readdressed(bound, f"{bad}/{mode}"))
    assert time.monotonic() - begun < 9
    assert attempt.returncode == 1
    assert is_printable(attempt.stderr.decode())
    assert machine.leftovers() == []


def test_whole_time_is_bounded(machine: Machine, bound: bytes, bad: str) -> None:
    """Many servers that hang cost the limit for all of them, not one limit each."""
    begun = time.monotonic()
    attempt = machine.decrypt(readdressed(bound, *(f"{bad}/hang/{number}" for number in range(30))))
    assert time.monotonic() - begun < 20
    assert b"no time left" in attempt.stderr


def test_next_server_is_asked(machine: Machine, server: Server, name: str, bad: str) -> None:
    """Anything but an answer leads to the next server; an answer does not."""
    token = server.operator.token(name)
    for mode in ("redirect", "garbage", "busy", "too-many", "plain-404", "no-challenge", "close"):
        jwe = machine.encrypt(url=[f"{bad}/{mode}", server.url], name=name, token=token)
        assert machine.decrypt(jwe).stdout == SECRET, mode
    for mode in sorted(FINAL):
        jwe = machine.encrypt(url=[f"{bad}/{mode}", server.url], name=name)
        assert machine.decrypt(jwe).returncode == 1, mode

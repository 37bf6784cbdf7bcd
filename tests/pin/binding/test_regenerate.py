"""A binding is regenerated: the new one is tried before the old one goes, wherever the run is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import Any

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import PIN, Completed, Disk, Machine

pytestmark = pytest.mark.slow

_WRAPPER = """#!/bin/bash
# Runs cryptsetup or luksmeta; before or after the N-th call that changes a header, the whole group is killed.
case " $* " in
    *' luksAddKey '* | *' luksKillSlot '* | *' luksChangeKey '* | *' token import '* | *' token remove '* | *' save '* | *' wipe '*) ;;
    *) exec {program} "$@" ;;
esac
n=$(($(<{counter}) + 1))
echo $n >{counter}
[[ "BEFORE $n" != "$KILL" ]] || kill -9 0
{program} "$@"
code=$?
[[ "AFTER $n" != "$KILL" ]] || kill -9 0
exit $code
"""


@pytest.fixture
def attest(machine: Machine, server: Server, name: str) -> dict[str, Any]:
    """The configuration of a machine that is enrolled."""
    config = {"url": server.url, "name": name, "thp": server.operator.thp}
    token = server.operator.token(name)
    enrolled = machine.run("clevis", "attest", "enroll", json.dumps(config | {"token": token}))
    assert enrolled.returncode == 0, enrolled.stderr
    return config


def regenerate(machine: Machine, disk: Disk, passphrase: bytes = b"", **extra: str) -> Completed:
    """The command, which may ask for *passphrase*."""
    before = machine.extra
    machine.extra = before | extra
    try:
        command = (PIN / "clevis-luks-attest-regen", "-q", "-d", disk.path, "-s", "1")
        return machine.run(*command, stdin=passphrase + b"\n")
    finally:
        machine.extra = before


def slots(machine: Machine, disk: Disk) -> list[str]:
    """The slots with a clevis binding."""
    return [
        line.split(b":")[0].decode()
        for line in machine.run("clevis", "luks", "list", "-d", disk.path).stdout.splitlines()
    ]


def opening(machine: Machine, disk: Disk) -> list[str]:
    """The slots whose binding opens the disk through the server."""
    return [slot for slot in slots(machine, disk) if disk.opens_with(disk.passphrase(int(slot)) or b"no")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_killed_at_any_change(machine: Machine, attest: dict[str, Any], kind: str) -> None:
    """A working binding is there at every moment, the same command heals, and nothing is left over."""
    disk = Disk(machine, kind)
    disk.bind("attest", attest)
    wrapped, counter = machine.directory / "wrapped", machine.directory / "counter"
    wrapped.mkdir()
    for program in ("cryptsetup", "luksmeta"):
        path = wrapped / program
        path.write_text(_WRAPPER.format(program=shutil.which(program), counter=counter))
        path.chmod(0o755)
    path_with = f"{wrapped}:{PIN}:{os.environ['PATH']}"
    for number in range(1, 40):
        for when in ("BEFORE", "AFTER") if number == 1 else ("AFTER",):
            counter.write_text("0")
            killed = regenerate(machine, disk, PATH=path_with, KILL=f"{when} {number}")
            assert opening(machine, disk), (when, number)
            healed = regenerate(machine, disk)
            assert healed.returncode == 0, (when, number, healed.stderr)
            assert slots(machine, disk) == opening(machine, disk) == ["1"], (when, number)
            assert not list((machine.directory / "state").glob("regen-*"))
            assert disk.opens_with(b"typed by a person")
        if killed.returncode != -signal.SIGKILL:
            break
    assert number > 4
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"", 1, "nobody answered, so nothing was changed; use -q where nobody can be asked"),
        (b"what?\n", 1, "nobody answered, so nothing was changed"),
        (b"n\n", 0, "nothing was changed"),
        (b"maybe\ny\n", 0, "the binding was regenerated"),
    ],
)
def test_the_question_has_to_be_answered(
    machine: Machine, attest: dict[str, Any], answer: bytes, code: int, said: str
) -> None:
    """Without -q; no answer is a failure that changes nothing, not a success that does nothing."""
    disk = Disk(machine, "luks2")
    disk.bind("attest", attest)
    before = disk.passphrase(1)
    done = machine.run(PIN / "clevis-luks-attest-regen", "-d", disk.path, "-s", "1", stdin=answer)
    assert done.returncode == code, done.stderr
    assert said in done.stderr.decode()
    assert done.stderr.count(b"Do you want to proceed?") == max(1, answer.count(b"\n") + (code == 1))
    assert (disk.passphrase(1) == before) == (said != "the binding was regenerated")


def test_what_does_not_open_replaces_nothing(
    machine: Machine, attest: dict[str, Any], server: Server, name: str
) -> None:
    """The server refuses the machine: although a person has the passphrase, the old binding stays as it was."""
    disk = Disk(machine, "luks2")
    disk.bind("attest", attest)
    machine.boot_with_another(4)
    before = disk.path.read_bytes()
    refused = regenerate(machine, disk, b"typed by a person")
    assert refused.returncode == 1
    assert b"does not open now" in refused.stderr
    assert disk.path.read_bytes() == before
    server.operator.run("device", "suspend", name, "--reason", "stolen")
    machine.reboot()
    assert regenerate(machine, disk, b"typed by a person").returncode == 1
    assert disk.path.read_bytes() == before
    assert machine.leftovers() == []


def test_in_the_running_system(machine: Machine, attest: dict[str, Any]) -> None:
    """The cap PCR is extended, so the server opens nothing; a person's passphrase lets the key be changed all the same."""
    disk = Disk(machine, "luks2")
    disk.bind("attest", attest)
    old = disk.passphrase()
    machine.tpm.run("tpm2", "pcrextend", f"15:sha256={'00' * 32}")
    assert regenerate(machine, disk, b"wrong").returncode == 1
    done = regenerate(machine, disk, b"typed by a person")
    assert done.returncode == 0, done.stderr
    assert b"the next boot is the first to use the new key" in done.stderr
    machine.reboot()
    new = disk.passphrase()
    assert new != old
    assert disk.opens_with(new)
    assert not disk.opens_with(old)
    assert slots(machine, disk) == ["1"]


def test_no_free_slot(machine: Machine, attest: dict[str, Any]) -> None:
    """One slot is needed for a moment; without it nothing is changed."""
    disk = Disk(machine, "luks1")
    disk.bind("attest", attest)
    extra = machine.directory / "extra"
    for number in range(2, 8):
        extra.write_bytes(f"extra {number}".encode())
        added = machine.run(
            "cryptsetup",
            "luksAddKey",
            "-q",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            disk.key,
            disk.path,
            extra,
        )
        assert added.returncode == 0, added.stderr
    before = disk.path.read_bytes()
    refused = regenerate(machine, disk)
    assert refused.returncode == 1
    assert b"no slot" in refused.stderr
    assert disk.path.read_bytes() == before


def test_a_journal_does_not_touch_what_is_not_ours(machine: Machine, attest: dict[str, Any]) -> None:
    """After the interruption somebody put a passphrase of their own into the slot beside."""
    disk = Disk(machine, "luks2")
    disk.bind("attest", attest)
    uuid = machine.run("cryptsetup", "luksUUID", disk.path).stdout.decode().strip()
    jwe = machine.run(
        "clevis", "encrypt", "attest", json.dumps(attest), stdin=b"never written"
    ).stdout.decode()
    (machine.directory / "state" / f"regen-{uuid}-1").write_text(f"2 {jwe}\n")
    theirs = machine.directory / "theirs"
    theirs.write_bytes(b"their passphrase")
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    added = machine.run("cryptsetup", "luksAddKey", "-q", *quick, "--key-file", disk.key, disk.path, theirs)
    assert added.returncode == 0, added.stderr
    done = regenerate(machine, disk)
    assert done.returncode == 0, done.stderr
    assert disk.opens_with(b"their passphrase")
    assert slots(machine, disk) == opening(machine, disk) == ["1"]

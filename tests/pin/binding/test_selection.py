"""A machine whose event log chooses the PCRs: the selection fits its boot chain, and gaps are refused or accepted by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tang_attest.protocol.eventlog import parse
from tests.pin.conftest import Server
from tests.pin.machine import Machine, header

pytestmark = pytest.mark.slow

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs-arm64"


def boot(machine: Machine, name: str) -> None:
    """Extend the machine's TPM as the log *name* says, and show that log."""
    log = LOGS / f"{name}.bin"
    for event in parse(log.read_bytes()).events:
        if event.extends:
            machine.tpm.run("tpm2", "pcrextend", f"{event.pcr}:sha256={event.digests['sha256'].hex()}")
    machine.extra["CLEVIS_ATTEST_EVENT_LOG"] = str(log)


def policy(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.operator.run("policy", "show", name, "--json"))
    return found


def test_the_selection_that_fits_is_used_and_explained(machine: Machine, server: Server, name: str) -> None:
    boot(machine, "uboot-fit-bootm")
    done = machine.try_encrypt("-y", url=server.url, name=name, token=server.operator.token(name))
    assert done.returncode == 0, done.stderr
    assert b"PCRs: sha256:0,1,8,9,15 (the machine boots by U-Boot without EFI; " in done.stderr
    assert (
        b"coverage: kernel PCR 8, initrd PCR 9, command line PCR 1, device tree PCR 1: covered" in done.stderr
    )
    assert header(done.stdout)["clevis"]["pin"] == "attest"
    assert policy(server, name)["selection"] == "sha256:0,1,8,9,15"
    shown = machine.run("clevis-attest-status")
    assert (
        b"    coverage: kernel PCR 8, initrd PCR 9, command line PCR 1, device tree PCR 1: covered\n"
        in shown.stdout
    )
    status = json.loads(machine.run("clevis-attest-status", "--json").stdout)
    assert status["enrollments"][0]["coverage"].endswith(": covered")


def test_a_gap_is_refused_until_it_is_accepted(machine: Machine, server: Server, name: str) -> None:
    boot(machine, "edk2-grub-2.06")
    done = machine.try_encrypt("-y", url=server.url, name=name, token=server.operator.token(name))
    assert done.returncode != 0
    assert (
        b"refused (uncovered): Nothing covers the initrd: nobody measured it; no selection would cover it."
        in done.stderr
    )
    token = server.operator.token(f"{name}-c", "--accept-uncovered", "initrd")
    done = machine.try_encrypt("-y", url=server.url, name=f"{name}-c", token=token)
    assert done.returncode == 0, done.stderr
    shown = json.loads(server.operator.run("device", "show", f"{name}-c", "--json"))
    assert (shown["grade"], shown["accepted_uncovered"]) == ("incomplete chain", ["initrd"])
    (row,) = [
        line for line in server.operator.run("device", "list").splitlines() if line.startswith(f"{name}-c ")
    ]
    assert "accepted: initrd" in row
    (state,) = policy(server, f"{name}-c")["states"]
    assert state["accepted_uncovered"] == ["initrd"]
    status = machine.run("clevis-attest-status")
    assert status.returncode == 1
    assert b": a part of this boot is not covered" in status.stdout


def test_without_an_event_log_the_default_is_used_and_coverage_is_unknown(
    machine: Machine, server: Server, name: str
) -> None:
    machine.extra["CLEVIS_ATTEST_EVENT_LOG"] = str(machine.directory / "none")
    done = machine.try_encrypt("-y", url=server.url, name=name, token=server.operator.token(name))
    assert done.returncode == 0, done.stderr
    assert b"coverage: unknown: no event log came with the values" in done.stderr
    assert policy(server, name)["selection"] == "sha256:0,2,4,7,8,9,15"
    assert (
        b"    coverage: unknown: the event log cannot be read" in machine.run("clevis-attest-status").stdout
    )

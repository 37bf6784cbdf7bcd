"""clevis-attest-status: a line for each fact, and nothing that a server wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pin.machine import Machine

pytestmark = pytest.mark.slow

UUID = "0f6e5a3c-0000-4000-8000-000000000001"
OTHER = "0f6e5a3c-0000-4000-8000-000000000002"


def note(machine: Machine, **files: str) -> Path:
    """Files that an initrd leaves in the run directory; ``attested`` are UUIDs."""
    run = machine.directory / "run"
    for name, text in files.items():
        if name == "attested":
            (run / name).mkdir()
            for uuid in text.split():
                (run / name / uuid).write_text("254:0\n")
        else:
            (run / name.replace("_", "-")).write_text(text)
    return run


def seen(machine: Machine) -> dict[str, Any]:
    """``--json``."""
    found: dict[str, Any] = json.loads(machine.run("clevis-attest-status", "--json").stdout)
    return found


def lines(machine: Machine) -> list[str]:
    """Output for a person."""
    return machine.run("clevis-attest-status").stdout.decode().splitlines()


def test_a_boot_that_noted_nothing(machine: Machine) -> None:
    """An old image, or a machine whose disks do not open by attestation."""
    assert seen(machine)["boot"] == {"capped": False, "attested": []}
    shown = lines(machine)
    assert shown[0].startswith(f"TPM:         reachable at {machine.tpm.tcti}; 0 of ")
    assert shown[1:4] == [
        "Last unlock: none since this boot",
        "Cap:         not extended, as far as this initrd noted it",
        "Root:        not checked by this initrd",
    ]


def test_a_boot_that_opened_two_volumes(machine: Machine) -> None:
    """Cap, root and volumes have a line each."""
    note(machine, capped="", root_checked="image\n", attested=f"{UUID} {OTHER}")
    assert seen(machine)["boot"] == {"capped": True, "attested": [UUID, OTHER]}
    shown = lines(machine)
    assert shown[2] == "Cap:         extended: no quote of this system opens a disk"
    assert shown[3].startswith("Root:        is the volume that the image knows")
    assert shown[4:6] == [f"Opened:      {UUID} by attestation", f"Opened:      {OTHER} by attestation"]


def test_notes_that_are_none_are_not_shown(machine: Machine) -> None:
    """Owner of the files."""
    run = note(machine, root_checked='all is well"\x1b[31m\n', attested="not-a-uuid")
    (run / "attested" / UUID.replace("0", "\x1b")).touch()
    found = seen(machine)
    assert (found["boot"], found["root"]) == ({"capped": False, "attested": []}, None)


def test_a_volume_opened_by_attestation_without_a_cap_is_a_warning(machine: Machine) -> None:
    """The cap failed or was left out."""
    note(machine, attested=UUID)
    done = machine.run("clevis-attest-status")
    assert done.returncode == 1
    assert b"WARNING:     attestation opened a disk and this boot is not capped" in done.stdout


def test_the_last_refusal_has_a_line_for_each_fact(machine: Machine) -> None:
    """Code, action, PCRs, machine."""
    note(
        machine,
        **{
            "last.json": json.dumps(
                {
                    "code": "pcr-mismatch",
                    "sentence": "PCR 4 and PCR 7 are not as approved.",
                    "action": "Look at it on the server.",
                    "pcrs": [4, 7],
                    "time": "2026-11-27T06:00:00Z",
                    "kid": "x",
                    "url": "http://10.0.0.1:7500",
                    "urls": ["http://10.0.0.1:7500"],
                }
            )
        },
    )
    shown = lines(machine)
    at = shown.index("Last unlock: 2026-11-27T06:00:00Z pcr-mismatch: PCR 4 and PCR 7 are not as approved.")
    assert shown[at + 1 : at + 4] == [
        "  to do: Look at it on the server.",
        "  differs: PCR 4: boot loader, kernel; PCR 7: Secure Boot",
        "  asked last: http://10.0.0.1:7500",
    ]

"""Coverage on the command line: values with their event log are refused, accepted by name, listed, and audited."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tang_attest.protocol.eventlog import parse, replay
from tests.cli.transcript import environment, run

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs-arm64"
GRUB = LOGS / "edk2-grub-2.06.bin"
FIT = LOGS / "uboot-fit-bootm.bin"


def tang_attest(state: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    with environment():
        out, err, code = run("--state", str(state), *map(str, arguments))
    return subprocess.CompletedProcess(arguments, code, out, err)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    assert tang_attest(directory, "init").returncode == 0
    made = tang_attest(directory, "policy", "create", "web", "--selection", "sha256:0,2,4,7,8,9,15")
    assert made.returncode == 0, made.stderr
    return directory


def values(log: Path, directory: Path) -> Path:
    replayed = {pcr: bytes(32) for pcr in range(24)} | replay(parse(log.read_bytes()), "sha256")
    file = directory / f"{log.stem}.json"
    file.write_text(json.dumps({str(pcr): value.hex() for pcr, value in replayed.items()}))
    return file


@pytest.mark.parametrize("verb", ["record", "stage"])
def test_values_of_an_uncovered_boot_are_refused(state: Path, tmp_path: Path, verb: str) -> None:
    file = values(FIT, tmp_path)
    refused = tang_attest(state, "policy", verb, "web", "--file", file, "--eventlog", FIT)
    assert refused.returncode == 1
    first, hint = refused.stderr.splitlines()
    assert first == (
        "tang-attest: nothing covers the command line: it is measured in PCR 1, which sha256:0,2,4,7,8,9,15 does not "
        "have; sha256:0,1,2,4,7,8,9,15 would cover it (uncovered)"
    )
    assert "--accept-uncovered PART" in hint


def test_a_gap_that_is_accepted_by_name_is_listed_and_audited(state: Path, tmp_path: Path) -> None:
    add = ("policy", "record", "web", "--file", values(GRUB, tmp_path), "--eventlog", GRUB, "--label", "grub")
    for part in ("kernel", "command-line"):
        assert "(uncovered)" in tang_attest(state, *add, "--accept-uncovered", part).stderr
    done = tang_attest(state, *add, "--accept-uncovered", "initrd", "--accept-uncovered", "kernel")
    assert done.returncode == 0, done.stderr
    assert (
        "coverage: kernel PCR 4, command line PCR 9: covered; initrd: not measured; device tree: not measured"
        in done.stderr
    )
    assert (
        "WARNING: nothing covers the initrd, and that is accepted: another one opens the disk" in done.stderr
    )
    (shown,) = json.loads(tang_attest(state, "policy", "show", "web", "--json").stdout)["states"]
    assert shown["accepted_uncovered"] == ["initrd"]
    assert "initrd" in tang_attest(state, "policy", "show", "web").stdout
    audit = json.loads(tang_attest(state, "audit", "list", "--json").stdout)
    assert audit[0]["details"]["accepted_uncovered"] == ["initrd"]


def test_values_without_a_log_are_accepted_loudly(state: Path, tmp_path: Path) -> None:
    done = tang_attest(state, "policy", "record", "web", "--file", values(GRUB, tmp_path))
    assert done.returncode == 0
    assert "coverage: unknown: no event log came with the values" in done.stderr
    assert "WARNING: nobody knows whether these values change with the kernel" in done.stderr


def test_separators_alone_are_no_values(state: Path, tmp_path: Path) -> None:
    """An error separator in PCR 0 to 7 is what U-Boot leaves that has no region for its log."""
    file = tmp_path / "values"
    made = dict.fromkeys(range(16), "00" * 32)
    separator = hashlib.sha256(bytes(32) + hashlib.sha256(b"\x01\0\0\0").digest()).hexdigest()
    assert separator.startswith("486b1069")
    file.write_text(json.dumps({**made, **dict.fromkeys(range(8), separator)}))
    refused = tang_attest(state, "policy", "record", "web", "--file", file)
    assert refused.returncode == 1
    assert "values-all-zero" in refused.stderr
    assert "separators" in refused.stderr


@pytest.mark.parametrize("part", ["firmware", "boot", ""])
def test_other_parts_need_no_acceptance(state: Path, tmp_path: Path, part: str) -> None:
    file = values(GRUB, tmp_path)
    wrong = tang_attest(state, "policy", "record", "web", "--file", file, "--accept-uncovered", part)
    assert wrong.returncode == 2
    assert "kernel, initrd, command-line" in wrong.stderr

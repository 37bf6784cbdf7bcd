"""The TPM is not always /dev/tpmrm0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine
from tests.pin.tpm_device import device, with_devices, with_log
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow

LOGS = Path(__file__).parent.parent / "vectors" / "eventlogs"


@dataclass(frozen=True)
class TwoTpms:
    """The machine's own TPM as a device, and another that knows nothing of it."""

    machine: Machine
    own: str
    other: str
    jwe: bytes


@pytest.fixture(scope="module")
def two(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoTpms]:
    directory = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        own = stack.enter_context(Swtpm(directory / "own", banks=("sha256",)))
        other = stack.enter_context(Swtpm(directory / "other", banks=("sha256",)))
        machine = Machine(directory / "machine", own)
        jwe = machine.encrypt(url=server.url, name="two-tpms", token=server.operator.token("two-tpms"))
        yield TwoTpms(machine, stack.enter_context(device(own)), stack.enter_context(device(other)), jwe)


@pytest.mark.parametrize("name", ["tpmrm0", "tpmrm1", "tpmrm9", "tpmrm10", "tpmrm42"])
def test_the_only_tpm_is_found_whatever_its_number(two: TwoTpms, name: str) -> None:
    """The kernel numbers them in the order in which drivers come."""
    opened = with_devices(two.machine, {name: two.own}, two.jwe)
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, SECRET, b"")


@pytest.mark.parametrize(
    ("own", "other"),
    [("tpmrm0", "tpmrm1"), ("tpmrm1", "tpmrm0"), ("tpmrm10", "tpmrm2"), ("tpmrm2", "tpmrm10")],
)
def test_of_several_tpms_the_one_with_the_key_is_taken(two: TwoTpms, own: str, other: str) -> None:
    """Their numbers may change from boot to boot."""
    opened = with_devices(two.machine, {own: two.own, other: two.other}, two.jwe)
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, SECRET, b"")


def test_where_none_has_the_key_all_are_named(two: TwoTpms) -> None:
    """The line says as well how another one is chosen."""
    refused = with_devices(two.machine, {"tpmrm2": two.other, "tpmrm10": two.other}, two.jwe)
    said = refused.stderr.decode()
    assert refused.returncode == 1
    assert "the TPM has no key at 0x81010002" in said
    assert "looked at /dev/tpmrm2 /dev/tpmrm10" in said
    assert "TPM2TOOLS_TCTI=device:/dev/tpmrm10 names another than the first" in said


def test_no_tpm_at_all_and_one_without_resource_manager(two: TwoTpms) -> None:
    """Each has its sentence, and nobody is asked twice."""
    none = with_devices(two.machine, {}, two.jwe)
    assert none.stderr == b"tang-attest: there is no TPM 2.0 (/dev/tpmrm0)\n"
    old = with_devices(two.machine, {"tpm1": "/dev/null"}, two.jwe)
    assert b"there is /dev/tpm1 but no /dev/tpmrm1: a TPM 1.2, or a kernel without" in old.stderr


@pytest.mark.parametrize(("number", "pcr"), [(0, 4), (1, 7), (10, 2)])
def test_the_event_log_is_that_of_the_tpm(two: TwoTpms, server: Server, number: int, pcr: int) -> None:
    """A refused boot is explained by it."""
    two.machine.boot_with_another(pcr)
    more = with_log(number, LOGS / "secure-boot.bin")
    refused = with_devices(two.machine, {f"tpmrm{number}": two.own}, two.jwe, more)
    assert b"refused (pcr-mismatch)" in refused.stderr
    newest = json.loads(server.operator.run("observation", "list", "--device", "two-tpms", "--json"))[0]
    assert newest["event_log_bytes"] == (LOGS / "secure-boot.bin").stat().st_size
    assert newest["differs"] == [pcr]

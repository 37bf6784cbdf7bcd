"""Grades of devices: never better than what was proven, always with a reason."""

from __future__ import annotations

import hashlib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.protocol.coverage import BootPart, coverage
from tang_attest.protocol.eventlog import EventLog, parse, replay
from tang_attest.protocol.grade import SECURE_BOOT_OFF, Grade, GradeLevel, grade, unmeasured_inputs
from tang_attest.protocol.values.pcr import Selection
from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.writer import Measurement

OVMF = parse((w.VECTORS / "ovmf.bin").read_bytes())
VALUES = w.recorded_values("ovmf")["sha256"]
VERSION = Measurement(0, w.EV_S_CRTM_VERSION, b"1.0")
BLOB = Measurement(0, 0x80000008, bytes(16), b"code")


def log(*measurements: Measurement) -> EventLog:
    return parse(w.agile((w.SHA256,), measurements))


def test_a_verified_chain() -> None:
    """A real boot of firmware that measures itself, in a TPM whose EK is certified."""
    assert grade(ek_verified=True, log=OVMF, replayed=True, values=VALUES) == Grade(
        GradeLevel.VERIFIED_CHAIN,
        (
            "the EK's certificate leads to a trusted root",
            "the event log replays, and in it the firmware measures itself first (PCR 0)",
        ),
    )


UBOOT = log(Measurement(0, w.EV_S_CRTM_VERSION, b"U-Boot 2024.01\0"), Measurement(0, w.EV_POST_CODE, b"x"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ek_verified": False}, "the EK's certificate is not verified"),
        ({"log": None}, "no event log was sent, so it is not known what measured first"),
        ({"replayed": False}, "the event log does not lead to the quoted values"),
        ({"values": {4: b"\1" * 32}}, "PCR 0 was not quoted, so it is not known what measured first"),
        (
            {"log": log(Measurement(8, w.EV_IPL, b"kernel"))},
            "the log has no measurement of the firmware's first code: software on a disk may measure first",
        ),
        (
            {"log": log(BLOB)},
            "the log has no measurement of the firmware's first code: software on a disk may measure first",
        ),
        (
            {"log": log(VERSION)},
            "the first measurer is a boot loader, not the firmware: a writer of the disk can replace it",
        ),
        (
            {"log": UBOOT},
            "the first measurer is a boot loader, not the firmware: a writer of the disk can replace it",
        ),
        (
            {"log": log(VERSION._replace(pcr=1), BLOB._replace(pcr=1))},
            "the log has no measurement of the firmware's first code: software on a disk may measure first",
        ),
    ],
)
def test_self_measured(change: dict[str, object], reason: str) -> None:
    """Everything that is missing for a verified chain is said."""
    evidence = {"ek_verified": True, "log": OVMF, "replayed": True, "values": VALUES, **change}
    found = grade(**evidence)  # type: ignore[arg-type] # the parameters above
    assert found == Grade(GradeLevel.SELF_MEASURED, (reason,))


def test_every_doubt_is_said() -> None:
    """Not only the first."""
    found = grade(ek_verified=False, log=None, replayed=False, values=VALUES)
    assert len(found.reasons) == 2
    assert found.as_json() == {"grade": "self-measured", "reasons": list(found.reasons)}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({0: bytes(32), 4: bytes(32)}, "every PCR of the boot is as a reset leaves it"),
        # The cap, IMA and what software can reset are extended whatever was booted.
        (
            {0: bytes(32), 10: b"\1" * 32, 15: b"\1" * 32, 23: b"\1" * 32},
            "every PCR of the boot is as a reset leaves it",
        ),
        ({15: b"\1" * 32}, "the quote has no PCR that is extended at boot"),
        ({}, "the quote has no PCR that is extended at boot"),
    ],
)
def test_nothing_measured(values: dict[int, bytes], reason: str) -> None:
    """A Raspberry Pi as it comes; no log and no EK make it better."""
    assert grade(ek_verified=True, log=OVMF, replayed=True, values=values) == Grade(
        GradeLevel.NOTHING_MEASURED, (reason,)
    )


ARM64 = w.VECTORS.parent / "eventlogs-arm64"


@pytest.mark.parametrize("number", [0, 0xFFFFFFFF, 1])
def test_separators_alone_are_nothing_measured(number: int) -> None:
    """A U-Boot without a region for its log extends an error separator into PCR 0 to 7 and boots on."""
    separator = hashlib.sha256(number.to_bytes(4, "little")).digest()
    values = dict.fromkeys(range(8), hashlib.sha256(bytes(32) + separator).digest()) | {9: bytes(32)}
    assert grade(ek_verified=True, log=None, replayed=False, values=values) == Grade(
        GradeLevel.NOTHING_MEASURED, ("every PCR of the boot is that of a separator or another constant",)
    )


def test_a_chain_that_measures_no_initrd_is_incomplete() -> None:
    """Debian 12's arm64 GRUB: the firmware measures itself, and any initrd starts."""
    sent = parse((ARM64 / "edk2-grub-2.06.bin").read_bytes())
    selection = Selection.parse("sha256:0,2,4,7,8,9,15")
    found = grade(
        ek_verified=True,
        log=sent,
        replayed=True,
        values=replay(sent, "sha256"),
        coverage=coverage(sent, selection),
    )
    assert found == Grade(GradeLevel.INCOMPLETE, ("nothing covers the initrd: nobody measured it",))


def test_what_was_accepted_stays_in_the_grade() -> None:
    """For any grade, and also where the log that would show it did not come."""
    told = "the operator accepted that nothing covers the initrd"
    for sent in (OVMF, None):
        found = grade(ek_verified=True, log=sent, replayed=True, values=VALUES, accepted=[BootPart.INITRD])
        assert found.reasons[-1] == told


@given(st.booleans(), st.sampled_from([None, OVMF, UBOOT]), st.booleans(), st.sets(st.integers(0, 23)))
def test_never_better_than_proven(
    verified: bool, sent: EventLog | None, replayed: bool, quoted: set[int]
) -> None:
    """The best grade needs all of its premises."""
    values = dict.fromkeys(quoted, b"\x01" * 32)
    found = grade(ek_verified=verified, log=sent, replayed=replayed, values=values)
    assert found.reasons
    if found.level is GradeLevel.VERIFIED_CHAIN:
        assert verified
        assert sent is OVMF
        assert replayed
        assert 0 in quoted


# --- what nothing measures --------------------------------------------------------------------------------------------

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")


def variable(name: str, value: bytes, guid: UUID = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    encoded = name.encode("utf-16-le")
    sizes = len(name).to_bytes(8, "little") + len(value).to_bytes(8, "little")
    return guid.bytes_le + sizes + encoded + value


def configured(data: bytes, pcr: int = 7, content: bytes | None = None) -> EventLog:
    """A log with one variable; *content* is what is shown, if that is not what was measured."""
    return log(Measurement(pcr, 0x80000001, data if content is None else content, data))


@pytest.mark.parametrize(
    ("vector", "off"), [("ovmf", True), ("uki", True), ("kernel-changed", True), ("secure-boot", False)]
)
def test_secure_boot_off_is_said_of_real_boots(vector: str, off: bool) -> None:
    """With it off, systemd obeys an EFI variable that is in no PCR."""
    found = parse((w.VECTORS / f"{vector}.bin").read_bytes())
    assert unmeasured_inputs(found, "sha256", replayed=True) == ((SECURE_BOOT_OFF,) if off else ())


@pytest.mark.parametrize(
    ("sent", "off"),
    [
        (configured(variable("SecureBoot", b"\0")), True),
        (configured(variable("SecureBoot", b"")), True),
        (configured(variable("SecureBoot", b"\2")), True),
        (configured(variable("SecureBoot", b"\1")), False),
        (configured(variable("SecureBoot", b"\0", UUID(int=1))), False),
        (configured(variable("SetupMode", b"\0")), False),
        (configured(variable("SecureBoot", b"\0"), pcr=1), False),
        (configured(variable("SecureBoot", b"\1"), content=variable("SecureBoot", b"\0")), False),
        (configured(b"no variable"), False),
        (log(BLOB), False),
        (None, False),
    ],
)
def test_secure_boot_off_is_what_was_measured(sent: EventLog | None, off: bool) -> None:
    """Only the bytes that hash to the event's digest, of that variable, in that PCR; a log that does not replay says nothing."""
    assert bool(unmeasured_inputs(sent, "sha256", replayed=True)) == off
    assert unmeasured_inputs(sent, "sha256", replayed=False) == ()

"""Rules over logs of U-Boot, and over PCRs that systemd extends once more in the initrd."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tang_attest.errors import Refused
from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.rules import parse_rules
from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.writer import Measurement

LOGS = Path(__file__).parents[2] / "vectors" / "eventlogs-arm64"
FIT = (LOGS / "uboot-fit-bootm.bin").read_bytes()
UKI = (LOGS / "uboot-efi-uki.bin").read_bytes()
LINE = "console=ttyAMA0 quiet loglevel=3 mitigations=off cryptomgr.notests panic=-1"
TREE = "sha256:" + parse(FIT).events[4].digests["sha256"].hex()
ONES = b"\xff" * 4


def quoted(data: bytes, words: dict[int, list[str]] | None = None) -> dict[int, bytes]:
    values = {pcr: bytes(32) for pcr in range(16)} | replay(parse(data), "sha256")
    for pcr, chosen in (words or {}).items():
        for word in chosen:
            values[pcr] = hashlib.sha256(values[pcr] + hashlib.sha256(word.encode()).digest()).digest()
    return values


def test_the_boot_arguments_of_u_boot_are_a_command_line() -> None:
    """PCR 1 as a whole: the device tree by its digest, the command line by its text, the separator of ones."""
    tree = {"events": {"pcr": 1, "allow": [{"digest": TREE}]}}
    for line in ({"equals": [LINE]}, {"matches": "console=ttyAMA0 .*"}):
        good = parse_rules({"judge-by-events": [1], "rules": [{"command-line": line}, tree]})
        good.check(FIT, "sha256", quoted(FIT))
    other = parse_rules({"judge-by-events": [1], "rules": [{"command-line": {"equals": ["quiet"]}}, tree]})
    with pytest.raises(Refused, match=r"the command line .* is not allowed"):
        other.check(FIT, "sha256", quoted(FIT))


def test_an_error_separator_is_not_accepted() -> None:
    rules = parse_rules(
        {"judge-by-events": [4], "rules": [{"events": {"pcr": 4, "allow": [{"data-matches": "x"}]}}]}
    )
    image = Measurement(4, w.EV_IPL, b"x")
    for value, good in ((bytes(4), True), (ONES, True), (b"\x01\0\0\0", False)):
        log = w.agile((w.SHA256,), [image, Measurement(4, w.EV_SEPARATOR, value)])
        if good:
            rules.check(log, "sha256", quoted(log))
        else:
            with pytest.raises(Refused, match="is accepted by no rule"):
                rules.check(log, "sha256", quoted(log))


def test_variables_count_before_a_separator_of_ones() -> None:
    variable = Measurement(7, w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable("SecureBoot", b"\x01"))
    log = w.agile((w.SHA256,), [variable, Measurement(7, w.EV_SEPARATOR, ONES)])
    parse_rules({"judge-by-events": [7], "rules": [{"secure-boot": "on"}]}).check(log, "sha256", quoted(log))


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ({9: ["os-separator"]}, True),
        ({9: ["os-separator"], 11: ["enter-initrd"]}, True),
        ({11: ["enter-initrd", "leave-initrd"]}, False),
        ({9: ["os-separator", "os-separator"]}, False),
        ({11: ["os-separator"]}, False),
        ({9: ["another word"]}, False),
    ],
)
def test_words_of_systemd_in_an_initrd_come_after_the_log(words: dict[int, list[str]], good: bool) -> None:
    """Once each, in their PCRs, and only those that an initrd measures before it opens a disk."""
    log = parse(UKI)
    files = [
        {
            "files": {
                "pcr": pcr,
                "digests": {
                    str(event.index): f"sha256:{event.digests['sha256'].hex()}"
                    for event in log.events
                    if event.pcr == pcr
                },
            }
        }
        for pcr in (9, 11)
    ]
    rules = parse_rules({"judge-by-events": [9, 11], "rules": files})
    values = quoted(UKI, words)
    if good:
        rules.check(UKI, "sha256", values)
    else:
        with pytest.raises(Refused, match="the event log leads to"):
            rules.check(UKI, "sha256", values)

"""Rules over event logs: real boots pass, and every way around a rule is refused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.eventlog.replay import initial_value
from tang_attest.protocol.rules import RuleSet, parse_rules
from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.writer import EV_IPL, Measurement

AUTHORITY = 0x800000E0
SHIM = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
MICROSOFT = "sha256:48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507"
DEBIAN = "sha256:079646974bce09b1f04da67bd722d1fb0947ae4c4010bccdbba52d5b23cbf1a2"
KERNEL = "sha256:51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275"
INITRD = "sha256:b2bb37967d4203a07df4af3d7cad7e96dcfe0613526c6d482b2d7669b3625568"
LINE = "console=ttyS0 quiet no_timer_check"
SEPARATOR = Measurement(7, w.EV_SEPARATOR, bytes(4))


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digests_of(name: str, pcr: int) -> list[str]:
    log = parse((w.VECTORS / f"{name}.bin").read_bytes())
    return [f"sha256:{e.digests['sha256'].hex()}" for e in log.events if e.extends and e.pcr == pcr]


def rules(judged: list[int], *entries: object) -> RuleSet:
    return parse_rules({"judge-by-events": judged, "rules": list(entries)})


def values(data: bytes) -> dict[int, bytes]:
    log = parse(data)
    replayed = replay(log, "sha256")
    return {pcr: replayed.get(pcr) or initial_value(log, "sha256", pcr) for pcr in range(24)}


def written(*measurements: Measurement) -> bytes:
    return w.agile((w.SHA256,), measurements)


def refusal(ruleset: RuleSet, data: bytes | None, quoted: Mapping[int, bytes] | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        ruleset.check(data, "sha256", values(data or b"") if quoted is None else quoted)
    return caught.value


def why(ruleset: RuleSet, *measurements: Measurement) -> str:
    """The sentence of the first failed rule, for a log that replays."""
    return refusal(ruleset, written(*measurements)).sentence


def passes(ruleset: RuleSet, *measurements: Measurement) -> None:
    data = written(*measurements)
    ruleset.check(data, "sha256", values(data))


def boot(name: str) -> tuple[bytes, dict[int, bytes]]:
    return (w.VECTORS / f"{name}.bin").read_bytes(), w.recorded_values(name)["sha256"]


# --- real boots -----------------------------------------------------------------------------------------------

ANY_VARIABLE = {
    "events": {"pcr": 7, "allow": [{"variable": name} for name in ("PK", "KEK", "db", "dbx")]},
}
SIGNED: list[dict[str, Any]] = [
    {"secure-boot": "on"},
    {"boot-applications": {"signed-by": [MICROSOFT, DEBIAN]}},
    ANY_VARIABLE,
]
GRUB: list[dict[str, Any]] = [
    {"command-line": {"matches": "/vmlinuz console=ttyS0 [a-z_ ]+", "forbids": ["init", "rd.break"]}},
    {
        "events": {
            "pcr": 8,
            "allow": [
                {"type": "EV_IPL", "data-matches": r"\[ -[ze] [-!a-zA-Z0-9_/(), .]+ \]"},
                {"data-matches": r"source \(hd0,msdos1\)/EFI/debian/grub\.cfg"},
                {"data-matches": "set timeout=[0-9]+"},
                {"data-matches": "linux /vmlinuz console=ttyS0 quiet no_timer_check"},
                {"data-matches": r"initrd /initrd\.img|boot"},
            ],
        }
    },
    {
        "files": {
            "digests": {
                "/vmlinuz": KERNEL,
                "/initrd.img": [INITRD, "sha256:" + "0" * 64],
                "grub.cfg": digests_of("secure-boot", 9)[0],
            }
        }
    },
]
STUB: list[dict[str, Any]] = [
    {"command-line": {"equals": [LINE]}},
    {"files": {"pcr": 9, "digests": {"initrd": INITRD}}},
    {
        "files": {
            "pcr": 11,
            "digests": {"kernel": KERNEL, "initrd": INITRD, "os-release": digests_of("uki", 11)[3]},
        }
    },
]


def test_a_real_boot_under_secure_boot_with_grub_passes() -> None:
    """OVMF, shim, GRUB and Linux as Debian ships them, judged by nothing but events."""
    ruleset = rules([4, 7, 8, 9], *SIGNED, *GRUB)
    ruleset.check(*_with_bank("secure-boot"))
    assert ruleset.pcrs == ruleset.judged_pcrs == {4, 7, 8, 9}
    assert all(outcome.passed for outcome in ruleset.dry_run(*_with_bank("secure-boot")))


def test_a_real_unified_kernel_image_passes() -> None:
    """systemd-stub logs names and digests: the command line is compared as it is measured, twice."""
    rules([9, 11], *STUB).check(*_with_bank("uki"))


def test_a_real_kernel_started_by_qemu_passes() -> None:
    """OVMF adds initrd=initrd to the line that it hands over."""
    initrd = {"files": {"digests": {"initrd": digests_of("kernel-changed", 9)[1]}}}
    image = {"boot-applications": {"digests": [digests_of("kernel-changed", 4)[0]]}}
    line = {"command-line": {"equals": ["console=ttyS0 quiet init=/bin/sh initrd=initrd"]}}
    rules([4, 9], line, initrd, image).check(*_with_bank("kernel-changed"))


def test_a_real_boot_with_a_changed_command_line_and_initrd_is_refused() -> None:
    """Each failed rule has its own reason, with the event, what was found and what is allowed."""
    ruleset = rules(
        [9], {"command-line": {"equals": ["console=ttyS0 quiet"]}}, {"files": {"digests": {"i": INITRD}}}
    )
    data, quoted = boot("kernel-changed")
    refused = refusal(ruleset, data, quoted)
    assert [(reason.code, dict(reason.data).get("event")) for reason in refused.reasons] == [
        ("rule-failed", 21),
        ("rule-failed", None),
        ("rule-failed", 22),
    ]
    first = dict(refused.reasons[0].data)
    assert (first["rule"], first["name"], first["pcr"]) == (1, "command-line", 9)
    assert first["allowed"] == ["console=ttyS0 quiet"]
    assert refused.reasons[0].sentence.startswith(
        "Rule 1 (command-line): the log has only the digest of a command"
    )
    assert "PCR 9 has none of the listed files" in refused.reasons[1].sentence
    assert "event 22 of PCR 9 (d59d773d4ec8..., claims: EV_EVENT_TAG initrd:" in refused.reasons[2].sentence


def test_a_real_boot_without_secure_boot_is_refused() -> None:
    """The same machine, Secure Boot off and no keys enrolled."""
    data, quoted = boot("uki")
    refused = refusal(rules([4, 7], *SIGNED), data, quoted)
    assert dict(refused.reasons[0].data)["event"] == 4
    assert "Secure Boot is off: event 4 of PCR 7" in refused.sentence


@pytest.mark.parametrize("missing", [MICROSOFT, DEBIAN])
def test_a_signer_who_is_not_listed_is_refused(missing: str) -> None:
    """Firmware and shim both say whose signature they took."""
    left = DEBIAN if missing == MICROSOFT else MICROSOFT
    data, quoted = boot("secure-boot")
    ruleset = rules([4], {"boot-applications": {"signed-by": [left]}})
    assert ruleset.pcrs == {4, 7}
    assert (
        f"images were checked with {missing}, which is not allowed" in refusal(ruleset, data, quoted).sentence
    )


def _with_bank(name: str) -> tuple[bytes, str, dict[int, bytes]]:
    data, quoted = boot(name)
    return data, "sha256", quoted


# --- the log as a whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, b""])
def test_no_log(data: bytes | None) -> None:
    """Rules without a log cannot pass."""
    refused = refusal(rules([9], STUB[1]), data, {9: bytes(32)})
    assert refused.code == "log-missing"


def test_a_log_that_cannot_be_read() -> None:
    """It is refused with the event and the offset, not raised as something else."""
    data, quoted = boot("uki")
    refused = refusal(rules([9, 11], *STUB), data[:-3], quoted)
    assert (refused.code, dict(refused.reasons[0].data)["event"]) == ("eventlog-malformed", 35)


def test_a_log_without_the_bank() -> None:
    """A log of another bank proves nothing about the quoted one."""
    data, quoted = boot("uki")
    with pytest.raises(Refused) as caught:
        rules([9, 11], *STUB).check(data, "sha384", {pcr: bytes(48) for pcr in quoted})
    assert caught.value.code == "eventlog-bank-missing"


def test_a_log_of_another_boot() -> None:
    """Every judged PCR to whose value the log does not lead is named, with both values."""
    data, quoted = boot("uki")
    refused = refusal(rules([9, 11], *STUB), data, {**quoted, 9: bytes(32), 11: bytes(32)})
    assert [(reason.code, dict(reason.data)["pcr"]) for reason in refused.reasons] == [
        ("log-replay-mismatch", 9),
        ("log-replay-mismatch", 11),
    ]
    assert dict(refused.reasons[0].data)["got"] == "00" * 32
    assert dict(refused.reasons[0].data)["replayed"] == quoted[9].hex()


def test_a_pcr_that_was_not_quoted() -> None:
    """Its events are words."""
    data, quoted = boot("secure-boot")
    del quoted[7]
    refused = refusal(rules([4], SIGNED[1]), data, quoted)
    assert refused.code == "log-replay-mismatch"
    assert refused.sentence == "PCR 7 was not quoted, so its events prove nothing."


def test_other_pcrs_need_not_replay() -> None:
    """A PCR that no rule reads is compared by its value, elsewhere."""
    data, quoted = boot("uki")
    rules([9, 11], *STUB).check(data, "sha256", {**quoted, 0: bytes(32), 10: b"\1" * 32})


# --- judge-by-events ------------------------------------------------------------------------------------------

UNKNOWN = [
    Measurement(0, EV_IPL, b"new\0", b"unknown software"),
    Measurement(0, w.EV_ACTION, b"an action nobody knows"),
    Measurement(0, w.EV_SEPARATOR, b"\xff" * 4),
    Measurement(0, w.EV_SEPARATOR, bytes(4), b"not a separator at all"),
    Measurement(0, 0x80000007, b"Calling EFI Application from Boot Option", b"evil"),
    Measurement(0, 0x12345678, b""),
    Measurement(0, w.EV_EVENT_TAG, w.tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0"), b"init=/bin/sh"),
    Measurement(0, w.EV_EVENT_TAG, w.tagged(0x8F3B22EC, b"Linux initrd\0"), b"another initrd"),
    Measurement(0, EV_IPL, ".initrd\0".encode("utf-16-le"), b"another initrd"),
    Measurement(0, EV_IPL, b"kernel_cmdline: /vmlinuz console=ttyS0 quiet\0", b"/vmlinuz init=/bin/sh"),
    Measurement(0, AUTHORITY, w.variable("db", b"owner of 16 bytescertificate", DATABASE)),
]


@pytest.mark.parametrize("unknown", UNKNOWN, ids=range(len(UNKNOWN)))
@pytest.mark.parametrize(
    ("name", "pcr"),
    [("secure-boot", 7), ("secure-boot", 8), ("secure-boot", 9), ("uki", 9), ("uki", 11)],
)
def test_one_unknown_event_is_refused(name: str, pcr: int, unknown: Measurement) -> None:
    """Wherever it stands and whatever it calls itself: nobody may hide in an event that no rule judges."""
    data, _ = boot(name)
    ruleset = rules([4, 7, 8, 9], *SIGNED, *GRUB) if name == "secure-boot" else rules([9, 11], *STUB)
    ruleset.check(data, "sha256", values(data))
    event = unknown._replace(pcr=pcr)
    more = data + w.event2(pcr, event.type, [(w.SHA256, event.digest(w.SHA256))], event.data)
    assert all(reason.code == "rule-failed" for reason in refusal(ruleset, more).reasons)


def test_an_unknown_event_is_named_with_the_rules_of_its_pcr() -> None:
    """The message names the place and the missing key."""
    data, _ = boot("uki")
    more = data + w.event2(9, EV_IPL, [(w.SHA256, b"\1" * 32)], b"new\0")
    refused = refusal(rules([9, 11], *STUB), more)
    assert refused.sentence == (
        "'judge-by-events': event 36 of PCR 9 (010101010101..., claims: EV_IPL \"new\") is accepted by no rule"
        " (rules about PCR 9: command-line, files)."
    )
    assert dict(refused.reasons[0].data) == {
        "rule": 0,
        "name": "judge-by-events",
        "pcr": 9,
        "event": 36,
        "found": "01" * 32,
    }


def test_a_pcr_without_events_is_refused() -> None:
    """A boot past the loader that measures leaves its PCRs empty."""
    ruleset = rules([2, 4], {"boot-applications": {"digests": [digest(b"image")]}})
    image = Measurement(4, w.EV_EFI_BOOT_SERVICES_APPLICATION, w.image_load("a"), b"image")
    passes(ruleset, image, SEPARATOR._replace(pcr=2))
    assert "nothing was measured into PCR 2" in why(ruleset, image)


# --- secure-boot ----------------------------------------------------------------------------------------------


def efi(name: str, value: bytes, **changes: Any) -> Measurement:
    return Measurement(7, w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable(name, value))._replace(**changes)


ON, OFF, KEY = efi("SecureBoot", b"\1"), efi("SecureBoot", b"\0"), efi("PK", b"key")
SECURE = rules([7], {"secure-boot": "on"}, ANY_VARIABLE)


def test_secure_boot_on() -> None:
    """On, with keys, then the separator."""
    passes(SECURE, ON, KEY, SEPARATOR)
    assert rules([7], {"secure-boot": True}, ANY_VARIABLE) == SECURE


@pytest.mark.parametrize(
    ("measurements", "sentence"),
    [
        ([OFF, KEY, SEPARATOR], "Secure Boot is off: event 1"),
        ([efi("SecureBoot", b""), KEY, SEPARATOR], "Secure Boot is off: event 1"),
        ([efi("SecureBoot", b"\2"), KEY, SEPARATOR], "Secure Boot is off: event 1"),
        ([OFF, KEY, SEPARATOR, ON], "Secure Boot is off: event 1"),
        ([ON, KEY, SEPARATOR, OFF], "Secure Boot is off: event 4"),
        ([ON, efi("PK", b""), SEPARATOR], "the firmware is open: event 2"),
        ([ON, KEY, efi("AuditMode", b"\1"), SEPARATOR], "the firmware is open: event 3"),
        (
            [ON, KEY, Measurement(7, 0x80000007, b"UEFI Debug Mode"), SEPARATOR],
            "the firmware is open: event 3",
        ),
        ([KEY, SEPARATOR], "PCR 7 does not prove exactly one SecureBoot = 1"),
        ([ON, ON, KEY, SEPARATOR], "PCR 7 does not prove exactly one SecureBoot = 1"),
        ([KEY, SEPARATOR, ON], "PCR 7 does not prove exactly one SecureBoot = 1"),
        ([ON, KEY, SEPARATOR, ON], "PCR 7 does not prove exactly one SecureBoot = 1"),
        ([ON, KEY], "PCR 7 has no separator"),
        ([KEY], "PCR 7 has no separator"),
        # OFF under another name, with a false ON behind it: the bytes are not those that were measured.
        ([KEY._replace(measured=OFF.data), ON, SEPARATOR], "Secure Boot is off: event 1"),
        (
            [KEY._replace(measured=b"something"), ON, SEPARATOR],
            "what was measured before PCR 7's separator is not known",
        ),
        # A separator that only says so.
        ([ON._replace(measured=OFF.data), SEPARATOR._replace(measured=b"x")], "PCR 7 has no separator"),
        ([ON._replace(measured=OFF.data), SEPARATOR], "Secure Boot is off: event 1"),
        # The same bytes under another type are still the same bytes.
        ([OFF._replace(type=EV_IPL), ON, SEPARATOR], "Secure Boot is off: event 1"),
    ],
)
def test_secure_boot_not_proven(measurements: list[Measurement], sentence: str) -> None:
    """Off, open, missing, twice, late, or called something else."""
    assert sentence in why(SECURE, *measurements)


# --- boot-applications ----------------------------------------------------------------------------------------


def image(content: bytes, **changes: Any) -> Measurement:
    return Measurement(4, w.EV_EFI_BOOT_SERVICES_APPLICATION, w.image_load("\\a.efi"), content)._replace(
        **changes
    )


def authority(certificate: bytes, name: str = "db", guid: UUID = DATABASE) -> Measurement:
    return Measurement(7, AUTHORITY, w.variable(name, bytes(16) + certificate, guid))


LISTED = rules([4], {"boot-applications": {"digests": [digest(b"good")]}})
VOUCHED = rules([4], {"boot-applications": {"signed-by": [digest(b"signer")]}})
EITHER = rules([4], {"boot-applications": {"digests": [digest(b"good")], "signed-by": [digest(b"signer")]}})
SIGNED_BOOT = [ON, KEY, SEPARATOR, authority(b"signer")]


def test_boot_applications_by_digest() -> None:
    """Images of the list, with what firmware measures around them."""
    around = [
        Measurement(4, 0x80000007, b"Calling EFI Application from Boot Option"),
        SEPARATOR._replace(pcr=4),
    ]
    passes(LISTED, *around, image(b"good"), image(b"good"))
    assert "event 2 of PCR 4" in why(LISTED, image(b"good"), image(b"bad"))
    assert "PCR 4 has no boot application" in why(LISTED, *around)


@pytest.mark.parametrize("claimed", [w.EV_SEPARATOR, w.EV_ACTION, 0x80000007, w.EV_EFI_VARIABLE_BOOT, EV_IPL])
def test_an_image_under_another_name_is_refused(claimed: int) -> None:
    """The type is the sender's word, so renaming the event does not help."""
    assert "is accepted by no rule" in why(LISTED, image(b"good"), image(b"bad", type=claimed))


def test_boot_applications_by_signer() -> None:
    """Secure Boot was on, and everything was vouched for by a listed certificate."""
    passes(VOUCHED, *SIGNED_BOOT, image(b"anything"))
    level = Measurement(7, AUTHORITY, w.variable("SbatLevel", b"sbat,1,2024", SHIM))
    passes(VOUCHED, *SIGNED_BOOT, level, authority(b"signer", "MokListRT", SHIM), image(b"anything"))
    old_shim = Measurement(7, AUTHORITY, w.variable("Shim", b"signer", SHIM))
    passes(VOUCHED, *SIGNED_BOOT[:3], old_shim, image(b"anything"))


@pytest.mark.parametrize(
    ("pcr7", "sentence"),
    [
        ([OFF, KEY, SEPARATOR, authority(b"signer")], "Secure Boot is off"),
        ([ON, KEY, SEPARATOR], "PCR 7 names nothing that images were checked with"),
        ([ON, KEY, authority(b"signer"), SEPARATOR], "PCR 7 names nothing that images were checked with"),
        ([*SIGNED_BOOT, authority(b"stranger")], "which is not allowed (event 5"),
        (
            [*SIGNED_BOOT, authority(b"signer")._replace(measured=b"x")],
            "what images were checked with is not known",
        ),
        (
            [*SIGNED_BOOT, Measurement(7, AUTHORITY, w.variable("MokSBState", b"\1", SHIM))],
            "which is not allowed",
        ),
        (
            [*SIGNED_BOOT, Measurement(7, AUTHORITY, w.variable("SbatLevel", b"x", DATABASE))],
            "which is not allowed",
        ),
        ([*SIGNED_BOOT, Measurement(7, 0x12345678, b"")], "what images were checked with is not known"),
    ],
)
def test_boot_applications_by_a_signer_who_is_not_proven(pcr7: list[Measurement], sentence: str) -> None:
    """Without Secure Boot, without an authority, or with one more that is not ours, whatever it is called."""
    assert sentence in why(VOUCHED, *pcr7, image(b"anything"))


def test_boot_applications_by_either() -> None:
    """A listed image passes without Secure Boot; another one does not."""
    passes(EITHER, OFF, SEPARATOR, image(b"good"))
    passes(EITHER, *SIGNED_BOOT, image(b"other"), image(b"good"))
    assert "Secure Boot is off" in why(EITHER, OFF, SEPARATOR, image(b"good"), image(b"other"))


def test_drivers_of_cards() -> None:
    """Option ROMs are in PCR 2, judged when PCR 2 is."""
    ruleset = rules([2, 4], {"boot-applications": {"digests": [digest(b"good"), digest(b"rom")]}})
    rom = image(b"rom", pcr=2, type=0x80000004)
    passes(ruleset, image(b"good"), rom)
    assert "event 2 of PCR 2" in why(ruleset, image(b"good"), rom._replace(measured=b"bad"))


# --- command-line ---------------------------------------------------------------------------------------------


def line(text: str, pcr: int = 8) -> Measurement:
    return Measurement(pcr, EV_IPL, f"kernel_cmdline: {text}\0".encode(), text.encode())


def options(text: str) -> Measurement:
    label = w.tagged(0x8F3B22ED, b"LOADED_IMAGE::LoadOptions\0")
    return Measurement(9, w.EV_EVENT_TAG, label, f"{text}\0".encode("utf-16-le"))


def lines(judged: tuple[int, ...] = (8,), **body: object) -> RuleSet:
    return rules(list(judged), {"command-line": body})


def test_command_line_of_grub() -> None:
    """The whole text matches, or is equal."""
    passes(lines(matches="/vmlinuz-[0-9.]+ ro"), line("/vmlinuz-6.1 ro"))
    passes(lines(equals=["/a ro", "/b ro"]), line("/b ro"))
    assert 'the command line "/vmlinuz-6.1 ro init=/bin/sh", is not allowed' in why(
        lines(matches="/vmlinuz-[0-9.]+ ro"), line("/vmlinuz-6.1 ro init=/bin/sh")
    )
    assert "event 2 of PCR 8" in why(lines(equals=["/a ro"]), line("/a ro"), line("/a rw"))
    assert "no kernel command line was measured into PCR 8" in why(lines(equals=["/a"]), SEPARATOR)


@pytest.mark.parametrize(
    "text",
    [
        "/a ro init=/bin/sh",
        "/a ro init",
        '/a ro "init=/bin/sh"',
        '/a ro in"it=/bin/sh"',
        "/a ro\tinit=/bin/sh",
        "/a ro\N{LATIN SMALL LETTER A WITH GRAVE}init=/bin/sh",  # its second byte is a space to Linux
        "/a ro rd-break",
        "/a ro rd_break=pre-mount",
    ],
)
def test_forbidden_words(text: str) -> None:
    """Spelled in any way that Linux would understand."""
    ruleset = lines(
        matches=r"(?s)/a ro.*", equals=[text] if text.isprintable() else ["-"], forbids=["init", "rd_break"]
    )
    passes(ruleset, line("/a ro initial=1 root=init"))
    assert refusal(ruleset, written(line(text))).code == "rule-failed"


@pytest.mark.parametrize(
    "text",
    ["/a\nro", "/a ro\N{NO-BREAK SPACE}", "/a \N{LATIN SMALL LETTER A WITH GRAVE}", "/a\0ro", "a" * 4097],
)
def test_odd_command_lines(text: str) -> None:
    """Text that Linux may split in another way than a pattern sees it is not matched, nor is one that is too long."""
    refusal(lines(matches="(?s).*"), written(line(text)))


def test_bytes_that_are_no_text() -> None:
    """Not matched, not raised."""
    event = Measurement(8, EV_IPL, b"kernel_cmdline: \xff\xfe\xfd\0", b"\xff\xfe\xfd")
    assert "is no text of one line" in why(lines(matches=".*"), event)


def test_command_line_of_the_stub() -> None:
    """Only a digest: comparable with what is equal, or with what GRUB logged in PCR 8."""
    passes(lines((9,), equals=["ro"]), options("ro"))
    passes(lines((8, 9), matches="/vmlinuz ro"), line("/vmlinuz ro"), options("BOOT_IMAGE=/vmlinuz ro"))
    passes(lines((9,), equals=["(hd0)/vmlinuz ro"]), options("BOOT_IMAGE=(hd0)/vmlinuz ro"))
    assert "equals has none" in why(lines((9,), matches=".*"), options("ro"))
    assert "none of ro has it" in why(lines((9,), equals=["ro"]), options("ro init=/bin/sh"))
    # Linux may load that file without measuring it.
    assert "none of ro has it" in why(lines((9,), equals=["ro"]), options("ro initrd=initrd"))
    # The first parameter would be lost.
    assert "none of ro quiet has it" in why(lines((9,), equals=["ro quiet"]), options("BOOT_IMAGE=ro quiet"))
    assert "none of ro has it" in why(lines((8, 9), equals=["ro"]), line("ro"), options("rw"))


def test_command_line_added_to_an_image() -> None:
    """systemd-stub's PCR 12, in UTF-16."""
    event = Measurement(12, EV_IPL, "ro debug\0".encode("utf-16-le"))
    passes(lines((12,), equals=["ro debug"]), event)
    passes(lines((12,), matches="ro [a-z]+"), event)
    refusal(lines((12,), matches="ro"), written(event))


def test_a_grub_command_is_no_command_line() -> None:
    """Called one by the sender, it still has to be allowed as one."""
    assert "is not allowed" in why(
        lines(matches="/vmlinuz.*"), line("/vmlinuz ro"), line("chainloader /evil.efi")
    )


def test_a_command_line_called_a_grub_command() -> None:
    """The prefix is not measured, so the pattern of a command sees the line without it."""
    allow = {"events": {"pcr": 8, "allow": [{"data-matches": "boot"}]}}
    ruleset = rules([8], {"command-line": {"equals": ["/a ro"]}}, allow)
    boot_command = Measurement(8, EV_IPL, b"grub_cmd: boot\0", b"boot")
    passes(ruleset, line("/a ro"), boot_command)
    hidden = Measurement(8, EV_IPL, b"grub_cmd: /a init=/bin/sh\0", b"/a init=/bin/sh")
    assert "is accepted by no rule" in why(ruleset, line("/a ro"), boot_command, hidden)


def test_patterns_take_linear_time() -> None:
    """A text that would keep a backtracking engine busy for years."""
    ruleset = lines(matches="(a*)*(a|aa)*b")
    started = time.monotonic()
    refusal(ruleset, written(*(line("a" * 4000) for _ in range(20))))
    assert time.monotonic() - started < 30


# --- files and events -----------------------------------------------------------------------------------------


def test_files() -> None:
    """Any listed digest in its PCR; a name is no proof."""
    ruleset = rules(
        [9], {"files": {"digests": {"/vmlinuz": digest(b"kernel"), "/initrd": [digest(b"initrd")]}}}
    )
    passes(
        ruleset,
        Measurement(9, EV_IPL, b"/anything\0", b"kernel"),
        Measurement(9, EV_IPL, b"/vmlinuz\0", b"initrd"),
    )
    assert (
        "is accepted by no rule"
        in refusal(
            ruleset,
            written(
                Measurement(9, EV_IPL, b"/vmlinuz\0", b"kernel"),
                Measurement(9, EV_IPL, b"/vmlinuz\0", b"bad"),
            ),
        ).sentence
    )
    assert "PCR 9 has none of the listed files" in why(ruleset, SEPARATOR._replace(pcr=9))


def test_a_digest_of_another_bank_is_none() -> None:
    """A SHA-384 digest says nothing about the SHA-256 bank."""
    ruleset = rules([9], {"files": {"digests": {"/a": "sha384:" + hashlib.sha384(b"a").hexdigest()}}})
    assert "PCR 9 has none of the listed files" in why(ruleset, Measurement(9, EV_IPL, b"/a\0", b"a"))


def test_events() -> None:
    """By digest, by text, by variable; a type narrows."""
    allow = [
        {"type": "EV_IPL", "digest": digest(b"one")},
        {"type": "EV_IPL", "data-matches": "two.*"},
    ]
    ruleset = rules([14], {"events": {"pcr": 14, "allow": allow}})
    good = [Measurement(14, EV_IPL, b"name\0", b"one"), Measurement(14, EV_IPL, b"two and more\0")]
    passes(ruleset, *good)
    for bad in (
        Measurement(14, w.EV_ACTION, b"name\0", b"one"),
        Measurement(14, EV_IPL, b"two\0", b"not two"),
        Measurement(14, EV_IPL, b"not two\0"),
        Measurement(14, EV_IPL, b"two" + b"o" * 20000),
    ):
        assert "is accepted by no rule" in why(ruleset, *good, bad)
    assert "PCR 14 has none of the listed events" in why(ruleset, SEPARATOR._replace(pcr=14))


def test_variables() -> None:
    """Any value, under this name, before the separator: behind it, the same name says who vouched for an image."""
    ruleset = rules([7], {"secure-boot": "on"}, {"events": {"pcr": 7, "allow": [{"variable": "db"}]}})
    db = Measurement(7, w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable("db", b"anything", DATABASE))
    passes(ruleset, ON, db, SEPARATOR)
    for bad in (
        [ON, db, KEY, SEPARATOR],
        [ON, db, SEPARATOR, authority(b"stranger")],
        [ON, db, SEPARATOR, db],
    ):
        assert "is accepted by no rule" in why(ruleset, *bad)
    assert "is not known" in why(ruleset, ON, db, db._replace(measured=b"x"), SEPARATOR)
    refusal(rules([14], {"events": {"pcr": 14, "allow": [{"variable": "db"}]}}), written(db._replace(pcr=14)))


# --- the document ---------------------------------------------------------------------------------------------

FILES = {"files": {"digests": {"a": INITRD}}}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (None, "The rules: this is no mapping with text keys."),
        ([], "The rules: this is no mapping with text keys."),
        ({}, "The rules: this is no mapping with text keys."),
        ({"rules": [FILES]}, "Key 'judge-by-events': this is no list, or an empty one."),
        ({"judge-by-events": [9]}, "Key 'rules': this is no list, or an empty one."),
        (
            {"judge-by-events": [9], "rules": [FILES], "x": 1},
            "Key 'x': is not known here, only judge-by-events, rules.",
        ),
        ({"judge-by-events": [24], "rules": [FILES]}, "Key 'judge-by-events': this is no PCR from 0 to 23."),
        (
            {"judge-by-events": [True], "rules": [FILES]},
            "Key 'judge-by-events': this is no PCR from 0 to 23.",
        ),
        ({"judge-by-events": ["9"], "rules": [FILES]}, "Key 'judge-by-events': this is no PCR from 0 to 23."),
        ({"judge-by-events": [9, 9], "rules": [FILES]}, "Key 'judge-by-events': a PCR is named twice."),
        (
            {"judge-by-events": [8, 9], "rules": [FILES]},
            "Key 'judge-by-events': no rule is about PCR 8, so every boot would be refused.",
        ),
        ({"judge-by-events": [9], "rules": [FILES] * 65}, "Key 'rules': there are more than 64 rules."),
    ],
)
def test_documents_that_are_no_rules(document: object, sentence: str) -> None:
    """The error names the key."""
    with pytest.raises(Malformed) as caught:
        parse_rules(document)
    assert (caught.value.code, caught.value.sentence) == ("rules-invalid", sentence)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("files", ": this is no mapping with text keys."),
        ({**FILES, "secure-boot": "on"}, ": this is more than one rule; start each with a dash."),
        (
            {"file": {}},
            ", key 'file': is not known here, only secure-boot, boot-applications, command-line, files, events.",
        ),
        ({"secure-boot": "off"}, ", key 'secure-boot': this can only be on."),
        ({"secure-boot": 1}, ", key 'secure-boot': this can only be on."),
        ({"files": {"digest": {}}}, ", key 'files', key 'digest': is not known here, only pcr, digests."),
        ({"files": {"pcr": 9}}, ", key 'files', key 'digests': this is no mapping with text keys."),
        (
            {"files": {"digests": {"a": "ab"}}},
            ", key 'files', key 'digests', key 'a': this is no digest such as sha256:<64 digits>, of sha256, sha384, sha512.",
        ),
        (
            {"files": {"digests": {"a": ["sha1:" + "0" * 40]}}},
            ", key 'files', key 'digests', key 'a': this is no digest such as sha256:<64 digits>, of sha256, sha384, sha512.",
        ),
        (
            {"files": {"pcr": 10, "digests": {"a": INITRD}}},
            ", key 'files', key 'pcr': PCR 10 is not in judge-by-events, so this would decide nothing.",
        ),
        (
            {"boot-applications": {"digests": [INITRD]}},
            ", key 'boot-applications': PCR 4 is not in judge-by-events, so this would decide nothing.",
        ),
        ({"command-line": {}}, ", key 'command-line': this is no mapping with text keys."),
        (
            {"command-line": {"forbids": ["init"]}},
            ", key 'command-line': this needs equals or matches; forbids alone would let every other text pass.",
        ),
        (
            {"command-line": {"equals": ["a"], "forbids": ["init rd.break"]}},
            ", key 'command-line', key 'forbids': each of these is one word.",
        ),
        (
            {"command-line": {"matches": "("}},
            ", key 'command-line', key 'matches': this is no regular expression of RE2 (missing ): ().",
        ),
        (
            {"command-line": {"matches": "(?=a)"}},
            ", key 'command-line', key 'matches': this is no regular expression of RE2 (invalid perl operator: (?=).",
        ),
        (
            {"command-line": {"matches": "a" * 1025}},
            ", key 'command-line', key 'matches': this is longer than 1024 characters.",
        ),
        ({"command-line": {"matches": 5}}, ", key 'command-line', key 'matches': this is no text."),
        (
            {"command-line": {"equals": ["a\nb"]}},
            ", key 'command-line', key 'equals': this is no text of one line and 1 to 4096 characters.",
        ),
        (
            {"command-line": {"equals": ["a"] * 1025}},
            ", key 'command-line', key 'equals': there are more than 1024 entries.",
        ),
        ({"events": {"pcr": 9}}, ", key 'events', key 'allow': this is no list, or an empty one."),
        (
            {"events": {"allow": [{"variable": "a"}]}},
            ", key 'events', key 'pcr': this is no PCR from 0 to 23.",
        ),
        (
            {"events": {"pcr": 9, "allow": [{"type": "EV_IPL"}]}},
            ", key 'events', key 'allow', key '1': this needs one of digest, data-matches and variable.",
        ),
        (
            {"events": {"pcr": 9, "allow": [{"variable": "a", "digest": INITRD}]}},
            ", key 'events', key 'allow', key '1': this needs one of digest, data-matches and variable.",
        ),
        (
            {"events": {"pcr": 9, "allow": [{"variable": "a"}, {"type": "EV_X", "digest": INITRD}]}},
            ", key 'events', key 'allow', key '2', key 'type': this is no event type such as EV_IPL.",
        ),
        (
            {"events": {"pcr": 9, "allow": [{"data-matches": "a"}] * 65}},
            ", key 'events', key 'allow': there are more than 64 patterns.",
        ),
    ],
)
def test_rules_that_are_none(rule: object, sentence: str) -> None:
    """The error names the rule by its number, and the key."""
    with pytest.raises(Malformed) as caught:
        parse_rules({"judge-by-events": [9], "rules": [FILES, rule]})
    assert caught.value.code == "rules-invalid"
    assert caught.value.sentence == f"Rule 2{sentence}"
    assert dict(caught.value.reasons[0].data) == {"rule": 2}


def test_a_command_line_rule_needs_a_pcr() -> None:
    """It would look nowhere."""
    with pytest.raises(Malformed, match="none of PCR 1, 8, 9, 11, 12 is in judge-by-events"):
        rules([4], {"command-line": {"equals": ["a"]}})


def test_certificates_are_named_by_sha256() -> None:
    """The fingerprint that people know, with any bank."""
    with pytest.raises(Malformed, match="a certificate is named by its sha256"):
        rules([4], {"boot-applications": {"signed-by": ["sha384:" + "0" * 96]}})


def test_rules_keep_through_json() -> None:
    """The stored form is the written form."""
    for ruleset in (rules([4, 7, 8, 9], *SIGNED, *GRUB), rules([9, 11], *STUB), EITHER):
        assert parse_rules(ruleset.as_json()) == ruleset


# --- properties -----------------------------------------------------------------------------------------------

measurements = st.builds(
    Measurement,
    st.sampled_from([2, 4, 7, 8, 9, 11, 12, 14]),
    st.sampled_from(
        [1, 3, 4, 5, 6, 13, 0x80000001, 0x80000002, 0x80000003, 0x80000007, AUTHORITY, 0x12345678]
    ),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [ON.data, OFF.data, bytes(4), b"kernel_cmdline: ro\0", ".cmdline\0".encode("utf-16-le")]
        ),
    ),
    st.one_of(st.none(), st.binary(max_size=4)),
)
EVERYTHING = rules([4, 7, 8, 9], *SIGNED, *GRUB)


@given(st.lists(measurements, max_size=12))
def test_a_log_is_refused_or_passes(log: list[Measurement]) -> None:
    """No log makes a rule raise anything else; one that cannot be read has no values, and is refused or malformed."""
    data = written(*log)
    try:
        quoted = values(data)
    except Malformed:
        with pytest.raises((Refused, Malformed)):
            EVERYTHING.check(data, "sha256", dict.fromkeys(range(24), bytes(32)))
        return
    with pytest.raises(Refused):
        EVERYTHING.check(data, "sha256", quoted)


@given(st.binary(max_size=300))
def test_bytes_are_refused(data: bytes) -> None:
    """Nor does anything that is no log."""
    with pytest.raises(Refused):
        EVERYTHING.check(data, "sha256", {})


@given(st.lists(measurements, min_size=1, max_size=3), st.integers(0, 45))
def test_events_among_those_of_a_good_boot_are_refused(more: list[Measurement], place: int) -> None:
    """Anywhere in a real log: an extend that no rule knows is refused; PCR 4 is vouched for by PCR 7."""
    data, _ = boot("secure-boot")
    log = parse(data)
    at = log.events[max(place, 1)].offset
    inserted = b"".join(w.event2(m.pcr, m.type, [(w.SHA256, m.digest(w.SHA256))], m.data) for m in more)
    harmless = {hashlib.sha256(bytes(4)).digest()}
    judged = [m for m in more if m.pcr in (7, 8, 9) and m.type != 3 and m.digest(w.SHA256) not in harmless]
    changed = data[:at] + inserted + data[at:]
    if judged:
        with pytest.raises(Refused):
            EVERYTHING.check(changed, "sha256", values(changed))


documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.just(INITRD), st.just("on")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "judge-by-events",
                    "rules",
                    "secure-boot",
                    "boot-applications",
                    "files",
                    "events",
                    "command-line",
                    "pcr",
                    "digests",
                    "signed-by",
                    "allow",
                    "type",
                    "digest",
                    "variable",
                    "matches",
                    "equals",
                ]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


@given(documents)
def test_a_document_is_malformed_or_rules(document: object) -> None:
    """No document raises anything else, below the right keys either."""
    for candidate in (document, {"judge-by-events": [4, 7, 8, 9], "rules": [document]}):
        try:
            ruleset = parse_rules(candidate)
        except Malformed as error:
            assert error.code == "rules-invalid"  # noqa: PT017 # passing is allowed, too
        else:
            assert parse_rules(ruleset.as_json()) == ruleset

"""Differences of two logs, in sentences: real boots against each other, and one change at a time."""

from __future__ import annotations

import hashlib
import time
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog import EventLog, difference, parse, replay
from tests.protocol.eventlog import writer as w
from tests.protocol.eventlog.writer import EV_IPL, Measurement

AUTHORITY = 0x800000E0
SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
RECORDED = {name: parse((w.VECTORS / f"{name}.bin").read_bytes()) for name in w.RECORDED}


def log(*measurements: Measurement) -> EventLog:
    return parse(w.agile((w.SHA256,), measurements))


def sentences(old: list[Measurement], new: list[Measurement]) -> list[str]:
    return [change.sentence for change in difference(log(*old), log(*new), "sha256")]


def grub(text: str, prefix: str = "grub_cmd: ") -> Measurement:
    return Measurement(8, EV_IPL, f"{prefix}{text}\0".encode(), text.encode())


def line(text: str) -> Measurement:
    return grub(text, "kernel_cmdline: ")


def file(path: str, content: bytes) -> Measurement:
    return Measurement(9, EV_IPL, f"{path}\0".encode(), content)


def short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12] + "..."


def test_a_real_boot_with_another_initrd_and_command_line() -> None:
    """The kernel differs by the initrd's size that QEMU writes into it, and PCR 9 by both; nothing else is named."""
    changes = difference(RECORDED["ovmf"], RECORDED["kernel-changed"], "sha256")
    assert [(change.pcr, change.kind) for change in changes] == [
        (4, "replaced"),
        (9, "replaced"),
        (9, "replaced"),
    ]
    image, options, initrd = (change.sentence for change in changes)
    assert image.startswith("a boot application (claims: VenMedia(")
    assert options.startswith(
        'the kernel command line (claims: "LOADED_IMAGE::LoadOptions") changed: digest '
    )
    assert (
        initrd
        == 'the initrd (claims: "Linux initrd") changed: digest d59d773d4ec8... instead of 8c49ede5a2e7...'
    )


def test_a_real_boot_with_secure_boot_against_one_without() -> None:
    """Secure Boot, its keys, who signed, shim's lists and GRUB's events are all called by their names."""
    found = [change.sentence for change in difference(RECORDED["uki"], RECORDED["secure-boot"], "sha256")]
    assert "Secure Boot was switched on" in found
    assert any(
        sentence.startswith("Secure Boot's platform key (PK) changed: 1005 bytes") for sentence in found
    )
    assert any("CN=Microsoft Corporation UEFI CA 2011, sha256:" in sentence for sentence in found)
    assert any("CN=Debian Secure Boot CA, sha256:" in sentence for sentence in found)
    assert any(sentence.startswith('a list of shim (claims: "MokList") was added') for sentence in found)
    assert 'a GRUB command was added: "initrd /initrd.img"' in found
    assert 'the kernel command line was added: "/vmlinuz console=ttyS0 quiet no_timer_check"' in found
    assert any(
        sentence.startswith('the initrd in the unified kernel image (claims: ".initrd") was')
        for sentence in found
    )
    off = [change.sentence for change in difference(RECORDED["secure-boot"], RECORDED["uki"], "sha256")]
    assert "Secure Boot was switched off" in off


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("ro quiet", "ro quiet init=/bin/sh", "the kernel command line gained init=/bin/sh"),
        ("ro quiet", "ro", "the kernel command line lost quiet"),
        (
            "root=/dev/sda ro",
            "root=/dev/sdb ro",
            "the kernel command line changed root=/dev/sdb (was root=/dev/sda)",
        ),
        ("a ro b", "c ro", "the kernel command line gained c, lost a b"),
        ("ro  quiet", "ro quiet", 'the kernel command line changed: "ro quiet" instead of "ro  quiet"'),
        (
            "ro",
            " ".join(["ro", *(f"w{n}" for n in range(14))]),
            f"the kernel command line gained {' '.join(f'w{n}' for n in range(12))} and 2 more",
        ),
    ],
)
def test_command_lines_are_compared_word_by_word(old: str, new: str, sentence: str) -> None:
    """Words that came, went or changed their value."""
    assert sentences([line(old)], [line(new)]) == [sentence]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            file("/boot/initrd.img-6.1", b"a"),
            file("/boot/initrd.img-6.1", b"b"),
            f'the initrd (claims: "/boot/initrd.img-6.1") changed: digest {short(b"b")} instead of {short(b"a")}',
        ),
        (
            file("/boot/vmlinuz-6.1", b"a"),
            file("/boot/vmlinuz-6.2", b"b"),
            f'the kernel (claims: "/boot/vmlinuz-6.2") changed: digest {short(b"b")} instead of {short(b"a")}',
        ),
        (
            Measurement(
                4, w.EV_EFI_BOOT_SERVICES_APPLICATION, w.image_load("\\EFI\\debian\\grubx64.efi"), b"a"
            ),
            Measurement(
                4, w.EV_EFI_BOOT_SERVICES_APPLICATION, w.image_load("\\EFI\\debian\\grubx64.efi"), b"b"
            ),
            (
                "a boot application (claims: PciRoot(0x0)/Pci(0x2,0x0)/HD(1,GPT,e3d1a5a0-12b2-4c1f-9d3b-0a5c6f7e8d90)/"
                f"\\EFI\\debian\\grubx64.efi (123456 bytes)) changed: digest {short(b'b')} instead of {short(b'a')}"
            ),
        ),
        (
            Measurement(14, EV_IPL, b"MokList\0", b"a"),
            Measurement(14, EV_IPL, b"MokList\0", b"b"),
            f'a list of shim (claims: "MokList") changed: digest {short(b"b")} instead of {short(b"a")}',
        ),
        (
            Measurement(12, EV_IPL, "ro\0".encode("utf-16-le")),
            Measurement(12, EV_IPL, "ro debug\0".encode("utf-16-le")),
            "the kernel command line gained debug",
        ),
        (
            grub("module a", "module_cmdline: "),
            grub("module b", "module_cmdline: "),
            'a module\'s command line changed: "module b" instead of "module a"',
        ),
        (
            Measurement(7, AUTHORITY, w.variable("db", b"no certificate", SECURITY_DATABASE)),
            Measurement(4, 0x77777777, b"new"),
            (
                f'the firmware variable db was removed: "no certificate"|an event of type 0x77777777 (claims: "new") was added: '
                f"digest {short(b'new')}"
            ),
        ),
    ],
)
def test_sentences(old: Measurement, new: Measurement, sentence: str) -> None:
    """Each kind of event in its words; names that are not measured are claims."""
    assert set(sentences([old], [new])) == set(sentence.split("|"))


def test_data_that_was_not_measured_is_not_believed() -> None:
    """A log that says Secure Boot is on, over a digest that says otherwise."""
    honest = Measurement(7, w.EV_EFI_VARIABLE_DRIVER_CONFIG, w.variable("SecureBoot", b"\1"))
    lie = honest._replace(measured=w.variable("SecureBoot", b"\0"))
    [sentence] = sentences([honest], [lie])
    assert sentence.startswith(
        "an EV_EFI_VARIABLE_DRIVER_CONFIG whose data is not what was measured (claims: SecureBoot (EFI global): "
        "1 bytes 01) took the place of Secure Boot"
    )
    assert "switched" not in sentence
    forged = line("ro quiet")._replace(measured=b"ro quiet init=/bin/sh")
    [sentence] = sentences([line("ro quiet")], [forged])
    assert sentence.startswith(
        'an EV_IPL (claims: "kernel_cmdline: ro quiet") took the place of the kernel command'
    )


def test_a_moved_event_is_a_difference() -> None:
    """Order is part of a PCR's value."""
    assert sentences([grub("a"), grub("b")], [grub("b"), grub("a")]) == [
        'a GRUB command was added: "b"',
        'a GRUB command was removed: "b"',
    ]


def test_pcrs_narrow_it() -> None:
    """Only what the policy looks at."""
    pair = (log(line("a"), file("x", b"1")), log(line("b"), file("x", b"2")))
    assert [change.pcr for change in difference(*pair, "sha256")] == [8, 9]
    assert [change.pcr for change in difference(*pair, "sha256", {9})] == [9]
    [change] = difference(*pair, "sha256", [9])
    assert change.as_json() == {
        "pcr": 9,
        "kind": "replaced",
        "sentence": change.sentence,
        "before": 2,
        "after": 2,
    }


def test_a_bank_that_is_not_there() -> None:
    """Comparing nothing would look like no difference."""
    with pytest.raises(Malformed, match="no sha384 bank"):
        difference(log(line("a")), log(line("a")), "sha384")


@pytest.mark.parametrize("many", [900, 3000])
def test_long_logs_are_compared_in_time(many: int) -> None:
    """A log that aligns badly on purpose (the same few commands again and again) takes seconds at most."""
    old = log(*(grub(f"{n % 7 % 3}") for n in range(many)))
    new = log(*(grub(f"{n % 5 % 3}") for n in range(many)), grub("new"))
    started = time.monotonic()
    changes = difference(old, new, "sha256")
    assert time.monotonic() - started < 60
    assert any(change.sentence == 'a GRUB command was added: "new"' for change in changes)


def test_a_long_log_of_another_order_is_different() -> None:
    """Too long to align, the same events, and still not the same."""
    texts = [grub(str(n)) for n in range(1200)]
    [change] = difference(log(*texts), log(*texts[:-2], texts[-1], texts[-2]), "sha256")
    assert change.kind == "replaced"


measurements = st.builds(
    Measurement,
    st.integers(0, 23),
    st.sampled_from(
        [1, 4, 5, 6, 8, 13, 0x80000001, 0x80000002, 0x80000003, 0x80000006, AUTHORITY, 0x12345678]
    ),
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [b"kernel_cmdline: ro\0", w.tagged(0x8F3B22EC, b"x"), w.variable("SecureBoot", b"\1")]
        ),
    ),
    st.one_of(st.none(), st.binary(max_size=4)),
)
logs = st.lists(measurements, max_size=12)


@given(logs, logs)
def test_differs_exactly_when_the_values_do(old: list[Measurement], new: list[Measurement]) -> None:
    """Empty for the same log, never for logs that lead to other values, one line each, and it never raises."""
    a, b = log(*old), log(*new)
    assert difference(a, a, "sha256") == ()
    changes = difference(a, b, "sha256")
    assert (changes == ()) == (replay(a, "sha256") == replay(b, "sha256"))
    assert all(change.sentence.isprintable() for change in changes)


def words(count: int, kinds: int, step: int = 1, letter: str = "a") -> str:
    return " ".join(f"{letter}{i * step % kinds}" for i in range(count))


#: Pairs of logs as large as they may be (128 KiB), whose comparison an alignment would not end.
HOSTILE = {
    "a few words again and again": ([line(words(20_000, 199))], [line(words(20_000, 199, 7))]),
    "words of one letter": ([line("a b " * 30_000)], [line("b a " * 30_000)]),
    "other words": ([line(words(18_000, 18_000))], [line(words(18_000, 18_000, letter="b"))]),
    "the same words in another order": (
        [line(words(17_999, 17_999))],
        [line(words(17_999, 17_999, 7))],
    ),
    "one word": ([line("a" * 120_000)], [line("b" * 120_000)]),
    "many lines of many words": (
        [line(words(1000, 91, j)) for j in range(1, 30)],
        [line(words(1000, 89, j)) for j in range(2, 31)],
    ),
    "many lines of a few words": (
        [line(f"{words(60, 9)} {j}") for j in range(500)],
        [line(f"{words(60, 8)} {j}") for j in range(500)],
    ),
    "many files under each other's names": (
        [file(f"f{j}", b"a%d" % j) for j in range(999)],
        [file(f"f{998 - j}", b"b%d" % j) for j in range(999)],
    ),
    "many events of a few kinds": (
        [Measurement(4, EV_IPL, b"x", b"%d" % (j % 91)) for j in range(999)],
        [Measurement(4, EV_IPL, b"x", b"%d" % (j * 7 % 91)) for j in range(999)],
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_log_takes_long_to_compare(name: str) -> None:
    """The sender of a log chooses the operator's wait: seconds at most of this thread, where it was minutes."""
    old, new = (log(*measurements) for measurements in HOSTILE[name])
    before = time.thread_time()
    changes = difference(old, new, "sha256")
    assert time.thread_time() - before < 2
    assert changes
    assert max(len(change.sentence) for change in changes) < 6000


@given(
    old=st.lists(st.sampled_from(["quiet", "ro", "root=a", "root=b", "console=1"]), min_size=1, max_size=8),
    new=st.lists(st.sampled_from(["quiet", "ro", "root=a", "root=c", "init=x"]), min_size=1, max_size=8),
)
def test_every_word_that_differs_is_told_once(old: list[str], new: list[str]) -> None:
    """Gains and losses, also under a changed name; nothing that stayed."""
    if " ".join(old) == " ".join(new):
        return
    (sentence,) = sentences([line(" ".join(old))], [line(" ".join(new))])
    told = sentence.replace("(was ", "").replace(")", "").replace(",", "").split()
    if sorted(old) == sorted(new):
        assert "instead of" in sentence
        return
    for word in {*old, *new}:
        assert told.count(word) == abs(old.count(word) - new.count(word)), sentence

"""The signed values that the pin finds in files, and odd files that it passes over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.pin.signed_values.search import Found, jws, search, write

EXTRA, RUNNING = ".extra/tpm2-pcr-signature.json", "run/systemd/tpm2-pcr-signature.json"
#: The limit of a request (docs/protocol.md) without an event log of the largest size.
ROOM = 256 * 1024 - 128 * 1024 * 4 // 3


def entry(**changes: object) -> dict[str, Any]:
    """An entry of a .pcrsig."""
    return {"pcrs": [11], "pkfp": "ab" * 32, "pol": "cd" * 32, "sig": "A" * 342 + "=="} | changes


def test_without_files_nothing_is_sent(tmp_path: Path) -> None:
    """A machine without signed values sends what it always did, and logs nothing."""
    assert search(tmp_path) == Found({}, [])


@pytest.mark.parametrize("place", [EXTRA, RUNNING])
def test_the_bank_of_the_challenge_is_sent_as_it_is(tmp_path: Path, place: str) -> None:
    """Only spaces and the other banks are gone; unknown members of an entry are there."""
    entries = [entry(), entry(ref="initrd", more=[1])]
    write(tmp_path, place, json.dumps({"sha1": [entry()], "sha256": entries, "sha384": [entry()]}, indent=1))
    assert search(tmp_path).members == {"pcrsig": {"sha256": entries}}
    write(tmp_path, place, json.dumps({"sha384": entries}))
    assert search(tmp_path) == Found({}, [])


def test_the_pcrsig_of_the_stub_comes_first(tmp_path: Path) -> None:
    """systemd's copy counts where the stub's own is not there, or not good."""
    write(tmp_path, EXTRA, json.dumps({"sha256": [entry(sig="stub")]}))
    write(tmp_path, RUNNING, json.dumps({"sha256": [entry(sig="copy")]}))
    assert search(tmp_path).members == {"pcrsig": {"sha256": [entry(sig="stub")]}}
    write(tmp_path, EXTRA, "{")
    found = search(tmp_path)
    assert found.members == {"pcrsig": {"sha256": [entry(sig="copy")]}}
    assert found.notes == [f"{tmp_path}/{EXTRA} is skipped: it is not a JSON object with signatures"]


def test_each_bank_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """A server refuses a body of too many members; four banks of twenty signatures are not one."""
    many = [entry(sig=f"{number}") for number in range(20)]
    write(tmp_path, EXTRA, json.dumps(dict.fromkeys(("sha1", "sha256", "sha384", "sha512"), many)))
    assert search(tmp_path).members == {"pcrsig": {"sha256": many}}


def test_a_file_of_two_large_keys_for_all_phases_and_banks_is_read(tmp_path: Path) -> None:
    """RSA of 4096 bits, four phases, the four banks of ukify: 30 KiB, of which one bank is sent."""
    many = [entry(sig=f"{number}".ljust(684, "A")) for number in range(8)]
    contents = json.dumps(dict.fromkeys(("sha1", "sha256", "sha384", "sha512"), many))
    assert len(contents) > 20000
    write(tmp_path, EXTRA, contents)
    assert search(tmp_path) == Found({"pcrsig": {"sha256": many}}, [])


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (b"", "it is empty"),
        (b"\x00" * 10, "it has a NUL byte"),
        (b"[1]\n", "it is not a JSON object with signatures"),
        (b"{}\n", "it is not a JSON object with signatures"),
        (b'{"sha256":[],}\n', "it is not a JSON object with signatures"),
        (b'{"sha256":"\xff"}\n', "it is not a JSON object with signatures"),
        (b'{"sha256":[' + b" " * 70000 + b"]}\n", "it is larger than 65536 bytes"),
        (json.dumps({"sha256": [entry(sig="A" * 20000)]}).encode(), "it has too many signatures"),
        (json.dumps({"sha256": [[]] * 400}).encode(), "it has too many signatures"),
        (b"[" * 5000, "it is not a JSON object with signatures"),
    ],
)
def test_an_odd_pcrsig_is_skipped_with_one_line(tmp_path: Path, contents: bytes, why: str) -> None:
    """The log names the file; nothing of it is sent."""
    write(tmp_path, EXTRA, contents)
    assert search(tmp_path) == Found({}, [f"{tmp_path}/{EXTRA} is skipped: {why}"])


def test_statements_come_from_every_place_nearest_first_and_once(tmp_path: Path) -> None:
    """Of one directory, those for the running kernel come before the others, and those with a high number before low ones."""
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    write(tmp_path, ".extra/a.tang-attest.jws", jws("extra"))
    write(tmp_path, "run/systemd/a.tang-attest.jws", jws("run"))
    for number in (1, 2):
        write(tmp_path, f"etc/clevis-attest/{number}.tang-attest.jws", jws(f"etc {number}"))
    write(tmp_path, f"etc/clevis-attest/0-{release}.tang-attest.jws", jws("etc kernel"))
    write(tmp_path, "etc/clevis-attest/3.tang-attest.jws", jws("extra"))
    write(tmp_path, "etc/clevis-attest/other.jws", jws("another suffix"))
    found = search(tmp_path)
    assert found.statements == [jws(name) for name in ("extra", "run", "etc kernel", "etc 2", "etc 1")]
    assert found.notes == []


def test_statements_of_a_mounted_system_partition_are_found(tmp_path: Path) -> None:
    """In a running system it may be mounted anywhere; other file systems are not looked at."""
    mounts = "/dev/sda1 /boot/efi vfat rw 0 0\n/dev/sda2 /srv ext4 rw 0 0\nx /a\\040b vfat rw 0 0\n"
    write(tmp_path, "proc/mounts", mounts)
    write(tmp_path, "boot/efi/EFI/tang-attest/a.tang-attest.jws", jws("beside"))
    write(tmp_path, "boot/efi/EFI/Linux/a.tang-attest.jws", jws("image"))
    write(tmp_path, "srv/EFI/Linux/a.tang-attest.jws", jws("not a FAT"))
    assert search(tmp_path).statements == [jws("beside"), jws("image")]


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (b"", "it is empty"),
        (b"a.b.c\nd.e.f\n", "it is not one compact JWS"),
        (b"a.b\n", "it is not one compact JWS"),
        (b'a.b.c","x":"\n', "it is not one compact JWS"),
        (b"a.b.c\x00\n", "it has a NUL byte"),
        (b"a.\x1b[2J.c\n", "it is not one compact JWS"),
        (jws("long", 16385).encode(), "it is larger than 16384 bytes"),
        (b"A" * 1000000, "it is larger than 16384 bytes"),
    ],
)
def test_an_odd_statement_is_skipped_with_one_line(tmp_path: Path, contents: bytes, why: str) -> None:
    """A good one beside it is sent."""
    odd = write(tmp_path, "etc/clevis-attest/odd.tang-attest.jws", contents)
    write(tmp_path, "etc/clevis-attest/good.tang-attest.jws", jws("good"))
    found = search(tmp_path)
    assert found.statements == [jws("good")]
    assert found.notes == [f"{odd} is skipped: {why}"]


def test_what_is_no_file_is_skipped(tmp_path: Path) -> None:
    """A pipe would let the unlock wait for ever; a name with control characters does not reach the terminal."""
    directory = tmp_path / "etc/clevis-attest"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "pipe.tang-attest.jws")
    (directory / "folder.tang-attest.jws").mkdir()
    (directory / "nowhere.tang-attest.jws").symlink_to("missing")
    (directory / "a\x1b[2J.tang-attest.jws").symlink_to("/dev/zero")
    notes = search(tmp_path).notes
    assert len(notes) == 4
    assert all(note.endswith("it is not a regular file") for note in notes)
    assert all(note.isprintable() for note in notes)


def test_the_largest_statement_is_sent_and_at_most_eight_are(tmp_path: Path) -> None:
    """More than that is named in the log, once; what is sent leaves room for the largest event log."""
    for number in range(10):
        write(tmp_path, f"etc/clevis-attest/{number}.tang-attest.jws", jws(f"{number}"))
    found = search(tmp_path)
    assert found.statements == [jws(f"{number}") for number in range(9, 1, -1)]
    assert found.notes == ["no more than 8 of the signed statements are sent"]
    for number in range(8):
        write(tmp_path, f".extra/{number}.tang-attest.jws", jws(f"{number}", 16384))
    write(tmp_path, EXTRA, json.dumps({"sha256": [entry(sig="A" * 16000)]}))
    found = search(tmp_path)
    assert found.statements == [jws(f"{number}", 16384) for number in (7, 6, 5)]
    assert found.notes == ["no more than 3 of the signed statements are sent"]
    assert len(json.dumps(found.members)) < ROOM - 8192


def test_a_hundred_odd_files_leave_eight_lines(tmp_path: Path) -> None:
    """The log of an initrd is small."""
    for number in range(100):
        write(tmp_path, f"etc/clevis-attest/{number}.tang-attest.jws", b"odd")
    assert len(search(tmp_path).notes) == 8

"""Statements on the EFI system partition, which the initrd reads without mounting it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.pin.signed_values import fat
from tests.pin.signed_values.search import Found, jws, search

PLACE = "EFI/tang-attest"


def statement(text: str, size: int = 0) -> bytes:
    """A statement's file."""
    return f"{jws(text, size)}\n".encode()


@pytest.mark.parametrize("bits", sorted(fat.SHAPES))
def test_statements_of_a_partition_are_found(tmp_path: Path, bits: int) -> None:
    """In both directories, also with long names, between deleted and large files."""
    image = tmp_path / "image"
    files = {f"EFI/Linux/an image with a long name {number}.efi": bytes(5000) for number in range(20)}
    files |= {
        f"{PLACE}/deleted.tang-attest.jws": statement("deleted"),
        f"{PLACE}/a.TANG-attest.jws": statement("a"),
        f"{PLACE}/readme.txt": b"no statement",
        "EFI/Linux/linux-6.1.0-29-amd64.tang-attest.jws": statement("image", 16384),
        "a.tang-attest.jws": statement("elsewhere"),
    }
    fat.make(image, bits, files)
    fat.remove(image, f"{PLACE}/deleted.tang-attest.jws")
    fat.plug_in(tmp_path, "vda1", image)
    assert search(tmp_path) == Found({"statements": [jws("a"), jws("image", 16384)]}, [])


@pytest.mark.parametrize("bits", sorted(fat.SHAPES))
def test_a_fragmented_statement_is_found(tmp_path: Path, bits: int) -> None:
    """Its clusters lie where smaller files were."""
    image = tmp_path / "image"
    cluster = fat.SHAPES[bits][1] * 512
    fillers = {f"{PLACE}/{number}.bin": bytes(cluster) for number in range(60)}
    fat.make(image, bits, fillers)
    for number in range(0, 60, 2):
        fat.remove(image, f"{PLACE}/{number}.bin")
    fat.add(image, f"{PLACE}/split.tang-attest.jws", statement("split", 16000))
    fat.plug_in(tmp_path, "vda1", image)
    assert search(tmp_path) == Found({"statements": [jws("split", 16000)]}, [])


def test_busybox_is_enough(tmp_path: Path) -> None:
    """An initrd of Debian has its dd and od."""
    image, tools = tmp_path / "image", tmp_path / "bin"
    tools.mkdir()
    for applet in ("dd", "od"):
        (tools / applet).symlink_to("/bin/busybox")
    fat.make(image, 16, {f"{PLACE}/a.tang-attest.jws": statement("a")})
    fat.plug_in(tmp_path, "vda1", image)
    assert search(tmp_path, str(tools)) == Found({"statements": [jws("a")]}, [])


def test_a_running_system_reads_no_partition(tmp_path: Path) -> None:
    """It has the partition mounted where its owner wants it."""
    image = tmp_path / "image"
    fat.make(image, 16, {f"{PLACE}/a.tang-attest.jws": statement("a")})
    fat.plug_in(tmp_path, "vda1", image, initrd=False)
    assert search(tmp_path) == Found({}, [])


def test_odd_statements_of_a_partition_are_skipped_with_one_line(tmp_path: Path) -> None:
    """Too large, empty, with NUL bytes or not a JWS; the good one is sent."""
    image = tmp_path / "image"
    odd = {"large": b"A" * 16387, "empty": b"", "other": b"no JWS", "controls": b"a.\x1b[2J.c\n"}
    files = {f"{PLACE}/{name}.tang-attest.jws": contents for name, contents in odd.items()}
    fat.make(image, 16, files | {f"{PLACE}/z.tang-attest.jws": statement("good")})
    fat.plug_in(tmp_path, "vda1", image)
    found = search(tmp_path)
    assert found.statements == [jws("good")]
    assert sorted(note.split(" is skipped: ")[0] for note in found.notes) == sorted(
        f"/dev/vda1:/{PLACE.lower()}/{name}.tang-attest.jws" for name in odd
    )


def test_what_is_no_fat_is_passed_over(tmp_path: Path) -> None:
    """Noise, an empty partition, a short one, and one whose size is not a number."""
    contents = {"vda1": random.Random(1).randbytes(65536), "vda2": bytes(65536), "vda3": b"x"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        fat.plug_in(tmp_path, name, tmp_path / name)
    (tmp_path / "sys/class/block/vda2/size").write_text("a[$(touch owned)]\n")
    assert search(tmp_path) == Found({}, [])
    assert not Path("owned").exists()


def test_a_chain_that_goes_in_circles_ends(tmp_path: Path) -> None:
    """Every entry of the table points to the same cluster, and every name of a directory to itself."""
    image = tmp_path / "image"
    fat.make(image, 16, {f"{PLACE}/a.tang-attest.jws": statement("a", 9000)})
    data = bytearray(image.read_bytes())
    start = int.from_bytes(data[14:16], "little") * 512
    size = int.from_bytes(data[22:24], "little") * 512
    data[start : start + size] = b"\x02\x00" * (size // 2)
    image.write_bytes(data)
    fat.plug_in(tmp_path, "vda1", image)
    begun = time.monotonic()
    assert search(tmp_path).statements == []
    assert time.monotonic() - begun < 40


@pytest.mark.slow
@pytest.mark.parametrize("bits", sorted(fat.SHAPES))
def test_a_damaged_partition_harms_nothing(tmp_path: Path, bits: int) -> None:
    """Bytes of the boot sector, the tables and the directories are changed at random: the search ends, and is silent or says so."""
    image = tmp_path / "image"
    fat.make(image, bits, {f"{PLACE}/{name}.tang-attest.jws": statement(name) for name in "abc"})
    whole = image.read_bytes()
    used = [at for at in range(0, len(whole), 32) if any(whole[at : at + 32])]
    good = {jws(name) for name in "abc"}
    fat.plug_in(tmp_path, "vda1", image)
    chance = random.Random(bits)
    for _ in range(12):
        data = bytearray(whole)
        for _ in range(6):
            # The boot sector decides most.
            at = chance.choice((chance.randrange(64), chance.choice(used) + chance.randrange(32)))
            data[at] = chance.randrange(256)
        image.write_bytes(data)
        found = search(tmp_path)
        assert len(found.statements) <= 8
        assert all(text in good or "." in text for text in found.statements)
        assert all("is skipped" in note or "took more than" in note for note in found.notes)

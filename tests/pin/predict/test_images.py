"""PE images: the digest that the firmware measures, and bounds for images that nobody built in good faith."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predict import pe

from tests.pin.predict.boots import _CERTIFICATES, _CHECKSUM, _OPTIONAL, authenticode
from tests.pin.predict.boots import pe as build

CONTENTS = st.dictionaries(
    st.sampled_from([".text", ".data", ".linux", ".initrd", ".cmdline"]),
    st.binary(max_size=1500),
    min_size=1,
    max_size=5,
)
SECTIONS = _OPTIONAL + 240


def parse(image: bytes) -> pe.Image:
    """Read from memory."""
    return pe.parse(pe.Window(lambda: io.BytesIO(image), 0, len(image), len(image)))


def digest(image: bytes) -> bytes:
    """Return the Authenticode digest of *image*."""
    return hashlib.sha256(b"".join(parse(image).authenticode())).digest()


@given(CONTENTS)
@settings(deadline=None)
def test_the_digest_covers_all_but_three_fields(sections: dict[str, bytes]) -> None:
    """Checksum, the certificate table's entry, and certificates change nothing; any other byte does."""
    image = build(sections)
    assert digest(image) == hashlib.sha256(authenticode(image)).digest()
    signed = bytearray(image + b"certificate")
    struct.pack_into("<II", signed, _CERTIFICATES, len(image), 11)
    struct.pack_into("<I", signed, _CHECKSUM, 1)
    assert digest(bytes(signed)) == digest(image)
    assert digest(image + b"x") != digest(image)


@given(CONTENTS, st.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_image_is_read_or_refused(sections: dict[str, bytes], data: st.DataObject) -> None:
    """Cut anywhere and overwritten anywhere in its headers: no other exception, and never more than twice the
    file.
    """
    image = bytearray(build(sections))
    for _ in range(data.draw(st.integers(0, 4))):
        image[data.draw(st.integers(0, SECTIONS + 200))] = data.draw(st.integers(0, 255))
    cut = bytes(image[: data.draw(st.integers(0, len(image)))])
    try:
        read = parse(cut)
    except pe.NotAnImage:
        return
    assert sum(map(len, read.authenticode())) <= 2 * len(cut)
    for section in read.sections:
        assert read.content(section).size <= len(cut) + pe.MAX_ZEROS


@given(CONTENTS)
@settings(deadline=None)
def test_a_section_in_memory_ends_in_zeros(sections: dict[str, bytes]) -> None:
    """A larger size in memory is filled with zeros, a smaller one cuts."""
    for change in (0, 700, -1):
        image = bytearray(build(sections))
        for index, content in enumerate(sections.values()):
            size = max(0, len(content) + change)
            struct.pack_into("<I", image, SECTIONS + 40 * index + 8, size)
        read = parse(bytes(image))
        for name, content in sections.items():
            section = read.section(name)
            assert section
            window = read.content(section)
            size = max(0, len(content) + change)
            assert window.read(0, size) == content[:size] + bytes(size - len(content[:size]))


@pytest.mark.parametrize("size", [0, 2, 64, 200, 600, 1023])
def test_an_image_cut_in_its_headers_is_none(size: int) -> None:
    """Refused."""
    with pytest.raises(pe.NotAnImage):
        parse(build({".text": b"code" * 100})[:size])


def field(offset: int, value: int, kind: str = "<I") -> Callable[[bytearray], None]:
    """Overwrite a number in the headers."""
    return lambda image: struct.pack_into(kind, image, offset, value)


@pytest.mark.parametrize(
    "change",
    [
        field(60, 0xFFFFFFFF),
        field(60, 4090),
        field(0x40 + 6, 0, "<H"),
        field(0x40 + 6, 65535, "<H"),
        field(0x40 + 20, 65535, "<H"),
        field(_OPTIONAL, 0x107, "<H"),
        field(_OPTIONAL + 60, 0xFFFFFFFF),
        field(_OPTIONAL + 60, 0),
        field(_OPTIONAL + 108, 4),
        field(_CERTIFICATES + 4, 0xFFFFFFFF),
        field(SECTIONS + 8, 0xFFFFFFFF),
        field(SECTIONS + 16, 0xFFFFFFFF),
        field(SECTIONS + 20, 0xFFFFFFFF),
    ],
)
def test_impossible_headers_are_refused(change: Callable[[bytearray], None]) -> None:
    """Numbers that lead out of the file, or to more zeros than a section has."""
    image = bytearray(build({".text": b"code" * 100, ".data": b"data"}))
    change(image)
    with pytest.raises(pe.NotAnImage):
        parse(bytes(image))


def test_sections_that_overlap_are_not_hashed_again_and_again() -> None:
    """Sixty sections over the same bytes would cost sixty times the file."""
    image = bytearray(build({f".s{n}": b"x" * 100_000 if not n else b"" for n in range(16)}))
    for index in range(16):
        struct.pack_into("<II", image, SECTIONS + 40 * index + 16, 100_352, 0x400)
    begun = time.process_time()
    with pytest.raises(pe.NotAnImage):
        parse(bytes(image))
    assert time.process_time() - begun < 1


@pytest.mark.slow
def test_the_authenticode_digest_is_that_of_a_signing_tool(tmp_path: Path) -> None:
    """osslsigncode signs an image: the digest in the signature is ours, of the signed and of the unsigned
    one.
    """
    image, signed = tmp_path / "image.efi", tmp_path / "signed.efi"
    image.write_bytes(build({".text": b"code" * 300, ".data": b"data", ".reloc": b""}))
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    signing = ["osslsigncode", "sign", "-h", "sha256", "-certs", str(certificate), "-key", str(key)]
    subprocess.run([*signing, "-in", image, "-out", signed], check=True, capture_output=True)
    told = subprocess.run(
        ["osslsigncode", "verify", "-in", signed], capture_output=True, text=True, check=False
    )
    ours = {digest(file.read_bytes()).hex().upper() for file in (image, signed)}
    assert len(ours) == 1
    assert f"Calculated message digest : {ours.pop()}" in told.stdout

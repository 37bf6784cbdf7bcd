"""tpm2-tools' files, read strictly."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.checkquote.tools_files import (
    MAX_PCR_FILE,
    parse_pcr_file,
    parse_signature,
    public_area,
)
from tang_attest.protocol.tpm import parse_ak
from tests.cli.offline.quote_vectors import stored

VECTORS = {vector.name: vector.files for vector in stored()}
FILE = VECTORS["p256"]["pcrs"]  # sha256:0,2,4,7: one selection, one list of 4 digests
SIGNED = (("sha256", (0, 2, 4, 7)),)
LISTS = 136


def test_serialized() -> None:
    """The claimed selection, and the values in order."""
    file = parse_pcr_file(FILE, SIGNED)
    assert file.claimed == SIGNED
    assert len(file.values) == 4 * 32
    assert file.values[-32:].hex() == "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"


def test_three_lists() -> None:
    """More than 8 PCRs go on in the next list."""
    file = parse_pcr_file(VECTORS["all-pcrs"]["pcrs"], (("sha256", tuple(range(24))),))
    assert file.claimed == (("sha256", tuple(range(24))),)
    assert len(file.values) == 24 * 32


def test_bare_values() -> None:
    """Bare values claim no selection."""
    assert parse_pcr_file(bytes(128), SIGNED).claimed is None


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("count", range(1, 25))
def test_lengths_are_distinct(size: int, count: int) -> None:
    """Bare values of one bank are never as long as a serialized file, so the length tells which it is."""
    assert all(size * count != LISTS + lists * 532 for lists in range(1, 33))


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"\0\0\0\0", "0 selections"),
        (0, b"\x11\0\0\0", "17 selections"),
        (0, b"\0\0\0\1", "16777216 selections"),
        (4 + 2, b"\5", "bitmap of 5 bytes"),
        (132, b"\0\0\0\0", "says it has 0 lists"),
        (132, b"\2\0\0\0", "says it has 2 lists"),
        (LISTS, b"\0\0\0\0", "list of 0 digests"),
        (LISTS, b"\x09\0\0\0", "list of 9 digests"),
        (LISTS, b"\3\0\0\0", "names 4 PCRs and has 3 values"),
        (LISTS + 4, b"\x41\0", "digest of 65 bytes"),
        (LISTS + 4, b"\x1f\0", "value of 31 bytes, not 32"),
        (4 + 3, b"\x05", "names 2 PCRs and has 4 values"),
    ],
)
def test_broken(at: int, data: bytes, message: str) -> None:
    """Every count and size is checked."""
    with pytest.raises(Malformed, match=message):
        parse_pcr_file(FILE[:at] + data + FILE[at + len(data) :], SIGNED)


@given(st.binary(max_size=400), st.integers(0, len(FILE)))
def test_anything(data: bytes, at: int) -> None:
    """Any bytes are read or refused; nothing else escapes."""
    key = parse_ak(VECTORS["p256"]["public"])
    for file in (data, (FILE[:at] + data + FILE[at + len(data) :])[: len(FILE)]):
        with suppress(Malformed):
            parse_pcr_file(file, SIGNED)
        with suppress(Malformed):
            parse_signature(file, key)
        with suppress(Malformed):
            public_area(file)


def test_limit() -> None:
    """The longest file that tpm2-tools can write is within the limit."""
    assert MAX_PCR_FILE == LISTS + 32 * 532

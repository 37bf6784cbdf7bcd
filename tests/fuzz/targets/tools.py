"""Files that tpm2-tools write, and PCR values as people have them; what ``checkquote`` and ``policy`` read."""

from __future__ import annotations

from collections.abc import Iterator

from tang_attest.protocol import tpm
from tang_attest.protocol.checkquote import tools_files
from tang_attest.protocol.checkquote.check import Question, check_quote
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.values.pcr_file import parse_values
from tests.fuzz.target import Parser, Target
from tests.fuzz.vectors import quotes

_SELECTION = Selection.parse("sha256:0,4,7")
_SIGNED: tools_files.Banks = (("sha256", (0, 1, 2, 4, 7)),)
_VECTORS = list(quotes())


def values(data: bytes) -> None:
    """Output of ``tpm2 pcrread``, or JSON: each PCR that was asked for, and no other."""
    found = parse_values(data, _SELECTION)
    assert set(found) == set(_SELECTION.pcrs)
    assert {len(value) for value in found.values()} == {32}
    text = "sha256:\n" + "".join(f"  {pcr}: 0x{value.hex()}\n" for pcr, value in found.items())
    assert parse_values(text.encode(), _SELECTION) == found


def selection(data: bytes) -> None:
    """A selection has one spelling, which is read as the same."""
    read = Selection.parse(data.decode("utf-8", "replace"))
    assert Selection.parse(str(read)) == read


def public(data: bytes) -> None:
    """A public key in any of its forms."""
    area = tools_files.public_area(data)
    key = tpm.ak_from_pem(data) if area is None else tpm.parse_ak(area)
    assert key.spki


def pcr_file(data: bytes) -> None:
    """A PCR file of either form."""
    read = tools_files.parse_pcr_file(data, _SIGNED)
    assert read.claimed is not None or len(read.values) == 5 * 32


def question(data: bytes) -> None:
    """A real quote of which one file was changed is never verified with another message."""
    vector = _VECTORS[data[0] % len(_VECTORS)] if data else _VECTORS[0]
    changed = ("public", "message", "signature", "pcrs")[data[1] % 4] if len(data) > 1 else "pcrs"
    if vector.get(changed) == data[2:]:
        return
    files = {**vector, changed: data[2:]}
    verdict = check_quote(
        Question(files["public"], files["message"], files["signature"], b"", pcr_file=files.get("pcrs"))
    )
    assert not (verdict.verified and changed == "message"), "a changed message is verified"


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """The vectors' files."""
    lines = "".join(f"    {pcr:<2}: 0x{bytes([pcr]).hex() * 32}\n" for pcr in range(24))
    yield values, f"  sha256:\n{lines}".encode()
    yield values, ('{"0": "' + "00" * 32 + '", "4": "' + "04" * 32 + '", "7": "' + "07" * 32 + '"}').encode()
    yield selection, b"sha256:0,2,4,7"
    yield pcr_file, bytes(5 * 32)
    for number, vector in enumerate(_VECTORS):
        yield public, vector["public"]
        for index, name in enumerate(("public", "message", "signature", "pcrs")):
            if name in vector:
                yield question, bytes([number, index]) + vector[name]
        if "pcrs" in vector:
            yield pcr_file, vector["pcrs"]


TARGET = Target([values, selection, public, pcr_file, question], seeds)

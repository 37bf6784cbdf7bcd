"""The texts of a cap, as a running machine hands them over."""

from __future__ import annotations

from collections.abc import Iterator

from tang_attest.protocol.cap import HEADER, OpenedBy, cap_value, parse, read, replay
from tests.fuzz.target import Parser, Target

_ONE = b"0f6e1c2d-1111-4222-8333-444455556666"
_TWO = b"1a2b3c4d-1111-4222-8333-444455556666"


def texts(data: bytes) -> None:
    """Texts are read exactly as they came, and tell of the value that they lead to."""
    read_texts = parse(data)
    assert b"".join(text.raw for text in read_texts) == data
    for bank in ("sha256", "sha384", "sha512"):
        found = read(data, bank, replay((text.raw for text in read_texts), bank))
        assert found.explained
        assert found.attested == (bool(found.volumes) and set(found.volumes.values()) == {OpenedBy.ATTESTED})
        if reason := found.obstacle():
            assert len(reason.sentence) < 4096


def another(data: bytes) -> None:
    """Texts tell nothing of a value that they do not lead to."""
    honest = HEADER + b"attested " + _ONE + b"\n"
    for value in (replay((honest,), "sha256"), cap_value("sha256"), bytes(32)):
        assert data == honest or not read(data, "sha256", value).volumes


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """One text, several, and none of a volume."""
    one = HEADER + b"attested " + _ONE + b"\n"
    for data in (HEADER, one, one + b"passphrase " + _TWO + b"\n", HEADER + one + one, one[:-1]):
        yield texts, data
        yield another, data


TARGET = Target([texts, another], seeds, max_length=9000)

"""Signed reference values: `.pcrsig`, statements, and keys of signers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tang_attest.errors import Reason
from tang_attest.protocol.signed_values import keys, pcrsig, statement
from tang_attest.protocol.signed_values.examine import Brought, Quoted, examine
from tang_attest.protocol.signed_values.signer import Signer, Signers
from tang_attest.protocol.signed_values.statement import ValueStatement
from tests.fuzz.target import Parser, Target
from tests.protocol.signed_values import signing

_NOW: Final = datetime(2026, 11, 27, 12, tzinfo=UTC)
_VALUES: Final = {4: b"\x04" * 32, 9: b"\x09" * 32, 11: b"\x0b" * 32}
_PIPELINE: Final = ec.generate_private_key(ec.SECP256R1())
_VENDOR: Final = rsa.generate_private_key(65537, 2048)
_SIGNERS: Final = Signers(
    (
        Signer(name="p", key=signing.public_der(_PIPELINE), pcrs=(4, 9), added_at=_NOW, added_by="x"),
        Signer(name="v", key=signing.public_der(_VENDOR), pcrs=(11,), added_at=_NOW, added_by="x"),
    )
)
_QUOTED: Final = Quoted("p", "sha256", _VALUES, _NOW)
_SIGNED: Final = signing.signed(_PIPELINE, {4: _VALUES[4], 9: _VALUES[9]})
_PCRSIG: Final = signing.pcrsig(_VENDOR, _VALUES[11])


def member(data: bytes) -> None:
    """Any member: nothing is raised, and only what the keys signed counts."""
    found = examine(_SIGNERS, Brought(json.loads(data)), _QUOTED)
    assert all(isinstance(reason, Reason) for reason in found.reasons)
    for state in found.states:
        assert all(_VALUES[pcr] == value for pcr, value in state.values.items())
        assert set(state.values) <= ({11} if state.signer == "v" else {4, 9})


def entries(data: bytes) -> None:
    """Any `.pcrsig`: a key that vouches is the vendor's, and there is one of keys and obstacle."""
    found = pcrsig.examine(json.loads(data), _VALUES[11], [signing.public_der(_VENDOR)])
    assert bool(found.keys) != (found.obstacle is not None)


def section(data: bytes) -> None:
    """Any file as a `.pcrsig`, for people: there is an entry, and what the vendor signed is among them."""
    found = pcrsig.parse(data)
    assert found
    assert set(pcrsig.signed_by(signing.public_der(_VENDOR), found)) <= set(found)


def compact(data: bytes) -> None:
    """Any text as a statement: what is read is written as the same, and what verifies is what was signed."""
    text = data.decode("latin-1")
    _, made = statement.inspect(text)
    assert isinstance(made, ValueStatement)
    assert statement.verify(text, signing.public_der(_PIPELINE)).payload() == made.payload()
    assert made.not_after - made.not_before > timedelta(0)


def key(data: bytes) -> None:
    """Any file as a key: one that is read is good enough."""
    keys.form_of(keys.load_key(keys.read_key(data)))


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Honest ones of each."""
    yield member, json.dumps({"pcrsig": _PCRSIG, "statements": [_SIGNED]}).encode()
    yield entries, json.dumps(_PCRSIG).encode()
    yield entries, json.dumps({"sha256": [signing.entry(_VENDOR, _VALUES[11], "initrd")]}).encode()
    yield section, json.dumps(_PCRSIG).encode()
    yield compact, _SIGNED.encode()
    for private in (_PIPELINE, _VENDOR):
        yield key, signing.public_pem(private)


TARGET = Target(
    [member, entries, section, compact, key], seeds, max_length=4096, raises=(ValueError, RecursionError)
)

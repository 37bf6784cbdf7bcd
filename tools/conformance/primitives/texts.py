"""The texts that are hashed or extended: qualifying data, activation proof, and the cap."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from .encoding import b64u

#: The first line of each text of a cap, and all that a boot without an open volume extends.
CAP_HEADER = b"tang-attest/v1 cap\n"
MAX_CAP_TEXT = 1024
MAX_CAP_TEXTS = 8192

_CAP_LINE = re.compile(
    rb"(attested|passphrase) ([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\n"
)


def _digest(*lines: str) -> bytes:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).digest()


def unlock_data(nonce: str, kid: str, x_thumbprint: str) -> bytes:
    """Return the qualifying data of an unlock (3.2): 32 bytes."""
    return _digest("tang-attest/v1 unlock", nonce, kid, x_thumbprint)


def activation_proof(nonce: str, secret: bytes) -> str:
    """Return the proof of an activation (4.2): hex."""
    return _digest("tang-attest/v1 activate", nonce, b64u(secret)).hex()


def enroll_data(nonce: str, name: str, proof: str) -> bytes:
    """Return the qualifying data of the first quote (4.2): 32 bytes."""
    return _digest("tang-attest/v1 enroll", nonce, name, proof)


def announce_data(nonce: str, kid: str, values: bytes, label: str) -> bytes:
    """Return the qualifying data of an announcement (9): 32 bytes."""
    return _digest("tang-attest/v1 announce", nonce, kid, hashlib.sha256(values).hexdigest(), label)


def verify_data(nonce: str, kid: str) -> bytes:
    """Return the qualifying data of a round (10.2): 32 bytes."""
    return _digest("tang-attest/v1 verify", nonce, kid)


def extend(bank: str, value: bytes, event: bytes) -> bytes:
    """Return a PCR's value after TPM2_PCR_Event of *event* (TPM 2.0 part 3)."""
    return hashlib.new(bank, value + hashlib.new(bank, event).digest()).digest()


def cap_replay(texts: Iterable[bytes], bank: str) -> bytes:
    """Return the cap PCR of *bank* after *texts*, from zero."""
    value = bytes(hashlib.new(bank).digest_size)
    for text in texts:
        value = extend(bank, value, text)
    return value


def cap_texts(data: bytes) -> list[bytes]:
    """Return the texts in *data*, one after the other.  Raises ValueError for anything that is not the grammar."""
    if len(data) > MAX_CAP_TEXTS or not data.startswith(CAP_HEADER) or not data.endswith(b"\n"):
        raise ValueError("no texts of a cap")
    texts = [CAP_HEADER + part for part in data.split(CAP_HEADER)[1:]]
    for text in texts:
        lines = text.removeprefix(CAP_HEADER).splitlines(keepends=True)
        found = [_CAP_LINE.fullmatch(line) for line in lines]
        uuids = [match[2] for match in found if match]
        if len(uuids) != len(lines) or uuids != sorted(uuids) or len(text) > MAX_CAP_TEXT:
            raise ValueError("a line, its order or its text's size is not the grammar")
    return texts

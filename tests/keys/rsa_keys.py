"""RSA keys for tests, lent instead of made: a key takes as long to make as everything else that a test does.

A key that a test drew is lent again to the next test.  A key that a fixture of a wider scope drew stays with it, so
no two machines of one server share a key.

Processes that run the tests of one session together make each key once: the first that needs its n-th key leaves it
for the n-th of the others, in the session's directory.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

#: Bits -> the keys that nobody has.
_free: defaultdict[int, list[rsa.RSAPrivateKey]] = defaultdict(list)
#: The keys that were drawn since the running test began.
_drawn: list[rsa.RSAPrivateKey] = []
#: Bits -> the number of keys that this process has.
_had: defaultdict[int, int] = defaultdict(int)
#: The directory of the session's keys, if other processes run its tests too.
_shared: list[Path] = []


def share(directory: Path) -> None:
    """Take keys of other processes from *directory*, and leave those of this one there."""
    _shared[:] = [directory]


def draw(bits: int) -> rsa.RSAPrivateKey:
    """Return a key of *bits* that nobody else has until the running test ends."""
    key = _free[bits].pop() if _free[bits] else _another(bits)
    _drawn.append(key)
    return key


def _another(bits: int) -> rsa.RSAPrivateKey:
    """Return a key that this process has not had."""
    _had[bits] += 1
    if not _shared:
        return rsa.generate_private_key(65537, bits)
    file = _shared[0] / f"rsa-{bits}-{_had[bits]}.der"
    if file.exists():
        key = load_der_private_key(file.read_bytes(), None, unsafe_skip_rsa_key_validation=True)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key
    key = rsa.generate_private_key(65537, bits)
    whole = file.with_name(f"{file.name}.{os.getpid()}")
    whole.write_bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    whole.replace(file)
    return key


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """Take back, at the end of the block, the keys that were drawn in it."""
    _drawn.clear()
    yield
    for key in _drawn:
        _free[key.key_size].append(key)
    _drawn.clear()

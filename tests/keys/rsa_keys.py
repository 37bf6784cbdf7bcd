"""RSA keys for tests, lent instead of made: a key takes as long to make as everything else that a test does.

A key that a test drew is lent again to the next test.  A key that a fixture of a wider scope drew stays with it, so
no two machines of one server share a key.  Keys are made in this process and end with it.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric import rsa

#: Bits -> the keys that nobody has.
_free: defaultdict[int, list[rsa.RSAPrivateKey]] = defaultdict(list)
#: The keys that were drawn since the running test began.
_drawn: list[rsa.RSAPrivateKey] = []


def draw(bits: int) -> rsa.RSAPrivateKey:
    """Return a key of *bits* that nobody else has until the running test ends."""
    key = _free[bits].pop() if _free[bits] else rsa.generate_private_key(65537, bits)
    _drawn.append(key)
    return key


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """Take back, at the end of the block, the keys that were drawn in it."""
    _drawn.clear()
    yield
    for key in _drawn:
        _free[key.key_size].append(key)
    _drawn.clear()

"""Base64url without padding (RFC 4648, section 5; RFC 7515, section 2): one text for each value."""

from __future__ import annotations

import binascii
from typing import Final

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


def b64u(data: bytes) -> str:
    """*data* as text."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def unb64u(text: str) -> bytes:
    """The bytes of *text*.

    Raises :class:`ValueError` for any other spelling: padding, characters outside the alphabet (the library's
    decoder passes over them), stray bits in the last character.
    """
    data = binascii.a2b_base64(text.encode().translate(_FROM_URL) + b"=" * (-len(text) % 4))
    if b64u(data) != text:
        raise ValueError("not base64url without padding")
    return data

"""Base64url without padding (RFC 4648, section 5; RFC 7515, section 2): one text for each value."""

from __future__ import annotations

import base64


def b64u(data: bytes) -> str:
    """*data* as text."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    """The bytes of *text*.

    Raises :class:`ValueError` for any other spelling: padding, characters outside the alphabet (the library's
    decoder passes over them), stray bits in the last character.
    """
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64u(data) != text:
        raise ValueError("not base64url without padding")
    return data

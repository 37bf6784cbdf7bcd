"""Encodings of section 1: base64url, canonical JSON, and thumbprints."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


def b64u(data: bytes) -> str:
    """Return *data* in base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64u(text: str) -> bytes:
    """Return the bytes of *text*.  Raises ValueError for padding, other characters, and loose last bits."""
    if not _ALPHABET.fullmatch(text):
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64u(data) != text:
        raise ValueError("not the one spelling of its bytes")
    return data


def compact(value: object) -> bytes:
    """Return compact JSON with sorted members."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """Return the SHA-256 thumbprint of an EC key (RFC 7638): 43 characters."""
    return b64u(hashlib.sha256(compact({name: jwk[name] for name in ("crv", "kty", "x", "y")})).digest())

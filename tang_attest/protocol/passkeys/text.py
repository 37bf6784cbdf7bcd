"""The text that an operator signs: JSON that says what is done, by whom, where and when.

    {
     "console": "https://console.example",
     "nonce": "...",                      16 random bytes of the server, base64url
     "operator": "alice",
     "subject": {"act": "resume", "device": "pi-b"},
     "tang-attest": "signed act 1",
     "time": "2026-11-27T10:20:00+00:00"
    }

Members are sorted, one a line, with one space of indentation for each level, in ASCII, so that a value has
one text.  The challenge of the assertion is the SHA-256 of its bytes.  Without nonce and time the same act
would have the same challenge, and an old assertion would pass for it: synced passkeys count nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

FORM: Final = "signed act 1"
#: The most characters of a text.
MAX_TEXT: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ActText:
    """The members of a text; ``console`` is an origin, ``subject`` JSON-compatible."""

    console: str
    operator: str
    subject: Mapping[str, Any]
    nonce: str
    time: datetime

    def dump(self) -> str:
        """Return the text."""
        return _dump(
            {
                "tang-attest": FORM,
                "console": self.console,
                "operator": self.operator,
                "subject": self.subject,
                "nonce": self.nonce,
                "time": self.time.isoformat(timespec="microseconds"),
            }
        )

    @property
    def rp_id(self) -> str:
        """The RP ID of the console's passkeys."""
        return urlsplit(self.console).hostname or ""


def read_text(text: str) -> ActText:
    """Return the members of *text*.  Raises :class:`ValueError` unless it is the one text of its members."""
    if len(text) > MAX_TEXT:
        raise ValueError("the text is too long")
    try:
        members = json.loads(text)
        known = ActText(
            console=str(members["console"]),
            operator=str(members["operator"]),
            subject=dict(members["subject"]),
            nonce=str(members["nonce"]),
            time=datetime.fromisoformat(members["time"]),
        )
        same = known.dump() == text
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("the text is not that of an act") from error
    if not same:
        raise ValueError("the text is not that of an act")
    return known


def challenge_of(text: str) -> bytes:
    """Return the challenge of an assertion that signs *text*: 32 bytes."""
    return hashlib.sha256(text.encode("ascii")).digest()


def subject_digest(subject: Mapping[str, Any]) -> bytes:
    """Return the digest of what is done, the same for each operator who signs it: 32 bytes."""
    return hashlib.sha256(_dump(subject).encode("ascii")).digest()


def values_digest(values: Mapping[str, str]) -> str:
    """Return the SHA-256 (hex) of PCR values in hex by PCR number, as the audit record has them."""
    lines = "".join(
        f"{int(pcr)} {value}\n" for pcr, value in sorted(values.items(), key=lambda at: int(at[0]))
    )
    return hashlib.sha256(lines.encode("ascii")).hexdigest()


def _dump(value: object) -> str:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True)

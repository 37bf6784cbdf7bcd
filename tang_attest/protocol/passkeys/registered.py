"""Passkeys in the audit record: each signs from its registration entry to the entry that revokes it.

The database has the public keys that verify signatures.  A person with the kek can write a row there; the
record then has no registration of it, or one under an entry that everybody sees.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from tang_attest.errors import Reason
from tang_attest.protocol.values.base64url import b64u, unb64u

REGISTERED: Final = "operator register"
#: Entries that make a link, and those that revoke the passkeys of before.
_LINKS: Final = frozenset({"operator add", "operator reset"})
_REVOKED: Final = frozenset({"operator reset", "operator remove"})
EVENTS: Final = frozenset({REGISTERED}) | _LINKS | _REVOKED
#: The longest from a link to its registration: its life, and the clocks' difference.
_LINK_AGE: Final = timedelta(minutes=17)
#: The number of an entry in an archive that was not read: below that of every other.
_UNREAD: Final = -1


@dataclass(frozen=True, slots=True)
class SignerKey:
    """A passkey as its row has it; ``public_key`` is a COSE_Key, authenticated by the row's seal."""

    operator: str
    public_key: bytes
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Registration:
    entry: int
    at: datetime
    operator: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class _Use:
    """A signature of the passkey *credential* in an entry; *nonce* is that of the text that was signed."""

    entry: int
    event: str
    actor: str
    credential: bytes
    nonce: str


@dataclass(slots=True)
class Registrations:
    """Notes of entries in any order; :meth:`findings` compares them once every entry was looked at."""

    _made: dict[bytes, list[_Registration]] = field(default_factory=dict)
    #: Numbers of entries by the operator's name.
    _links: dict[str, list[int]] = field(default_factory=dict)
    _revoked: dict[str, list[tuple[int, datetime]]] = field(default_factory=dict)
    _uses: list[_Use] = field(default_factory=list)

    def copy(self) -> Registrations:
        """Return notes that go on after these."""
        return Registrations(
            {credential: list(made) for credential, made in self._made.items()},
            {name: list(links) for name, links in self._links.items()},
            {name: list(entries) for name, entries in self._revoked.items()},
            list(self._uses),
        )

    def note(self, entry: Mapping[str, Any], at: datetime, details: Mapping[str, Any]) -> None:
        """Note an entry of :data:`EVENTS`; one whose details cannot be read registers nothing."""
        number, name = entry["id"], details.get("name")
        if entry["event"] == REGISTERED:
            try:
                credential = unb64u(str(details["credential"]))
                key = unb64u(str(details["public_key"]))
            except (KeyError, ValueError):
                return
            operator = str(entry["actor"]).partition(":")[2]
            self._made.setdefault(credential, []).append(_Registration(number, at, operator, key))
            return
        if entry["event"] in _LINKS:
            self._links.setdefault(str(name), []).append(number)
        if entry["event"] in _REVOKED:
            self._revoked.setdefault(str(name), []).append((number, at))

    def use(self, entry: Mapping[str, Any], credential: bytes, nonce: str) -> None:
        """Note a signature that holds."""
        self._uses.append(_Use(entry["id"], str(entry["event"]), str(entry["actor"]), credential, nonce))

    def findings(self, keys: Mapping[bytes, SignerKey], unread: datetime | None) -> Iterator[Reason]:
        """Yield what contradicts the record: rows of passkeys, registrations, and signatures.

        *keys* are the rows by credential id.  Entries up to *unread* were not looked at, because they are in
        archives elsewhere: passkeys and links of that time are taken as the database has them.
        """
        for credential, key in keys.items():
            if (fault := self._row_fault(credential, key, unread)) is not None:
                sentence = f"The passkey {_shown(credential)} of '{key.operator}' {fault}."
                row = (("table", "passkey"), ("row", b64u(credential)))
                yield Reason("registry-tampered", sentence, row)
        for made in sorted(itertools.chain.from_iterable(self._made.values()), key=lambda one: one.entry):
            if not self._has_link(made, unread):
                actor = f"console:{made.operator}"
                sentence = f"Entry {made.entry}, '{REGISTERED}' by {actor}: no link was made for it."
                yield Reason("act-forged", sentence, (("entry", made.entry), ("actor", actor)))
        begun: dict[str, int] = {}
        for use in self._uses:
            begun[use.nonce] = min(use.entry, begun.get(use.nonce, use.entry))
        for use in self._uses:
            if (fault := self._use_fault(use, begun[use.nonce], keys[use.credential], unread)) is not None:
                sentence = f"Entry {use.entry}, '{use.event}' by {use.actor}: {fault}."
                yield Reason("act-forged", sentence, (("entry", use.entry), ("actor", use.actor)))

    def _registration(
        self, credential: bytes, key: SignerKey, unread: datetime | None
    ) -> _Registration | None:
        """Return the entry that registers *key* as its row has it; of one that was not read, the row counts."""
        for made in self._made.get(credential, ()):
            if made.operator == key.operator and hmac.compare_digest(made.public_key, key.public_key):
                return made
        if _is_before(key.created_at, unread):
            return _Registration(_UNREAD, key.created_at, key.operator, key.public_key)
        return None

    def _row_fault(self, credential: bytes, key: SignerKey, unread: datetime | None) -> str | None:
        made = self._registration(credential, key, unread)
        if made is None:
            return "is not the one that an entry registers"
        if key.revoked_at is None and self._revocation(made) is not None:
            return "was revoked, and its row is not"
        return None

    def _revocation(self, made: _Registration) -> int | None:
        """Return the first entry that revokes *made*; one that was not read is compared by its time.

        Its number is not known, and an archive of before it may have been read.
        """
        unread = made.entry == _UNREAD
        return min(
            (
                number
                for number, at in self._revoked.get(made.operator, ())
                if (at > made.at if unread else number > made.entry)
            ),
            default=None,
        )

    def _has_link(self, made: _Registration, unread: datetime | None) -> bool:
        """Return True if a link was made for *made*, and used for no other registration."""
        link = max(
            (number for number in self._links.get(made.operator, ()) if number < made.entry), default=None
        )
        every = itertools.chain.from_iterable(self._made.values())
        if link is not None and not any(
            each.operator == made.operator and link < each.entry < made.entry for each in every
        ):
            return True
        return _is_before(made.at - _LINK_AGE, unread)  # the link may be in an archive that was not read

    def _use_fault(self, use: _Use, begun: int, key: SignerKey, unread: datetime | None) -> str | None:
        """Return the fault of *use*, whose signature is first in entry *begun*.

        An approval of several boots has several entries, and a first operator's signature waits: the passkey may be
        revoked meanwhile.
        """
        made = self._registration(use.credential, key, unread)
        if made is None:
            return "no entry registers the passkey that signed it"
        if made.entry > use.entry:
            return "the passkey that signed it was registered later"
        revoked = self._revocation(made)
        late = revoked is not None and revoked < begun
        return "the passkey that signed it was revoked before" if late else None


def _is_before(at: datetime, unread: datetime | None) -> bool:
    return unread is not None and at <= unread


def _shown(credential: bytes) -> str:
    return hashlib.sha256(credential).hexdigest()[:16]

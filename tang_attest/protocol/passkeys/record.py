"""Signatures in the audit record: each entry of a signed act is what its operators signed, once, with passkeys
that the record registers (registered.py).

Not checked here: that an operator signed at all what an operator at the server did (``operator:NAME``).  A
person who has the kek can add such entries; they cannot add one of ``console:NAME``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tang_attest.errors import Reason, Refused, TangAttestError
from tang_attest.protocol.audit_chain import COLUMNS, Row
from tang_attest.protocol.passkeys.assertion import Assertion
from tang_attest.protocol.passkeys.registered import EVENTS as OF_PASSKEYS
from tang_attest.protocol.passkeys.registered import REGISTERED, Registrations, SignerKey
from tang_attest.protocol.passkeys.text import (
    ActText,
    challenge_of,
    read_text,
    subject_digest,
    values_digest,
)
from tang_attest.protocol.values.base64url import unb64u

#: The member of an entry's details with its signatures, and the beginning of a console operator's actor.
SIGNED: Final = "signed"
CONSOLE: Final = "console:"
#: An entry that keeps a signature until other operators sign.
WAITING: Final = "approval sign"
#: Events of entries by the act that was signed.
EVENTS: Final[Mapping[str, frozenset[str]]] = {
    "approve": frozenset({"policy state add", "policy state approve"}),
    "approve-announced": frozenset({"policy state approve"}),
    "reinstate": frozenset({"policy state restore"}),
    "resume": frozenset({"device resume"}),
    "remove": frozenset({"device remove"}),
    "allow": frozenset({"device allow"}),
    "token": frozenset({"token create"}),
    "trust-predictions": frozenset({"policy trust-predictions"}),
}
#: Events that a console operator has to sign.
TO_BE_SIGNED: Final = frozenset({WAITING}).union(*EVENTS.values())
#: The longest from a text to its entry: that of a request, that of a waiting approval, and the clocks' difference.
_LAST_AGE: Final = timedelta(minutes=7)
_FIRST_AGE: Final = timedelta(days=1, minutes=7)
_SKEW: Final = timedelta(minutes=2)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class SignatureCheck:
    """Looks at entries in their order; *keys* are all passkeys by credential id, revoked ones too.

    *before* looked at the entries before these, in the archives with the heads *read*.
    """

    def __init__(
        self,
        keys: Mapping[bytes, SignerKey],
        before: SignatureCheck | None = None,
        read: Collection[str] = (),
    ) -> None:
        self._keys = keys
        self.read: Final = frozenset(read)
        self.registrations: Registrations = before.registrations.copy() if before else Registrations()
        #: The first entry of each signature, by its nonce, its being the first of several, and the device.
        self.seen: dict[tuple[str, bool, str | None], int] = dict(before.seen) if before else {}
        #: Entries with signatures that hold.
        self.good: int = before.good if before else 0

    def look(self, row: Row) -> Reason | None:
        """Return the fault of an entry, as its columns hold it, or ``None``."""
        entry = dict(zip(COLUMNS, row, strict=False))
        if len(entry) < len(COLUMNS):  # a line of an archive, whose seal does not hold either
            return None
        for name in ("event", "actor", "device"):
            entry[name] = entry[name] if isinstance(entry[name], str) else None
        actor = entry["actor"] or ""
        if entry["event"] in OF_PASSKEYS:
            self._note(entry, actor)
        to_be_signed = actor.startswith(CONSOLE) and entry["event"] in TO_BE_SIGNED
        if not to_be_signed and not _may_be_signed(entry["details"]):
            return None  # most entries: nothing is parsed for them
        details = _details(entry["details"])
        if not to_be_signed and SIGNED not in details:
            return None
        try:
            if not isinstance(entry["id"], int):
                raise _forged("its number cannot be read.")
            texts = self._texts(actor, entry, details)
            _check_content(entry, details, texts[-1].subject)
            self._check_once(entry, texts)
        except TangAttestError as error:
            sentence = f"Entry {entry['id']}, '{entry['event']}' by {actor}: {error.sentence}"
            return Reason(error.code, sentence, (("entry", entry["id"]), ("actor", actor)))
        for signature, text in zip(details[SIGNED], texts, strict=True):
            self.registrations.use(entry, unb64u(signature["credential"]), text.nonce)
        self.good += 1
        return None

    def finish(self, unread: datetime | None) -> list[Reason]:
        """Return the faults that show when every entry was looked at: of passkeys, and of what they signed.

        Entries up to *unread* are in archives that were not read.
        """
        return list(self.registrations.findings(self._keys, unread))

    def _note(self, entry: Mapping[str, Any], actor: str) -> None:
        """Note an entry about an operator; a registration counts in the operator's own name only."""
        if not isinstance(entry["id"], int) or (
            entry["event"] == REGISTERED and not actor.startswith(CONSOLE)
        ):
            return
        try:
            at = _instant(entry["at"])
        except Refused:
            return
        self.registrations.note(entry, at, _details(entry["details"]))

    def _texts(self, actor: str, entry: Mapping[str, Any], details: Mapping[str, Any]) -> list[ActText]:
        """Return what was signed, after every signature was checked; the last one is the actor's."""
        signatures = details.get(SIGNED)
        if not isinstance(signatures, list) or not signatures:
            raise _forged("it has no signature.")
        at = _instant(entry["at"])
        texts = []
        for number, each in enumerate(signatures, 1):
            longest = _LAST_AGE if number == len(signatures) else _FIRST_AGE
            texts.append(self._text(each, at, longest))
        signers = [text.operator for text in texts]
        if actor != CONSOLE + signers[-1]:
            raise _forged(f"it was signed by '{signers[-1]}'.")
        if len(set(signers)) != len(signers):
            raise _forged("an operator signed twice.")
        if len({subject_digest(text.subject) for text in texts}) != 1:
            raise _forged("its operators signed different things.")
        return texts

    def _text(self, signature: object, at: datetime, longest: timedelta) -> ActText:
        try:
            members = {str(name): str(value) for name, value in dict(signature).items()}  # type: ignore[call-overload]
            text = read_text(members["text"])
            assertion = Assertion(
                credential_id=unb64u(members["credential"]),
                client_data=unb64u(members["client_data"]),
                authenticator_data=unb64u(members["authenticator_data"]),
                signature=unb64u(members["signature"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            raise _forged("its signature cannot be read.") from None
        key = self._keys.get(assertion.credential_id)
        if key is None or key.operator != text.operator or members.get("operator") != text.operator:
            raise _forged(f"its signature is of no passkey of '{text.operator}'.")
        if key.revoked_at is not None and text.time > key.revoked_at:
            raise _forged("it was signed after the passkey was revoked.")
        if not text.time - _SKEW <= at <= text.time + longest:
            raise _forged(f"it was signed for {text.time:%Y-%m-%d %H:%M:%S} UTC.")
        try:
            assertion.check(key.public_key, challenge_of(members["text"]), text.console, text.rp_id)
        except Refused as error:
            raise _forged(error.sentence[0].lower() + error.sentence[1:]) from None
        return text

    def _check_once(self, entry: Mapping[str, Any], texts: Sequence[ActText]) -> None:
        """Raise ``act-reused`` for a signature that is in another entry about the same machine."""
        waiting = entry["event"] == WAITING
        for text in texts[-1:] if waiting else texts:
            first = self.seen.setdefault((text.nonce, waiting, entry["device"]), entry["id"])
            if first != entry["id"]:
                raise Refused("act-reused", f"its signature is that of entry {first}.")


def _check_content(entry: Mapping[str, Any], details: Mapping[str, Any], subject: Mapping[str, Any]) -> None:
    """Raise ``act-forged`` unless the entry is what *subject* says."""
    act = subject.get("act")
    if entry["event"] == WAITING:
        return
    if entry["event"] not in EVENTS.get(str(act), ()):
        raise _forged(f"the act '{act}' was signed.")
    if act == "approve":
        _check_boot(entry, details, subject)
        return
    device = entry["device"] if "device" in subject else subject.get("device")
    if device != subject.get("device"):
        raise _forged(f"it was signed for '{subject.get('device')}'.")
    for name in ("policy", "label", "allow_unverified_ek"):
        if name in subject and name in details and subject[name] != details[name]:
            raise _forged(f"another {name} was signed.")
    if act == "token":
        same = details.get("labels") == subject.get("labels") and details.get("machines", 1) == subject.get(
            "machines"
        )
        if not same:
            raise _forged("another token was signed.")
    if act == "allow":
        _check_end(entry, details.get("until"), subject.get("minutes"))


def _check_boot(entry: Mapping[str, Any], details: Mapping[str, Any], subject: Mapping[str, Any]) -> None:
    boots = [boot for boot in _list(subject.get("boots")) if isinstance(boot, dict)]
    boot = next((boot for boot in boots if boot.get("device") == entry["device"]), None)
    if boot is None or boot.get("policy") != details.get("policy"):
        raise _forged("another machine or policy was signed.")
    if entry["event"] != "policy state add":
        return
    limits = subject.get("limits")
    values = details.get("values")
    if not isinstance(limits, dict) or not isinstance(values, dict):
        raise _forged("its limits or values are missing.")
    try:
        same = values_digest(values) == boot.get("values")
    except (ValueError, TypeError):
        same = False
    if not same:
        raise _forged("other values were signed.")
    alone = bool(limits.get("only_this_device")) or (bool(limits.get("once")) and len(boots) > 1)
    wanted = (entry["device"] if alone else None, 1 if limits.get("once") else None)
    if (details.get("device"), details.get("uses")) != wanted:
        raise _forged("other limits were signed.")
    _check_end(entry, details.get("expires_at"), limits.get("minutes"))


def _check_end(entry: Mapping[str, Any], end: object, minutes: object) -> None:
    """Raise ``act-forged`` unless the limit *end* (ISO 8601) is *minutes* after the entry."""
    if end is None and minutes is None:
        return
    try:
        lasts = datetime.fromisoformat(str(end)) - _instant(entry["at"])
        same = isinstance(minutes, int) and abs(lasts - timedelta(minutes=minutes)) <= _SKEW
    except (ValueError, TypeError, OverflowError):
        same = False
    if not same:
        raise _forged("another time was signed.")


def _may_be_signed(text: object) -> bool:
    """Return False for details that have no signatures, however they are spelled."""
    return isinstance(text, str) and (SIGNED in text or "\\u" in text)


def _details(text: object) -> Mapping[str, Any]:
    """Return the details in a column; those that cannot be read have no members."""
    try:
        members = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        members = None
    return members if isinstance(members, dict) else {}


def _list(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _instant(microseconds: object) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=int(str(microseconds)))
    except (ValueError, OverflowError):
        raise _forged("its time cannot be read.") from None


def _forged(sentence: str) -> Refused:
    return Refused("act-forged", sentence)

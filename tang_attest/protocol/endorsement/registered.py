"""EKs that an operator registers before their machines enroll: the digest of a key, and the list in a file."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tang_attest.errors import Malformed, Reason, TangAttestError
from tang_attest.protocol.endorsement.endorsement import certified_key, trim_certificate
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.x509.keys import public_key

MAX_LIST: Final = 16 * 1024 * 1024
"""Bytes of a list: its lines may hold certificates."""
MAX_ENTRIES: Final = 10_000
"""Machines of one list, which is registered in one transaction."""
MAX_REASONS: Final = 20
"""Faults that are reported at once."""

COLUMNS: Final = ("name", "ek_sha256", "ek_certificate", "policy", "labels", "without_token")
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")
_WORDS: Final = {"": False, "no": False, "yes": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class EkEntry:
    """One machine of a list: the digest of its EK (:func:`ek_digest`), and its terms.

    ``line`` is its line in the file, or 0 without one; ``without_token`` lets it enroll by its EK
    alone.
    """

    line: int
    name: str
    ek_sha256: bytes
    policy: str
    labels: tuple[str, ...] = ()
    without_token: bool = False


def ek_digest(spki: bytes) -> bytes:
    """Return the SHA-256 of the EK's DER SubjectPublicKeyInfo, as ``tpm2 readpublic -f der`` writes it."""
    return hashlib.sha256(spki).digest()


def parse_digest(text: str) -> bytes:
    """Return the digest in *text*, 64 hex digits.  Raises ``request-malformed``."""
    if not _DIGEST.fullmatch(text):
        raise Malformed("request-malformed", "The SHA-256 of an EK has 64 hex digits.")
    return bytes.fromhex(text)


def certificate_digest(data: bytes) -> bytes:
    """Return the digest of the key in an EK certificate, whatever its encoding there.

    *data* is DER or PEM, perhaps as in an NV index.  Raises ``ek-malformed``, ``ek-unsupported``.

    Not checked: the certificate itself; the operator vouches for the key by registering it.
    """
    key = public_key(certified_key(trim_certificate(data)))
    return ek_digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def parse_list(data: bytes, policy: str | None) -> tuple[EkEntry, ...]:
    """Return the machines of a CSV file (RFC 4180) whose first line names its :data:`COLUMNS`.

    Each line has a ``name``, and either ``ek_sha256`` (64 hex digits) or ``ek_certificate`` (Base64 of DER).
    *policy* is that of lines without one; ``labels`` have spaces in between; ``without_token`` is ``yes`` or
    ``no``.  Raises ``ek-list-invalid`` with the fault of each line, up to :data:`MAX_REASONS`.
    """
    if len(data) > MAX_LIST:
        raise Malformed("ek-list-invalid", f"The list has more than {MAX_LIST} bytes.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Malformed("ek-list-invalid", f"Line {line}: this is no UTF-8.") from None
    rows = _rows(text)
    header = next(rows, None)
    if header is None:
        raise Malformed("ek-list-invalid", "The list is empty; its first line names the columns.")
    columns = [word.strip() for word in header[1]]
    _check_columns(columns)
    reasons: list[Reason] = []
    entries: list[EkEntry] = []
    for line, row in rows:
        if len(entries) + len(reasons) >= MAX_ENTRIES:
            raise Malformed("ek-list-invalid", f"Line {line}: a list has at most {MAX_ENTRIES} machines.")
        try:
            entries.append(_entry(line, columns, row, policy))
        except TangAttestError as error:
            reasons.append(fault(line, error.sentence))
    raise_faults([*reasons, *repeated(entries)])
    if not entries:
        raise Malformed("ek-list-invalid", "The list names no machine.")
    return tuple(entries)


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that are not empty, with the number of their first line in the file."""
    reader = csv.reader((f"{line}\n" for line in text.split("\n")), strict=True)
    before = 0
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if any(field.strip() for field in row):
                yield line, row
    except csv.Error as error:
        raise Malformed("ek-list-invalid", f"Line {before + 1}: this is no CSV ({error}).") from None


def _check_columns(columns: list[str]) -> None:
    known = ", ".join(COLUMNS)
    for column in columns:
        if column not in COLUMNS:
            raise Malformed(
                "ek-list-invalid", f"Line 1: there is no column '{column[:40]}'; these are: {known}."
            )
    if len(set(columns)) != len(columns):
        raise Malformed("ek-list-invalid", "Line 1: a column is named twice.")
    if "name" not in columns or not {"ek_sha256", "ek_certificate"}.intersection(columns):
        raise Malformed("ek-list-invalid", "Line 1: a list needs name, and ek_sha256 or ek_certificate.")


def _entry(line: int, columns: list[str], row: list[str], policy: str | None) -> EkEntry:
    if len(row) != len(columns):
        raise Malformed("ek-list-invalid", f"It has {len(row)} fields, and the first line {len(columns)}.")
    fields = dict.fromkeys(COLUMNS, "") | dict(zip(columns, (field.strip() for field in row), strict=True))
    if bool(fields["ek_sha256"]) == bool(fields["ek_certificate"]):
        raise Malformed("ek-list-invalid", "It needs either ek_sha256 or ek_certificate.")
    if fields["without_token"] not in _WORDS:
        raise Malformed("ek-list-invalid", "The word of without_token is yes or no.")
    if not (fields["policy"] or policy):
        raise Malformed("ek-list-invalid", "It names no policy, and --policy neither.")
    return EkEntry(
        line=line,
        name=check_name(fields["name"]),
        ek_sha256=parse_digest(fields["ek_sha256"])
        if fields["ek_sha256"]
        else certificate_digest(_base64(fields["ek_certificate"])),
        policy=check_name(fields["policy"] or policy or ""),
        labels=check_labels(fields["labels"].split()),
        without_token=_WORDS[fields["without_token"]],
    )


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("ek-list-invalid", "The ek_certificate is not Base64.") from None


def repeated(entries: Iterable[EkEntry]) -> list[Reason]:
    """Return a fault for each name and each EK that comes again with other terms or another machine.

    A line that repeats another one word for word is none.
    """
    names: dict[str, EkEntry] = {}
    keys: dict[bytes, EkEntry] = {}
    found = []
    for entry in entries:
        first = names.setdefault(entry.name, entry)
        if replace(entry, line=first.line) != first:
            found.append(fault(entry.line, f"Line {first.line} has the name '{entry.name}', too."))
        elif (other := keys.setdefault(entry.ek_sha256, entry)).name != entry.name:
            found.append(fault(entry.line, f"Line {other.line} has the same EK."))
    return found


def fault(line: int, sentence: str) -> Reason:
    """Return the fault *sentence* of a line; line 0 is a machine that is in no list."""
    if line == 0:
        return Reason("ek-list-invalid", sentence, (("line", line),))
    return Reason("ek-list-invalid", f"Line {line}: {sentence[:1].lower()}{sentence[1:]}", (("line", line),))


def raise_faults(reasons: list[Reason]) -> None:
    """Raise ``ek-list-invalid`` with *reasons*, if there are some; the first :data:`MAX_REASONS` of many."""
    if reasons:
        raise Malformed.because(*sorted(reasons, key=_line)[:MAX_REASONS])


def _line(reason: Reason) -> int:
    return int(str(dict(reason.data)["line"]))

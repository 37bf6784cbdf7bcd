"""Permitted entries of IMA's list: digests by path, signatures, ignored paths (docs/rules.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Final

from tang_attest.errors import Malformed
from tang_attest.protocol.ima.entries import Entry
from tang_attest.protocol.ima.signature import ImaSigner, is_signed, read_signers
from tang_attest.protocol.rules.document import MAX_PATTERNS, DocumentPosition
from tang_attest.protocol.rules.patterns import Pattern
from tang_attest.protocol.values.pcr import BANK_SIZES

MAX_SUMS: Final = 4 << 20
"""Bytes of a list of digests."""

MAX_STORED: Final = 2 << 20
"""Characters of a document as it is stored, some 15,000 files: a row has to fit into a line of a backup."""

MAX_SUM_LINES: Final = 32_768
MAX_PEM: Final = 256 * 1024

_KEYS: Final = ("files", "sums", "signed-by", "ignore", "accept-violations", "accept-padded-sha1")
_SUM: Final = re.compile(r"([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}) [ *](/.+)")
_BY_LENGTH: Final = {2 * size: name for name, size in BANK_SIZES.items()}
_SHOWN: Final = 256


@dataclass(frozen=True, slots=True)
class ImaFinding:
    """An entry that nothing allows: its number from 1, what it names, ``sha256:<hex>``, and why, a sentence's
    end.
    """

    number: int
    path: str
    digest: str
    why: str


@dataclass(frozen=True, slots=True)
class AllowedFiles:
    """Files whose whole path matches ``path``, and the digests (``sha256:<hex>``) they may have."""

    path: Pattern
    digests: frozenset[str]


@dataclass(frozen=True, slots=True)
class Requirement:
    """Permitted entries of a list; :func:`parse_requirement` makes it.

    ``digest`` is the SHA-256 over the document, 64 hex digits: another one means that everything has to be
    judged again. ``sums`` has exact paths; ``ignore`` prefixes of paths about which nothing is asked.
    """

    files: tuple[AllowedFiles, ...] = ()
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    certificates: str = ""
    signers: tuple[ImaSigner, ...] = ()
    ignore: tuple[str, ...] = ()
    _: KW_ONLY
    accept_violations: bool = False
    accept_padded_sha1: bool = False
    digest: str = ""

    def as_json(self) -> dict[str, Any]:
        """The document; :func:`parse_requirement` makes an equal requirement of it."""
        files = [{"path": rule.path.source, "digests": sorted(rule.digests)} for rule in self.files]
        document: dict[str, Any] = {
            "files": files,
            "sums": {path: list(digests) for path, digests in self.sums.items()},
            "signed-by": self.certificates,
            "ignore": list(self.ignore),
            "accept-violations": self.accept_violations,
            "accept-padded-sha1": self.accept_padded_sha1,
        }
        return {key: value for key, value in document.items() if value}

    def judge(self, number: int, entry: Entry) -> ImaFinding | None:
        """Return the reason against *entry*, or ``None`` if it is allowed.

        A violation's path is not proven, so no rule over paths excuses one.
        """
        path = entry.name.decode("utf-8", "backslashreplace")
        found = f"{entry.hash_name}:{entry.digest.hex()}"
        if entry.violation:
            if self.accept_violations:
                return None
            return ImaFinding(number, show(path), found, "it was measured while it was open for writing")
        if path.startswith(self.ignore) or found in self.sums.get(path, ()):
            return None
        about = [rule for rule in self.files if rule.path.matches(path)]
        if any(found in rule.digests for rule in about):
            return None
        if self.signers and is_signed(entry.extra, entry.hash_name, entry.digest, self.signers):
            return None
        return ImaFinding(number, show(path), found, self._why(entry, known=bool(about) or path in self.sums))

    def _why(self, entry: Entry, *, known: bool) -> str:
        if known:
            return "it has another digest than the allowed ones"
        if not self.signers:
            return "nothing allows it"
        return "its signature is none of an allowed signer" if entry.extra else "it has no signature"


def show(path: str) -> str:
    """*path*, fit for a terminal and a database."""
    shown = "".join(character if character.isprintable() else "?" for character in path)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def parse_requirement(document: object) -> Requirement:
    """``{files: [{path, digests}], sums: {path: [digest]}, signed-by: PEM, ignore: [prefix], ...}``.

    Raises :class:`Malformed` ``rules-invalid`` naming the key, or ``certificate-malformed``.
    """
    top = DocumentPosition()
    body = top.mapping(document, _KEYS)
    pem = body.get("signed-by", "")
    if not isinstance(pem, str) or len(pem) > MAX_PEM or ("signed-by" in body and not pem):
        raise top.at("signed-by").error("this is no text with certificates (PEM)")
    files = top.at("files").items(body["files"]) if "files" in body else []
    if len(files) > MAX_PATTERNS:
        raise top.at("files").error(f"there are more than {MAX_PATTERNS} patterns")
    requirement = Requirement(
        tuple(_files(item, top.at("files")) for item in files),
        _sums(body["sums"], top.at("sums")) if "sums" in body else {},
        pem,
        read_signers(pem) if pem else (),
        _prefixes(body["ignore"], top.at("ignore")) if "ignore" in body else (),
        accept_violations=_flag(body, "accept-violations", top),
        accept_padded_sha1=_flag(body, "accept-padded-sha1", top),
    )
    text = json.dumps(requirement.as_json(), sort_keys=True)
    if len(text) > MAX_STORED:
        raise top.error(f"they are longer than {MAX_STORED} characters; allow signers instead of files")
    return replace(requirement, digest=hashlib.sha256(text.encode()).hexdigest())


def parse_sums(data: bytes) -> dict[str, tuple[str, ...]]:
    """Output of ``sha256sum``, ``sha384sum`` or ``sha512sum`` over absolute paths, as the key ``sums`` has
    it.

    Raises :class:`Malformed` ``rules-invalid``, with ``line``.
    """
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise Malformed("rules-invalid", "The list of digests is no UTF-8.") from None
    if len(lines) > MAX_SUM_LINES:
        raise Malformed("rules-invalid", f"The list of digests has more than {MAX_SUM_LINES} lines.")
    sums: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            sentence = f"Line {number} of the list of digests is no 'DIGEST  /PATH'."
            raise Malformed("rules-invalid", sentence, line=number)
        sums[match[2]] = (*sums.get(match[2], ()), f"{_BY_LENGTH[len(match[1])]}:{match[1]}")
    return sums


def _files(item: object, place: DocumentPosition) -> AllowedFiles:
    body = place.mapping(item, ("path", "digests"))
    return AllowedFiles(
        place.at("path").pattern(body.get("path")),
        frozenset(place.at("digests").digests(body.get("digests"))),
    )


def _sums(value: object, place: DocumentPosition) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or len(value) > MAX_SUM_LINES:
        raise place.error(f"this is no mapping of at most {MAX_SUM_LINES} paths")
    return {place.text(path): place.at(path).digests(digests) for path, digests in value.items()}


def _prefixes(value: object, place: DocumentPosition) -> tuple[str, ...]:
    prefixes = place.texts(value)
    if any(not prefix.startswith("/") or prefix == "/" for prefix in prefixes):
        raise place.error("a prefix is an absolute path, and more than /")
    return prefixes


def _flag(body: Mapping[str, object], key: str, place: DocumentPosition) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise place.at(key).error("this is neither true nor false")
    return value

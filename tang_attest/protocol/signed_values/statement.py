"""Signed value files: a statement of a pipeline about PCR values, as a JWS (RFC 7515) in compact form.

    header   {"alg": "ES256" or "EdDSA", "kid": RFC 7638 thumbprint, "typ": "tang-attest-values.v1"}
    payload  {"bank", "label", "not_after", "not_before", "policies", "values", "version"}

Header and payload are canonical JSON: members in the order of their names, no white space, ASCII.  Another spelling of
the same statement is refused, so a member that is there twice is, too.

Rules of this module:

* Size and alphabet are checked before anything is decoded, ``kid`` and ``alg`` before the signature, and the
  signature before the payload is read.
* A key signs with one algorithm: P-256 with ES256, Ed25519 with EdDSA.  The header has to name that one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.reference_state import check_label
from tang_attest.protocol.signed_values.keys import STATEMENTS_ONLY, load_key
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.protocol.values.pcr import BANK_SIZES, PCR_COUNT, PcrValues

TYP: Final = "tang-attest-values.v1"
#: Characters of a compact JWS.
MAX_STATEMENT: Final = 16 * 1024
MAX_POLICIES: Final = 64
MAX_VERSION: Final = 2**53 - 1
SUFFIX: Final = ".tang-attest.jws"

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_MEMBERS: Final = {"bank", "label", "not_after", "not_before", "policies", "values", "version"}
_HEX: Final = re.compile(r"[0-9a-f]*")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueStatement:
    """Values of some PCRs of *bank*, good for *policies* from *not_before* until *not_after* (aware, UTC, seconds).

    ``version`` orders the statements of one family of labels: a higher one replaces a lower one.
    """

    policies: tuple[str, ...]
    bank: str
    values: PcrValues
    label: str
    version: int
    not_before: datetime
    not_after: datetime

    def __post_init__(self) -> None:
        _require(self.bank in BANK_SIZES, f"'bank' is one of {', '.join(BANK_SIZES)}")
        _require(1 <= len(self.policies) <= MAX_POLICIES, f"'policies' has 1 to {MAX_POLICIES} names")
        _require(list(self.policies) == sorted(set(self.policies)), "'policies' is ascending and distinct")
        for name in self.policies:
            check_name(name)
        _require(bool(self.values), "'values' is empty")
        for pcr, value in self.values.items():
            _require(0 <= pcr < PCR_COUNT, "a PCR number is 0 to 23")
            size = BANK_SIZES[self.bank]
            _require(len(value) == size, f"PCR {pcr} has {len(value)} bytes; a {self.bank} value has {size}")
        check_label(self.label)
        _require(self.label.isascii(), "'label' is ASCII")
        _require(0 <= self.version <= MAX_VERSION, "'version' is 0 to 2^53 - 1")
        _require(self.not_before < self.not_after, "'not_before' is before 'not_after'")

    def payload(self) -> bytes:
        """Return it as canonical JSON."""
        return _canonical(
            {
                "bank": self.bank,
                "label": self.label,
                "not_after": self.not_after.strftime(_TIME),
                "not_before": self.not_before.strftime(_TIME),
                "policies": list(self.policies),
                "values": {str(pcr): value.hex() for pcr, value in self.values.items()},
                "version": self.version,
            }
        )


def thumbprint_of(der: bytes) -> str:
    """Return the ``kid`` of the key in *der* (SubjectPublicKeyInfo): its RFC 7638 thumbprint."""
    return str(_jwk(der).thumbprint())


def sign(statement: ValueStatement, private_pem: bytes, password: bytes | None = None) -> str:
    """Return *statement* signed with the private key in *private_pem*, as a compact JWS.

    Raises ``signer-unsuitable`` unless the key is on P-256 or Ed25519 and can be read.
    """
    try:
        key = JWK.from_pem(private_pem, password=password)
    except (ValueError, TypeError, JWException):
        raise Malformed("signer-unsuitable", "The file has no private key in PEM that can be read.") from None
    if not key.has_private:
        raise Malformed("signer-unsuitable", "The file has a public key; signing takes the private one.")
    algorithm = _ALGORITHMS.get((key["kty"], key.get("crv")))
    if algorithm is None:
        raise Malformed("signer-unsuitable", STATEMENTS_ONLY)
    signed = JWS(statement.payload())
    header = _canonical({"alg": algorithm, "kid": key.thumbprint(), "typ": TYP})
    signed.allowed_algs = [algorithm]
    signed.add_signature(key, None, header.decode())
    return str(signed.serialize(compact=True))


_ALGORITHMS: Final = {("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}


def read_kid(compact: str) -> str:
    """Return the ``kid`` of a statement, unverified.  Raises ``statement-malformed``."""
    return _header(_split(compact)[0])["kid"]


def verify(compact: str, der: bytes) -> ValueStatement:
    """Return the statement in *compact*, signed with the key in *der* (SubjectPublicKeyInfo).

    Raises :class:`Malformed` ``statement-malformed``, :class:`Refused` ``statement-untrusted``.  Not checked here:
    that it is for a policy, that its time is now, and that its signer may name these PCRs.
    """
    header, payload = _split(compact)
    named = _header(header)
    key = _jwk(der)
    algorithm = _ALGORITHMS[key["kty"], key["crv"]]
    if named != {"alg": algorithm, "kid": key.thumbprint(), "typ": TYP}:
        raise Refused("statement-untrusted", "The statement's header names another key or algorithm.")
    try:
        signed = JWS()
        signed.allowed_algs = [algorithm]
        signed.deserialize(compact)
        signed.verify(key)
    except (JWException, ValueError):
        raise Refused("statement-untrusted", "The statement's signature is not that of its signer.") from None
    return _read(payload)


def inspect(compact: str) -> tuple[str, ValueStatement]:
    """Return ``kid`` and statement of *compact*, with the signature NOT verified: for people.

    Raises ``statement-malformed``.
    """
    header, payload = _split(compact)
    return _header(header)["kid"], _read(payload)


def _split(compact: str) -> tuple[bytes, bytes]:
    """Return header and payload, decoded."""
    if len(compact) > MAX_STATEMENT:
        raise _malformed(f"it has more than {MAX_STATEMENT} characters")
    parts = _COMPACT.fullmatch(compact)
    if parts is None:
        json_text = compact.lstrip().startswith("{")
        raise _malformed(
            "it is JSON, and not a JWS in compact form" if json_text else "it is no JWS in compact form"
        )
    try:
        unb64u(parts[3])
        return unb64u(parts[1]), unb64u(parts[2])
    except ValueError:
        raise _malformed("it is not base64url") from None


def _header(data: bytes) -> dict[str, str]:
    header = _object(data, "header")
    texts = {name: value for name, value in header.items() if isinstance(value, str)}
    if set(header) != {"alg", "kid", "typ"} or texts != header:
        raise _malformed("its header has not exactly alg, kid and typ")
    if texts["typ"] != TYP or texts["alg"] not in _ALGORITHMS.values():
        raise _malformed(f"its typ is not {TYP}, or its alg not {' or '.join(_ALGORITHMS.values())}")
    return texts


def _read(payload: bytes) -> ValueStatement:
    fields = _object(payload, "payload")
    _require(set(fields) == _MEMBERS, f"its members are not exactly {', '.join(sorted(_MEMBERS))}")
    policies, values = fields["policies"], fields["values"]
    _require(
        isinstance(policies, list) and all(isinstance(each, str) for each in policies), "'policies' are names"
    )
    _require(isinstance(values, dict), "'values' is an object")
    _require(all(isinstance(fields[name], str) for name in ("bank", "label")), "'bank' and 'label' are texts")
    _require(type(fields["version"]) is int, "'version' is a number")
    try:
        return ValueStatement(
            policies=tuple(policies),
            bank=fields["bank"],
            values={_pcr(name): _value(text) for name, text in values.items()},
            label=fields["label"],
            version=fields["version"],
            not_before=_time(fields["not_before"]),
            not_after=_time(fields["not_after"]),
        )
    except Malformed as error:
        if error.code == "statement-malformed":
            raise
        raise _malformed(error.sentence.rstrip(".")) from None


def _object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in *data*, which has to be its canonical spelling."""
    try:
        found = json.loads(data.decode("ascii"), parse_constant=_no_number, parse_float=_no_number)
        if isinstance(found, dict) and _canonical(found) == data:
            return found
    except (ValueError, RecursionError):
        pass
    raise _malformed(f"its {what} is no canonical JSON object")


def _no_number(_: str) -> None:
    raise ValueError("not a whole number")


def _canonical(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode("ascii")


def _pcr(name: str) -> int:
    _require(bool(_NUMBER.fullmatch(name)), "a PCR number is 0 to 23")
    return int(name)


def _value(text: object) -> bytes:
    if not isinstance(text, str) or not _HEX.fullmatch(text) or len(text) % 2:
        raise _malformed("a value is hex in lower case")
    return bytes.fromhex(text)


def _time(text: object) -> datetime:
    try:
        at = datetime.strptime(text if isinstance(text, str) else "", _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise _malformed("a time is like 2026-11-27T15:28:00Z") from None
    _require(at.strftime(_TIME) == text, "a time is like 2026-11-27T15:28:00Z")
    return at


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise _malformed(problem)


def _malformed(problem: str) -> Malformed:
    return Malformed("statement-malformed", f"The statement cannot be used: {problem}.")


@lru_cache(maxsize=128)
def _jwk(der: bytes) -> JWK:
    key = load_key(der)
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise Malformed("signer-unsuitable", STATEMENTS_ONLY)
    return JWK.from_pem(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

"""A disk that the kit made: its keys, its header, and the verifier that answers for it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

from ..primitives.curve import CURVES, Affine, NistCurve, read_point
from ..primitives.encoding import b64u, thumbprint, unb64u
from ..primitives.jose import SigningKey, derive_cek, encrypt_jwe
from ..primitives.texts import unlock_data
from ..report import PROTOCOL
from ..tpm.signing import verify
from ..tpm.structures import GENERATED, ReadKey, read_quote, split_selection
from .played import Seen, answer, problem

#: Bytes that shells like to lose, without a line's end that people would miss.
PLAINTEXT: Final = b"the passphrase\0of a disk\xff"
_HASHES: Final = {"sha256": 32, "sha384": 48, "sha512": 64}


@dataclass
class Disk:
    """An exchange key s and a header that was made with it; *c* may be chosen."""

    curve: NistCurve = CURVES["P-521"]
    s: int = 0
    c: int = 0

    def __post_init__(self) -> None:
        self.s = self.s or secrets.randbelow(self.curve.order - 1) + 1
        self.c = self.c or secrets.randbelow(self.curve.order - 1) + 1
        self.big_s, self.big_c = self.curve.multiply(self.s), self.curve.multiply(self.c)

    @property
    def kid(self) -> str:
        """The thumbprint of S."""
        return thumbprint(self.curve.jwk(self.big_s))

    @property
    def k(self) -> Affine:
        """K."""
        return self.curve.multiply(self.c, self.big_s)

    def exchange_key(self) -> dict[str, Any]:
        """S, as an advertisement has it."""
        return self.curve.jwk(self.big_s, alg="ECMR", key_ops=["deriveKey"])

    def jwe(self, urls: Sequence[str], handle: str) -> str:
        """Return the header of section 8, for a disk of the machine with its AK at *handle*."""
        signer = SigningKey(CURVES["P-521"], 7)
        attest = {
            "url": list(urls),
            "adv": {"keys": [signer.public, self.exchange_key()]},
            "ak": handle,
            "name": "conformance",
        }
        header = {
            "alg": "ECDH-ES",
            "enc": "A256GCM",
            "epk": self.curve.jwk(self.big_c),
            "kid": self.kid,
            "clevis": {"pin": "attest", "attest": attest},
        }
        return encrypt_jwe(header, derive_cek(self.curve, self.k), PLAINTEXT, secrets.token_bytes(12))


@dataclass
class Verifier:
    """A server that answers for a disk, and notes what is wrong with the evidence.

    *faults* are sentences; *xs* the points that were sent, *values* the quoted values of each proof.
    """

    disk: Disk
    ak: ReadKey
    _: KW_ONLY
    selection: str = "sha256:0,2,4,7,15"
    more: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    xs: list[Affine] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    nonces: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, seen: Seen) -> bytes:
        """Answer as an honest server does."""
        if seen.method != "POST" or seen.path != f"/rec/{self.disk.kid}":
            self.faults.append(f"{seen.method} {seen.path} is no request of an unlock")
            return problem(404, "not-found")
        return self.prove(seen) if "attest" in seen.json else self.ask(seen)

    def challenge(self, **changes: Any) -> dict[str, Any]:
        """Return a challenge with a new nonce."""
        self.nonces.append(secrets.token_urlsafe(33))
        made = {
            "nonce": self.nonces[-1],
            "selection": self.selection,
            "expires_in": 120,
            "evidence": ["quote"],
            "cap_pcr": 15,
            "versions": ["1.1", PROTOCOL],
        }
        return made | self.more | changes

    def ask(self, seen: Seen, **changes: Any) -> bytes:
        """Return a 401 with a challenge."""
        self.bodies.append(seen.json)
        self._note_point(seen)
        return problem(401, "evidence-required", challenge=self.challenge(**changes))

    def prove(self, seen: Seen) -> bytes:
        """Check evidence, and return Y whatever came of it."""
        x = self._note_point(seen)
        self.bodies.append(seen.json)
        if x is None:
            return problem(400, "point-invalid")
        self._judge(seen.json, seen.json["attest"])
        return self.y(x)

    def y(self, x: Affine, **more: Any) -> bytes:
        """Return the reply for X."""
        curve = self.disk.curve
        key = curve.jwk(curve.multiply(self.disk.s, x), alg="ECMR", key_ops=["deriveKey"])
        return answer(200, key | more, "application/jwk+json")

    def _note_point(self, seen: Seen) -> Affine | None:
        try:
            curve, x = read_point(seen.json)
        except ValueError as error:
            self.faults.append(f"X cannot be used: {error}")
            return None
        if curve is not self.disk.curve:
            self.faults.append("X is on another curve than C")
            return None
        self.xs.append(x)
        return x

    def _judge(self, jwk: dict[str, Any], attest: dict[str, Any]) -> None:
        """Note what a verifier would refuse (3.3, steps 1 to 8)."""
        nonce = self.nonces[-1]
        if attest.get("nonce") != nonce:
            self.faults.append("the nonce is not that of the challenge")
        binding = unlock_data(nonce, self.disk.kid, thumbprint(jwk))
        value = judge_evidence(self.ak, attest, binding, self.selection, self.faults)
        self.values.append(value)


def judge_evidence(
    ak: ReadKey, members: dict[str, Any], binding: bytes, selection: str, faults: list[str]
) -> bytes:
    """Return the quoted values; append to *faults* what a verifier would refuse."""
    try:
        quote, signature, values = (unb64u(members[name]) for name in ("quote", "signature", "pcrs"))
        verify(ak.key, ak.area.scheme, quote, signature)
        read = read_quote(quote)
    except (KeyError, TypeError, ValueError) as error:
        faults.append(f"the evidence is not good: {error}")
        return b""
    if read.magic != GENERATED:
        faults.append("the quote has another magic")
    if read.extra_data != binding:
        faults.append("the qualifying data is not that of this request")
    if list(read.banks) != [selection]:
        faults.append(f"the quote is over {' and '.join(read.banks)} in place of {selection}")
    bank, numbers = split_selection(selection)
    if len(values) != _HASHES[bank] * len(numbers):
        faults.append(f"pcrs has {len(values)} bytes")
    if hashlib.new(ak.area.scheme.partition("-")[2], values).digest() != read.pcr_digest:
        faults.append("pcrs are not the quoted values")
    return values


def other_curve_point() -> dict[str, Any]:
    """Return a point that is not on P-521."""
    return CURVES["P-256"].jwk(CURVES["P-256"].generator)


def off_curve(curve: NistCurve) -> dict[str, Any]:
    """Return coordinates that are on no curve."""
    x, y = curve.generator
    return curve.jwk((x, y)) | {"y": b64u(curve.octets((y + 1) % curve.p))}

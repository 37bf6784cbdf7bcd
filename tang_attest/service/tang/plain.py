"""Plain Tang: the answers of tangd, which demands no evidence.

Rules of this module:

* For any meaningful request the status and the body are tangd's (tests/tang compares them).  So the checks
  come in tangd's order, and ``use`` and ``key_ops`` are interpreted as libjose does.
* A :class:`KeySet` never changes.  Advertisements are signed when first asked for and then kept, because one
  signature costs as much as an exchange.
* Requests that tangd accepts but no client sends (a coordinate beyond the field, bytes after a NUL) are
  refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Malformed
from tang_attest.protocol.exchange import ExchangeKey, Multiplier, Reply
from tang_attest.protocol.values.advertisement import (
    THUMBPRINT_HASHES,
    AdvertisementSigner,
    advertise,
    thumbprint,
)
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.protocol.values.json_bounds import Bounds, check_bounds
from tang_attest.protocol.values.points import CURVES, Curve, Point

#: tangd answers 413 to a longer body.
BODY_LIMIT: Final = 65_535
#: A point has four members; a request without evidence may not have many more.
_REQUEST_BOUNDS: Final = Bounds(depth=512, parts=1024)
#: Limits of a key file, whose size is limited by its reader.
_FILE_BOUNDS: Final = Bounds(depth=512, parts=2**16, escapes=2**16)

#: Operations that a private key alone can do; libjose takes them out of a public key's ``key_ops``.
_PRIVATE_OPERATIONS: Final = frozenset({"sign", "decrypt", "unwrapKey"})

#: The operations that libjose reads into ``use``.  None of them is deriveKey.
_OPERATIONS_OF_USE: Final[Mapping[str, frozenset[str]]] = {
    "sig": frozenset({"sign", "verify"}),
    "enc": frozenset({"encrypt", "decrypt", "wrapKey", "unwrapKey"}),
}


class TangStatus(Exception):
    """A refusal as tangd makes it: an HTTP status and no body."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"HTTP {status}")


@dataclass(frozen=True, slots=True)
class TangKey:
    """One key of a key set, and the operations that tangd would do with it.

    ``public`` is the advertised JWK.  ``hidden`` keys (rotated ones) still answer but are not advertised.
    ``signs``, ``verifies`` and ``derives`` are the permitted uses; ``answers`` is true if ``/rec`` may use
    the key, which needs an explicit deriveKey.  ``signer`` and ``exchange`` are the private key, or ``None``
    when it cannot be used that way.
    """

    public: Mapping[str, Any]
    hidden: bool = False
    signs: bool = False
    verifies: bool = False
    derives: bool = False
    _: KW_ONLY
    answers: bool = False
    signer: AdvertisementSigner | None = None
    exchange: Multiplier | None = None

    @classmethod
    def from_jwk(
        cls,
        jwk: Mapping[str, Any],
        signer: AdvertisementSigner | None,
        exchange: ExchangeKey | None,
        *,
        hidden: bool = False,
    ) -> TangKey:
        """Return the key of a private JWK."""
        return cls(
            public=public_jwk(jwk),
            hidden=hidden,
            signs=permits(jwk, "sign"),
            verifies=permits(jwk, "verify"),
            derives=permits(jwk, "deriveKey"),
            answers=(
                permits(jwk, "deriveKey", explicit=True)
                and isinstance(jwk.get("d"), str)
                and jwk.get("alg", "ECMR") == "ECMR"
            ),
            signer=signer,
            exchange=exchange,
        )

    @classmethod
    def for_exchange(cls, key: Multiplier, *, hidden: bool = False) -> TangKey:
        """Return an exchange key such as tangd generates."""
        public = {"alg": "ECMR", "key_ops": ["deriveKey"], **key.public.members()}
        return cls(public, hidden, derives=True, answers=True, exchange=key)

    @classmethod
    def for_signing(
        cls, signer: AdvertisementSigner, members: Mapping[str, str], *, hidden: bool = False
    ) -> TangKey:
        """Return a signing key such as tangd generates; *members* are crv, kty, x and y of its public
        half.
        """
        public = {"alg": signer.algorithm, "key_ops": ["verify"], **members}
        return cls(public, hidden, signs=True, verifies=True, signer=signer)


class KeySet:
    """The keys of a Tang server at one moment, visible ones and hidden ones."""

    def __init__(self, keys: Iterable[TangKey]) -> None:
        # Visible keys first: tangd looks through them before it looks through the hidden ones.
        self.keys: Final[Sequence[TangKey]] = tuple(sorted(keys, key=lambda key: key.hidden))
        visible = [key for key in self.keys if not key.hidden]
        self._signing = tuple(key for key in visible if key.signs and key.verifies)
        self._listed = tuple(key for key in visible if (key.signs and key.verifies) or key.derives)
        self._by_thumbprint: dict[str, TangKey] = {}
        for key in self.keys:
            for algorithm in THUMBPRINT_HASHES:
                self._by_thumbprint.setdefault(thumbprint(key.public, algorithm), key)
        # By identity of the key asked for: its five thumbprints share one advertisement.
        self._advertisements: dict[int | None, bytes] = {}

    def find(self, kid: str) -> TangKey | None:
        """Return the key with this thumbprint, by any of the five hashes."""
        return self._by_thumbprint.get(kid)

    @property
    def thumbprints(self) -> tuple[str, ...]:
        """The thumbprints (SHA-256) of the advertised signing keys, which machines compare when they bind."""
        return tuple(thumbprint(key.public) for key in self._signing)

    def place(self, kid: str) -> Executor | None:
        """Executor in which :meth:`recover` has to run for *kid*, None for any (:attr:`Multiplier.place`)."""
        key = self.find(kid)
        return key.exchange.place if key is not None and key.exchange is not None else None

    def advertisement(self, kid: str | None = None) -> bytes:
        """Return the signed key set; for *kid* it is signed by that key too, even if it is hidden.

        Raises :class:`TangStatus` 500 when there is no signing key to advertise, 404 when *kid* is not a
        signing key or a signing key cannot sign.
        """
        if not self._signing:
            raise TangStatus(500)
        extra = None if kid is None else self._by_thumbprint.get(kid)
        if kid is not None and (extra is None or not extra.signs):
            raise TangStatus(404)
        cache_key = None if extra is None else id(extra)
        if cache_key not in self._advertisements:
            signing = self._signing if extra is None else (*self._signing, extra)
            self._advertisements[cache_key] = self._advertise(signing)
        return self._advertisements[cache_key]

    def _advertise(self, signing: Sequence[TangKey]) -> bytes:
        signers = [key.signer for key in signing if key.signer is not None]
        if len(signers) < len(signing):
            raise TangStatus(404)
        return advertise([key.public for key in self._listed], signers)

    def recover(self, kid: str, body: bytes) -> bytes:
        """Return the reply to ``POST /rec/{kid}``.  Raises :class:`TangStatus`; the order of the checks is
        tangd's.
        """
        request = _read_request(body)
        if not self._signing:
            raise TangStatus(500)
        key = self.find(kid)
        if key is None:
            raise TangStatus(404)
        if not key.answers:
            raise TangStatus(403)
        try:
            if key.exchange is None:  # its d is not that of its point
                raise TangStatus(400)
            return Reply(key.exchange.multiply(_read_point(request, key.exchange.curve))).encode()
        except Malformed:
            raise TangStatus(400) from None


class KeySetProvider(Protocol):
    """A source of the present keys: a Tang directory, or the database."""

    def current(self) -> KeySet | Awaitable[KeySet]:
        """Return the present keys; the same object as before when nothing changed."""


async def current_keys(provider: KeySetProvider) -> KeySet:
    """Return the keys of *provider*, which may be synchronous or a coroutine."""
    keys = provider.current()
    return keys if isinstance(keys, KeySet) else await keys


def public_jwk(jwk: Mapping[str, Any]) -> dict[str, Any]:
    """Return an EC key without its private part and private operations, as ``jose jwk pub`` does."""
    public = {name: value for name, value in jwk.items() if name != "d"}
    if isinstance(jwk.get("key_ops"), list):
        public["key_ops"] = [operation for operation in jwk["key_ops"] if not _is_private(operation)]
    return public


def _is_private(operation: object) -> bool:
    return isinstance(operation, str) and operation in _PRIVATE_OPERATIONS


def permits(jwk: Mapping[str, Any], operation: str, *, explicit: bool = False) -> bool:
    """Return True if libjose would let *jwk* do *operation*.

    A key without restrictions permits every operation, unless the permission has to be *explicit*.
    """
    if "use" not in jwk and "key_ops" not in jwk:
        return not explicit
    use, operations = jwk.get("use", ""), jwk.get("key_ops")
    if not isinstance(use, str):
        return False
    return (isinstance(operations, list) and operation in operations) or operation in _OPERATIONS_OF_USE.get(
        use, ()
    )


# --- the request --------------------------------------------------------------------------------------------


def _read_request(body: bytes) -> Mapping[str, Any]:
    try:
        request = load_json(body, _REQUEST_BOUNDS)
    except ValueError:
        raise TangStatus(400) from None
    if not isinstance(request, dict):
        raise TangStatus(400)
    if not permits(request, "deriveKey"):
        raise TangStatus(403)
    if request.get("kty") != "EC" or request.get("alg", "ECMR") != "ECMR":
        raise TangStatus(400)
    return request


def _read_point(request: Mapping[str, Any], curve: Curve) -> Point:
    """Return X, which must be on *curve*.  Raises :class:`Malformed`."""
    name = request.get("crv")
    if not isinstance(name, str) or CURVES.get(name) is not curve:
        raise Malformed("curve-mismatch", "X is not on the key's curve.")
    point = Point(curve, _integer(request.get("x")), _integer(request.get("y")))
    if "d" in request and not _belongs(_integer(request["d"]), point):
        raise Malformed("point-invalid", "X has a private part that is not its own.")
    return point


def _belongs(d: int, point: Point) -> bool:
    """Return True if d·G is *point*.  A client's private key, which it sent in the clear, is no secret of
    ours.
    """
    try:
        return ec.derive_private_key(d, point.curve.implementation).public_key() == point.public_key()
    except ValueError:
        return False


def _integer(text: object) -> int:
    """Return a big-endian number in base64url.  Like libjose, and unlike parse_point, it takes any number of
    leading zeros, and only the alphabet's own characters, without padding and without stray bits at the end.
    """
    if not isinstance(text, str):
        raise Malformed("point-invalid", "A number is not text.")
    try:
        return int.from_bytes(unb64u(text), "big")
    except ValueError:
        raise Malformed("point-invalid", "A number is not base64url.") from None


# --- JSON as jansson reads it -------------------------------------------------------------------------------

#: An escape that jansson reads: no NUL, and surrogates only in pairs.
_GOOD_ESCAPE: Final = re.compile(
    r"""\\(?: ["\\/bfnrt]
            | u(?! 0000 | [dD][89a-fA-F] )[0-9a-fA-F]{4}
            | u[dD][89abAB][0-9a-fA-F]{2} \\u[dD][c-fC-F][0-9a-fA-F]{2} )""",
    re.VERBOSE,
)


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError("an integer does not fit into 64 bits")
    return number


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number does not fit into a double")
    return number


def _parse_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


_DECODER: Final = json.JSONDecoder(
    parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_constant
)


def load_json(text: bytes, bounds: Bounds = _FILE_BOUNDS) -> dict[str, Any] | list[Any]:
    """Return an object or array within *bounds*; of members with the same name the last counts.

    Raises :class:`ValueError` for text that jansson does not read either: text that is not UTF-8, NaN,
    numbers that fit neither 64 bits nor a double, NUL, half surrogate pairs.  The nesting that Python reads
    depends on its version; jansson reads 2,048.
    """
    check_bounds(text, bounds)
    characters = text.decode()
    try:
        value = _DECODER.decode(characters)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, (dict, list)):
        raise ValueError("neither an object nor an array")  # noqa: TRY004 - the text is wrong, not a caller's type
    # The text is JSON, so a backslash can only start an escape.
    if "\\" in characters and "\\" in _GOOD_ESCAPE.sub("", characters):
        raise ValueError("an escape stands for no character")
    return value

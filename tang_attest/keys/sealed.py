"""Private keys at rest: PKCS #8 inside a JWE under a key made from the server's secret.

The JWE's protected header names the key's thumbprint and use, and both are compared when it is opened, so
whoever can write to the database cannot give one device's key to another or turn a signing key into an exchange
key.  PKCS #8 rather than a JWK keeps the scalar out of Python integers.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto.common import JWException, base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from tang_attest.errors import Unavailable
from tang_attest.keys.jwk import EcSigner
from tang_attest.keys.secret import ServerSecret
from tang_attest.ports import SealedKey
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.points import CURVES

#: Opened keys kept ready.  One costs about 3 KB; opening one costs about as much as an exchange.
_CACHE_SIZE: Final = 4096

_Opened = TypeVar("_Opened", ExchangeKey, EcSigner)


class SealedKeys:
    """Makes, seals and opens private keys (:class:`tang_attest.ports.KeyStore`)."""

    def __init__(self, secret: ServerSecret) -> None:
        self._sealing_key = _oct(secret.derive("seal"))
        # Keyed by kid and sealed text, which come fresh from the database each time: a key that was destroyed
        # there is never found here, nor one under the name of another.
        self._exchange: OrderedDict[tuple[str, str], ExchangeKey] = OrderedDict()
        self._signers: OrderedDict[tuple[str, str], EcSigner] = OrderedDict()

    def create(self, use: str, curve: str, now: datetime) -> SealedKey:
        """A new key for *use* (``exchange`` or ``sign``) on *curve*."""
        return self.seal(use, ec.generate_private_key(CURVES[curve].implementation), now)

    def seal(self, use: str, private: ec.EllipticCurvePrivateKey, now: datetime) -> SealedKey:
        """An existing key, sealed.  Raises ``key-malformed`` for another curve."""
        public = ExchangeKey(private)  # also of signing keys: the point and its thumbprint are computed alike
        plain = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        header = json.dumps({"alg": "dir", "enc": "A256GCM", "kid": public.kid, "use": use})
        jwe = JWE(plain, protected=header)
        jwe.add_recipient(self._sealing_key)
        return SealedKey(
            public.kid, use, public.curve.name, public.public.members(), jwe.serialize(True), now
        )

    def open_exchange(self, key: SealedKey) -> ExchangeKey:
        """The exchange key, ready for use.  Raises ``internal`` when it cannot be what the database says."""
        return self._cached(self._exchange, key, "exchange", ExchangeKey)

    def open_signer(self, key: SealedKey) -> EcSigner:
        """The signing key, ready for use.  Raises ``internal`` as :meth:`open_exchange` does."""
        return self._cached(self._signers, key, "sign", EcSigner)

    def _cached(
        self,
        cache: OrderedDict[tuple[str, str], _Opened],
        key: SealedKey,
        use: str,
        make: Callable[[ec.EllipticCurvePrivateKey], _Opened],
    ) -> _Opened:
        name = (key.kid, key.sealed)
        opened = cache.get(name)
        if opened is None:
            opened = cache[name] = make(self._unseal(key, use))
            if len(cache) > _CACHE_SIZE:
                cache.popitem(last=False)
        else:
            cache.move_to_end(name)
        return opened

    def _unseal(self, key: SealedKey, use: str) -> ec.EllipticCurvePrivateKey:
        jwe = JWE(algs=["dir", "A256GCM"])
        try:
            jwe.deserialize(key.sealed, self._sealing_key)
        except JWException:
            raise Unavailable("internal", f"Key {key.kid} was sealed under another secret.") from None
        if (jwe.jose_header.get("kid"), jwe.jose_header.get("use")) != (key.kid, use):
            raise Unavailable("internal", f"Key {key.kid} is not the key that its record names.")
        private = serialization.load_der_private_key(jwe.payload, None)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or ExchangeKey(private).kid != key.kid:
            raise Unavailable("internal", f"Key {key.kid} is not the key that its record names.")
        return private


class SessionBox:
    """Seals what the Verifier knows between the two requests of an enrollment, for the device to carry."""

    def __init__(self, secret: ServerSecret) -> None:
        self._key = _oct(secret.derive("session"))

    def seal(self, payload: bytes) -> str:
        """A compact JWE around *payload*."""
        jwe = JWE(payload, protected=json.dumps({"alg": "dir", "enc": "A256GCM"}))
        jwe.add_recipient(self._key)
        sealed: str = jwe.serialize(True)
        return sealed

    def open(self, text: str) -> bytes | None:
        """The payload, or ``None`` when *text* was not sealed here."""
        jwe = JWE(algs=["dir", "A256GCM"])
        try:
            jwe.deserialize(text, self._key)
        except (JWException, ValueError, TypeError, KeyError):
            return None
        payload: bytes = jwe.payload
        return payload


def _oct(key: bytes) -> JWK:
    return JWK(kty="oct", k=base64url_encode(key))

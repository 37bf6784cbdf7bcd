"""Private keys at rest: PKCS #8, or a key that the server's TPM wrapped, inside a JWE under a key of the
server's secret.

The JWE's protected header names the key's thumbprint, its use, and its holder: the AK that it answers, or
``open`` (:func:`tang_attest.ports.keys.holder`).  All three are compared when it is opened, also of a key in
the TPM.  So an attacker who can write to the database cannot give one machine's key to another, open a
machine's key to every client, or turn a signing key into an exchange key: the device's row names its AK, and
the key names the AK that it answers.

PKCS #8 rather than a JWK keeps the scalar out of Python integers.  A key in the TPM has a ``cty`` (RFC 7516,
section 4.1.12), which is authenticated like the rest of the header.
"""

from __future__ import annotations

import copy
import hmac
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
from tang_attest.keys.server_tpm import ServerTpm, TpmExchangeKey
from tang_attest.keys.tpm import WrappedKey
from tang_attest.ports.keys import OPEN, EncryptedKey
from tang_attest.protocol.exchange import ExchangeKey, Multiplier
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.protocol.values.points import CURVES
from tang_attest.service.unlock.exchanging import run_in_tpm

#: Opened keys kept ready.  One costs about 3 KB; opening one costs about as much as an exchange.
_CACHE_SIZE: Final = 4096

#: A JWE before it is read; only copies of it are.  A new one copies all that jwcrypto knows of headers, which
#: takes twice as long as the decryption.
_UNREAD: Final = JWE(algs=["dir", "A256GCM"])

#: The content type of a key that a TPM wrapped; PKCS #8 has none.
_IN_TPM: Final = "tpm2-wrapped-key"
#: The header's member that names the holder.
_HOLDER: Final = "holder"

_Opened = TypeVar("_Opened", Multiplier, EcSigner)


class EncryptedKeys:
    """Makes, encrypts and opens private keys (:class:`tang_attest.ports.keys.KeyStore`); exchange keys in
    *tpm*, if given.
    """

    def __init__(self, secret: ServerSecret, tpm: ServerTpm | None = None) -> None:
        self._key = _oct(secret.derive("seal"))
        self.tpm = tpm or ServerTpm()
        # Keyed by kid, JWE and holder, which come fresh from the database each time: a key that was destroyed
        # there is never found here, nor one under the name of another or for another.
        self._exchange: OrderedDict[tuple[str, str, str], Multiplier] = OrderedDict()
        self._signers: OrderedDict[tuple[str, str, str], EcSigner] = OrderedDict()

    def create(self, use: str, curve: str, now: datetime, holder: str = OPEN) -> EncryptedKey:
        """Create a key for *use* (``exchange`` or ``sign``) on *curve*."""
        return self.encrypt(use, ec.generate_private_key(CURVES[curve].implementation), now, holder)

    async def create_exchange(self, curve: str, now: datetime, holder: str) -> EncryptedKey:
        """Create an exchange key for *holder*: in the TPM, on its strongest curve, or else on *curve*.

        Raises ``server-tpm-unavailable``: where there is a TPM, no key is made beside it.
        """
        if self.tpm.tcti is None:
            return self.create("exchange", curve, now, holder)
        wrapped = await run_in_tpm(self.tpm, self.tpm.create)
        key = TpmExchangeKey(wrapped, self.tpm)
        return self._encrypted("exchange", key, wrapped.encode(), now, holder, cty=_IN_TPM)

    async def check_tpm(self) -> None:
        """Raise ``server-tpm-unavailable`` when there is a TPM and it does not answer."""
        if self.tpm.tcti is not None:
            await run_in_tpm(self.tpm, self.tpm.check)

    async def check_key(self, key: EncryptedKey, *, load: bool = False) -> None:
        """Raise ``server-tpm-unavailable`` or ``server-tpm-foreign`` when *key* cannot be used now.

        With *load* the TPM has to load it; without, the Name of the key above it is compared.
        """
        opened = self.open_exchange(key)
        if isinstance(opened, TpmExchangeKey):
            await run_in_tpm(opened.place, opened.load if load else opened.check)

    def is_in_tpm(self, key: EncryptedKey) -> bool:
        """Read the header, which is authentic only once the key is opened."""
        try:
            header = json.loads(unb64u(key.jwe.split(".", maxsplit=1)[0]))
        except (ValueError, RecursionError):
            return False
        return isinstance(header, dict) and header.get("cty") == _IN_TPM

    def encrypt(
        self, use: str, private: ec.EllipticCurvePrivateKey, now: datetime, holder: str = OPEN
    ) -> EncryptedKey:
        """Return an existing key, encrypted.  Raises ``key-malformed`` for another curve."""
        public = ExchangeKey(private)  # also of signing keys: the point and its thumbprint are computed alike
        plain = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._encrypted(use, public, plain, now, holder)

    def rebind(self, key: EncryptedKey) -> str:
        """Return the JWE of a key from before keys named their holder, with its holder in it.

        Only for the upgrade from there (store/maintenance/resealing.py).  Raises ``internal`` when the key
        does not open.
        """
        plain, header = self._decrypt(key, key.use)
        marks = {"cty": _IN_TPM} if header.get("cty") == _IN_TPM else {}
        return self._encrypt(plain, key.kid, key.use, key.holder, marks)

    def rewrap(self, text: str, new: EncryptedKeys) -> str:
        """Return the JWE *text* encrypted by *new*, with the same header.  Raises ``internal`` when it does
        not open.
        """
        try:
            jwe = _read(text, self._key)
        except (JWException, ValueError, TypeError, KeyError):
            raise Unavailable("internal", "A key was encrypted under another secret.") from None
        made = JWE(jwe.payload, protected=json.dumps(jwe.jose_header))
        made.add_recipient(new._key)
        encrypted: str = made.serialize(True)
        return encrypted

    def _encrypted(
        self, use: str, key: Multiplier, plain: bytes, now: datetime, holder: str, **marks: str
    ) -> EncryptedKey:
        text = self._encrypt(plain, key.kid, use, holder, marks)
        return EncryptedKey(
            key.kid, use, key.curve.name, key.public.members(), text, created_at=now, holder=holder
        )

    def _encrypt(self, plain: bytes, kid: str, use: str, holder: str, marks: Mapping[str, str]) -> str:
        header = {"alg": "dir", "enc": "A256GCM", "kid": kid, "use": use, _HOLDER: holder, **marks}
        jwe = JWE(plain, protected=json.dumps(header))
        jwe.add_recipient(self._key)
        text: str = jwe.serialize(True)
        return text

    def open_exchange(self, key: EncryptedKey) -> Multiplier:
        """Return the exchange key, ready for use.

        Raises ``internal`` when it is not the key that the database names, and ``registry-tampered`` when it
        answers another holder than the database names.  A key in the TPM is not loaded here: its ``check``
        shows if it is usable.
        """
        return self._cached(self._exchange, key, self._open_exchange)

    def open_signer(self, key: EncryptedKey) -> EcSigner:
        """Return the signing key, ready for use.  Raises ``internal`` as :meth:`open_exchange` does."""
        return self._cached(self._signers, key, self._open_signer)

    def _cached(
        self,
        cache: OrderedDict[tuple[str, str, str], _Opened],
        key: EncryptedKey,
        open_one: Callable[[EncryptedKey], _Opened],
    ) -> _Opened:
        name = (key.kid, key.jwe, key.holder)
        opened = cache.get(name)
        if opened is None:
            opened = cache[name] = open_one(key)
            if len(cache) > _CACHE_SIZE:
                cache.popitem(last=False)
        else:
            cache.move_to_end(name)
        return opened

    def _open_exchange(self, key: EncryptedKey) -> Multiplier:
        if not self.is_in_tpm(key):
            return self._own_key(key, "exchange")[0]
        try:
            opened = TpmExchangeKey(WrappedKey.decode(self._open(key, "exchange")), self.tpm)
        except ValueError:
            raise _not_the_key(key) from None
        if opened.kid != key.kid:
            raise _not_the_key(key)
        return opened

    def _open_signer(self, key: EncryptedKey) -> EcSigner:
        return EcSigner(self._private_key(key, "sign"))

    def _private_key(self, key: EncryptedKey, use: str) -> ec.EllipticCurvePrivateKey:
        return self._own_key(key, use)[1]

    def _own_key(self, key: EncryptedKey, use: str) -> tuple[ExchangeKey, ec.EllipticCurvePrivateKey]:
        """Return the key that the record names, of either use, with the computed thumbprint that proves it."""
        private = serialization.load_der_private_key(self._open(key, use), None)
        if isinstance(private, ec.EllipticCurvePrivateKey) and (made := ExchangeKey(private)).kid == key.kid:
            return made, private
        raise _not_the_key(key)

    def _open(self, key: EncryptedKey, use: str) -> bytes:
        plain, header = self._decrypt(key, use)
        if not hmac.compare_digest(str(header.get(_HOLDER)), key.holder):
            raise Unavailable(
                "registry-tampered", f"Key {key.kid} answers another holder than its record names."
            )
        return plain

    def _decrypt(self, key: EncryptedKey, use: str) -> tuple[bytes, Mapping[str, object]]:
        try:
            jwe = _read(key.jwe, self._key)
        except JWException:
            raise Unavailable("internal", f"Key {key.kid} was encrypted under another secret.") from None
        if (jwe.jose_header.get("kid"), jwe.jose_header.get("use")) != (key.kid, use):
            raise _not_the_key(key)
        plain: bytes = jwe.payload
        return plain, jwe.jose_header


def _not_the_key(key: EncryptedKey) -> Unavailable:
    return Unavailable("internal", f"Key {key.kid} is not the key that its record names.")


class SessionEncryption:
    """Encrypts the state of an enrollment between its two requests, for the device to carry."""

    def __init__(self, secret: ServerSecret) -> None:
        self._key = _oct(secret.derive("session"))

    def encrypt(self, payload: bytes) -> str:
        """Return a compact JWE around *payload*."""
        jwe = JWE(payload, protected=json.dumps({"alg": "dir", "enc": "A256GCM"}))
        jwe.add_recipient(self._key)
        text: str = jwe.serialize(True)
        return text

    def decrypt(self, text: str) -> bytes | None:
        """Return the payload, or ``None`` if *text* was not encrypted here."""
        try:
            jwe = _read(text, self._key)
        except (JWException, ValueError, TypeError, KeyError):
            return None
        payload: bytes = jwe.payload
        return payload


def _read(text: str, key: JWK) -> JWE:
    """Return the JWE *text*, opened with *key*.  Raises what jwcrypto raises for another text or key."""
    jwe = copy.copy(_UNREAD)
    jwe.deserialize(text, key)
    return jwe


def _oct(key: bytes) -> JWK:
    return JWK(kty="oct", k=base64url_encode(key))

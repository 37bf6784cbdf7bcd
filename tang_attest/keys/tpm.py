"""The TPM of the server's own machine: one connection, and the few commands that keys in it need.

Rules of this module:

* No tpm2_pytss type or exception leaves it: a failure raises :class:`TpmFailed`.
* Nothing here waits for another thread or repeats anything; :mod:`tang_attest.keys.server_tpm` does.
* A key's authorization value is never on the bus: it goes to the TPM encrypted when the key is made
  (TPM2_Create), and proves itself by an HMAC afterwards (TPM 2.0 Library, part 1, "Session-based
  authorizations").

Command names are those of the Trusted Platform Module Library, part 3: Commands, revision 1.59.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_ECC, TPM2_SE, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_ECC_POINT,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_ECC_POINT,
    TPMS_SENSITIVE_CREATE,
    TPMT_SYM_DEF,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from tang_attest.protocol.values.points import CURVES, Point

#: The strongest first: a TPM need not have P-521 (TCG PC Client Platform TPM Profile, "ECC curves").
_CURVES: Final = {
    "P-521": (TPM2_ECC.NIST_P521, "ecc521"),
    "P-384": (TPM2_ECC.NIST_P384, "ecc384"),
    "P-256": (TPM2_ECC.NIST_P256, "ecc256"),
}
_OWN: Final = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.DECRYPT
)
#: Handle of the storage root key (TCG TPM v2.0 Provisioning Guidance, section 7.5.1).
_STORAGE_HANDLE: Final = 0x81000001
_STORAGE_TEMPLATE: Final = TPM2B_PUBLIC.parse(
    "ecc256:aes128cfb", nameAlg=TPM2_ALG.SHA256, objectAttributes=_OWN | TPMA_OBJECT.RESTRICTED
)
#: These give each process its own view.  Any other belongs to this server alone (tang_attest/config.py asks
#: for one worker), so its objects were left by a worker that was killed.
_SHARED: Final = ("device:/dev/tpmrm", "tabrmd:")
_TRANSIENT_HANDLES: Final = 0x80000000
_SESSION_HANDLES: Final = 0x02000000
_ESYS_LAYER: Final = 0x00FF0000
#: TPM_RC_BAD_AUTH of the first session (part 2, section 6.6.3); in the HMAC's case it may be
#: TPM_RC_AUTH_FAIL.
_BAD_AUTH: Final = 0x9A2
_AUTH_FAIL: Final = 0x98E


class TpmFailed(Exception):
    """A command, or the way to the TPM, failed.  ``code`` is the TSS2_RC; ``refused``: the TPM itself refused
    it.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        # Format-one codes are about the command; warnings and failure mode are about the TPM (part 2, section
        # 6.6).
        self.refused = not code & _ESYS_LAYER and bool(code & 0x80)


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """An ECDH key that only the TPM which made it can use.

    ``parent`` is the Name of the storage key above it, ``auth`` its authorization value, ``public`` the
    TPMT_PUBLIC and ``private`` the buffer of the TPM2B_PRIVATE, which the TPM encrypted for itself.
    """

    parent: bytes
    auth: bytes = field(repr=False)
    public: bytes
    private: bytes = field(repr=False)

    def encode(self) -> bytes:
        """TPM2B_NAME, TPM2B_AUTH, TPM2B_PUBLIC and TPM2B_PRIVATE, one after the other."""
        parts = (self.parent, self.auth, self.public, self.private)
        return b"".join(len(part).to_bytes(2, "big") + part for part in parts)

    @classmethod
    def decode(cls, data: bytes) -> WrappedKey:
        """Rebuild a key from the output of :meth:`encode`.  Raises :class:`ValueError`.  Not checked: the
        structures' contents.
        """
        parts = []
        for _ in range(4):
            end = 2 + int.from_bytes(data[:2], "big")
            if len(data) < end:
                raise ValueError("the structure is too short")
            parts.append(data[2:end])
            data = data[end:]
        if data:
            raise ValueError("there is something after the structure")
        return cls(*parts)

    def point(self) -> Point:
        """The public point.  Raises :class:`ValueError` when there is none on a supported curve."""
        try:
            area = TPM2B_PUBLIC.unmarshal(len(self.public).to_bytes(2, "big") + self.public)[0].publicArea
        except TSS2_Exception as error:
            raise ValueError("the structure is not a TPM2B_PUBLIC") from error
        for name, (curve, _) in _CURVES.items():
            if int(area.type) == int(TPM2_ALG.ECC) and int(area.parameters.eccDetail.curveID) == int(curve):
                return Point(CURVES[name], _number(area.unique.ecc.x), _number(area.unique.ecc.y))
        raise ValueError("the key is on no curve that we use")


class OwnerAuthNeeded(TpmFailed):
    """The owner hierarchy has a password, and none or a wrong one was given."""


class Tpm:
    """A connection to the TPM at *tcti*; not for several threads at a time.  Every method raises
    :class:`TpmFailed`.

    *owner_auth* gives the password of the owner hierarchy, or ``None``; it is asked only when the TPM wants
    one.
    """

    def __init__(self, tcti: str, owner_auth: Callable[[], bytes | None] = lambda: None) -> None:
        self._owner_auth = owner_auth
        with _failures():
            self._esapi = ESAPI(tcti)
        self._loaded: tuple[WrappedKey, Any] | None = None
        self._held: list[Any] = []
        try:
            with _failures():
                if not tcti.startswith(_SHARED):
                    self._flush_leftovers()
                self._storage, self.parent = self._find_storage_key()
                self._session = self._start_session()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove this connection's objects from the TPM, and leave it."""
        with suppress(TSS2_Exception):
            self._unload()
            for handle in self._held:
                self._esapi.flush_context(handle)
        self._held.clear()
        self._esapi.close()

    def probe(self) -> None:
        """Return True if the storage key still is at its handle: not after the TPM was reset, cleared or
        replaced.
        """
        with _failures():
            _, name, _ = self._esapi.read_public(self._storage)
        if bytes(name.name) != self.parent:
            raise TpmFailed(0, "its storage key is another one")

    def strongest_curve(self) -> str:
        """Return the strongest supported curve that the TPM has (``P-521``, ``P-384``, ``P-256``)."""
        with _failures():
            _, found = self._esapi.get_capability(TPM2_CAP.ECC_CURVES, 0, 64)
        known = {int(curve) for curve in found.data.eccCurves}
        for name, (curve, _) in _CURVES.items():
            if int(curve) in known:
                return name
        raise TpmFailed(0, "it has none of the curves P-521, P-384 and P-256")

    def create(self, curve: str) -> WrappedKey:
        """TPM2_Create: an ECDH key on *curve* that this TPM alone has, and never gives away."""
        # The last byte is not zero: a TPM drops zeros at the end of an authorization value.
        auth = os.urandom(31) + b"\x01"
        template = TPM2B_PUBLIC.parse(
            f"{_CURVES[curve][1]}:ecdh-sha256", nameAlg=TPM2_ALG.SHA256, objectAttributes=_OWN
        )
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=auth))
        with _failures():
            self._unload()  # a TPM without a resource manager has room for three objects, and this takes one
            private, public, *_ = self._esapi.create(
                self._storage, sensitive, template, session1=self._session
            )
        area = public.publicArea
        if int(area.objectAttributes) != int(_OWN):
            raise TpmFailed(0, "it made a key with other attributes than were asked for")
        return WrappedKey(self.parent, auth, bytes(area.marshal()), bytes(private.buffer))

    def zgen(self, key: WrappedKey, x: Point) -> tuple[int, int]:
        """TPM2_Load, unless *key* was the last one used, and TPM2_ECDH_ZGen: the coordinates of s·X."""
        size = x.curve.size
        point = TPM2B_ECC_POINT(TPMS_ECC_POINT(x=x.x.to_bytes(size, "big"), y=x.y.to_bytes(size, "big")))
        with _failures():
            handle = self._load(key)
            product = self._esapi.ecdh_zgen(handle, point, session1=self._session).point
        return _number(product.x), _number(product.y)

    def load(self, key: WrappedKey) -> None:
        """TPM2_Load: that *key* is this TPM's."""
        with _failures():
            self._load(key)

    def _load(self, key: WrappedKey) -> Any:
        if self._loaded is not None and self._loaded[0] is key:
            return self._loaded[1]
        self._unload()
        private = TPM2B_PRIVATE(key.private)
        public, _ = TPM2B_PUBLIC.unmarshal(len(key.public).to_bytes(2, "big") + key.public)
        # The storage key's authorization value is empty, so there is nothing to protect; the loaded object
        # shows in the Name that the HMAC of the next command covers.
        handle = self._esapi.load(self._storage, private, public)
        self._loaded = key, handle
        self._esapi.tr_set_auth(handle, key.auth)
        return handle

    def _unload(self) -> None:
        if self._loaded is not None:
            _, handle = self._loaded
            self._loaded = None
            self._esapi.flush_context(handle)

    def _find_storage_key(self) -> tuple[Any, bytes]:
        """The storage root key, persistent if there is one of the same template, and its Name."""
        with suppress(TSS2_Exception):
            handle = self._esapi.tr_from_tpmpublic(_STORAGE_HANDLE)
            public, name, _ = self._esapi.read_public(handle)
            public.publicArea.unique.ecc = TPMS_ECC_POINT()
            if bytes(public.marshal()) == bytes(_STORAGE_TEMPLATE.marshal()):
                return handle, bytes(name.name)
        try:
            handle, public, *_ = self._esapi.create_primary(None, _STORAGE_TEMPLATE, ESYS_TR.OWNER)
        except TSS2_Exception as error:
            if int(error.rc) != _BAD_AUTH:
                raise
            handle, public = self._create_with_password()
        self._held.append(handle)
        return handle, bytes(public.get_name())

    def _create_with_password(self) -> tuple[Any, Any]:
        """TPM2_CreatePrimary with the owner's password, which proves itself by an HMAC and is not on the bus."""
        password = self._owner_auth()
        if password is None:
            raise OwnerAuthNeeded(_BAD_AUTH, "its owner hierarchy has a password")
        plain = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        session = self._esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, plain, TPM2_ALG.SHA256
        )
        try:
            self._esapi.tr_set_auth(ESYS_TR.OWNER, password)
            handle, public, *_ = self._esapi.create_primary(
                None, _STORAGE_TEMPLATE, ESYS_TR.OWNER, session1=session
            )
        except TSS2_Exception as error:
            if int(error.rc) not in (_BAD_AUTH, _AUTH_FAIL):
                raise
            raise OwnerAuthNeeded(
                _BAD_AUTH, "the password given is not that of its owner hierarchy"
            ) from error
        finally:
            with suppress(TSS2_Exception):
                self._esapi.flush_context(session)
        return handle, public

    def _start_session(self) -> Any:
        """TPM2_StartAuthSession, salted to the storage key, that encrypts the first parameter in both
        directions.
        """
        cipher = TPMT_SYM_DEF(
            algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
        )
        session = self._esapi.start_auth_session(
            self._storage, ESYS_TR.NONE, TPM2_SE.HMAC, cipher, TPM2_ALG.SHA256
        )
        self._held.append(session)
        self._esapi.trsess_set_attributes(
            session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT | TPMA_SESSION.DECRYPT
        )
        return session

    def _flush_leftovers(self) -> None:
        for first in (_TRANSIENT_HANDLES, _SESSION_HANDLES):
            _, found = self._esapi.get_capability(TPM2_CAP.HANDLES, first, 64)
            for handle in found.data.handles:
                self._esapi.flush_context(self._esapi.tr_from_tpmpublic(handle))


def _number(octets: Any) -> int:
    return int.from_bytes(bytes(octets), "big")


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except TSS2_Exception as error:
        raise TpmFailed(int(error.rc), str(error)) from error

"""HTTPS: the server's certificate and key, and the certificates it demands of clients."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from tang_attest.errors import Malformed
from tang_attest.web.trust import context_for

_WHAT: Final = {
    "tls_certificate": "certificate",
    "tls_key": "key",
    "tls_client_ca": "certificate",
    "console_certificate": "certificate",
    "console_key": "key",
}
#: The first line of a CRL in PEM.
CRL: Final = b"-----BEGIN X509 CRL-----"
#: Reads (of 256 KiB at most) from a client that was refused, before it is cut off.
_PATIENCE: Final = 4


def server_context(
    certificate: Path,
    key: Path,
    client_ca: Path | None = None,
    *,
    names: tuple[str, str] = ("tls_certificate", "tls_key"),
) -> ssl.SSLContext:
    """Return a context that shows *certificate* (a PEM chain) and has its *key* (PEM, without a passphrase).

    With *client_ca* (see :func:`_demand_certificates`) a client without a certificate of it gets no
    connection.  *names* are the settings of the two files.  Raises ``setting-invalid`` naming the setting
    whose file is wrong.
    """
    _check_pem(names[0], certificate, x509.load_pem_x509_certificates)
    _check_pem(names[1], key, lambda pem: serialization.load_pem_private_key(pem, None))
    context = context_for(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        # Each of the two files can be read.
        what = f"it is not the key of {names[0]}" if error.reason == "KEY_VALUES_MISMATCH" else str(error)
        raise Malformed("setting-invalid", f"Setting {names[1]}: {what}.") from None
    if client_ca is not None:
        _demand_certificates(context, client_ca)
    return context


def spki_pin(certificate: Path) -> str:
    """Return the pin of the first certificate's public key, as curl's ``--pinnedpubkey`` and the pin's ``spki`` take it.

    It is ``sha256//`` and the SHA-256 of the SubjectPublicKeyInfo in base64 (RFC 7469, 2.4).  The file was
    checked by :func:`server_context`.
    """
    key = x509.load_pem_x509_certificates(certificate.read_bytes())[0].public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256//{base64.b64encode(hashlib.sha256(der).digest()).decode()}"


def shown_name(transport: asyncio.BaseTransport | None) -> str | None:
    """Return the common name in the client's verified certificate; for the log only."""
    shown = transport.get_extra_info("peercert") if transport is not None else None
    for part in (shown or {}).get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None


def _demand_certificates(context: ssl.SSLContext, authorities: Path) -> None:
    """Demand of every client a chain to a self-signed CA in *authorities* (PEM), whose leaf is good for TLS
    clients (RFC 5280).  Intermediate CAs may be in the file too.

    If the file has CRLs too, each CA that issues to clients needs a current one in it, or OpenSSL refuses its
    certificates.  Not checked: names.  The certificate's subject decides nothing.
    """
    _check_pem("tls_client_ca", authorities, x509.load_pem_x509_certificates)
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise Malformed("setting-invalid", f"Setting tls_client_ca: {authorities}: {error.reason}.") from None
    if CRL in authorities.read_bytes():
        _check_pem("tls_client_ca", authorities, x509.load_pem_x509_crl, "CRL")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    context.verify_mode = ssl.CERT_REQUIRED
    context.sslobject_class = _Explaining


class _Explaining(ssl.SSLObject):
    """A handshake that tells the client why it failed.

    The event loop closes the connection of a failed handshake at once, and OpenSSL's alert for the client
    stays in memory.  So the failure is reported as a wait, for which the loop sends the pending bytes.  A
    client that has written its request already reads the alert after that, and closes.  The loop ends the
    connection then, at its own time limit, or when more than a request arrives.
    """

    _failed: ssl.SSLError | None = None
    _left: int = _PATIENCE

    def do_handshake(self) -> None:
        if self._failed is not None:
            self._left -= 1
            if not self._left:
                raise self._failed
            raise ssl.SSLWantReadError
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as error:
            self._failed = error
            raise ssl.SSLWantReadError from None


def _check_pem(setting: str, path: Path, load: Callable[[bytes], object], what: str = "") -> None:
    """Raise ``setting-invalid`` naming *setting* unless *load* reads the file.

    OpenSSL alone would not tell the two files apart, and would ask a terminal for a passphrase.
    """
    try:
        load(path.read_bytes())
    except OSError as error:
        raise Malformed("setting-invalid", f"Setting {setting}: {path}: {error.strerror}.") from None
    except TypeError:
        raise Malformed("setting-invalid", f"Setting {setting}: {path} needs a passphrase.") from None
    except (ValueError, UnsupportedAlgorithm):
        what = what or _WHAT[setting]
        raise Malformed("setting-invalid", f"Setting {setting}: {path} is not a PEM {what}.") from None

"""HTTPS: the server's certificate and key."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from tang_attest.errors import Malformed


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context that shows *certificate* (a PEM chain) and has its *key* (PEM, without a passphrase).

    Raises ``setting-invalid`` naming the setting whose file is wrong.
    """
    _check_pem("tls_certificate", certificate, x509.load_pem_x509_certificates)
    _check_pem("tls_key", key, lambda pem: serialization.load_pem_private_key(pem, None))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        # Each of the two is good for itself.
        what = "it is not the key of tls_certificate" if error.reason == "KEY_VALUES_MISMATCH" else str(error)
        raise Malformed("setting-invalid", f"Setting tls_key: {what}.") from None
    return context


def _check_pem(setting: str, path: Path, load: Callable[[bytes], object]) -> None:
    """Raise ``setting-invalid`` naming *setting* unless *load* reads the file.

    OpenSSL alone would not say which of the two files is wrong, and would ask a terminal for a passphrase.
    """
    try:
        load(path.read_bytes())
    except OSError as error:
        raise Malformed("setting-invalid", f"Setting {setting}: {path}: {error.strerror}.") from None
    except TypeError:
        raise Malformed("setting-invalid", f"Setting {setting}: {path} needs a passphrase.") from None
    except (ValueError, UnsupportedAlgorithm):
        what = setting.removeprefix("tls_")
        raise Malformed("setting-invalid", f"Setting {setting}: {path} is not a PEM {what}.") from None

"""An owner's CA for the certificates of machines (docs/how-to/tls.md), and what it must not have issued.

Made anew by each test; nothing here is checked in.
"""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def named(name: str) -> x509.Name:
    """A name that has a common name only."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def write_key(path: Path, key: Any) -> Path:
    """The private key as PEM without a passphrase, for its owner's eyes."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return path


class ClientCa:
    """A CA; *directory* gets its certificate (``file``) and everything it issues."""

    def __init__(self, directory: Path, name: str = "machines of pi-a") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = named(name)
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder(self.subject, self.subject, self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 400 * DAY)
            .not_valid_after(now + 400 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.file = directory / "ca.pem"
        self.file.write_bytes(self._pem(self.certificate))

    @staticmethod
    def _pem(thing: x509.Certificate | x509.CertificateRevocationList) -> bytes:
        return thing.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, name: str, public: Any, usage: x509.ObjectIdentifier = CLIENT, days: int = 30
    ) -> x509.Certificate:
        """A certificate; with negative *days* it has expired."""
        return self._builder(name, public, usage, days).sign(self.key, hashes.SHA256())

    def issue_server(self, host: str, public: Any) -> x509.Certificate:
        """A certificate of a TLS server with the name *host*."""
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        builder = self._builder(host, public, SERVER, 30).add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _builder(
        self, name: str, public: Any, usage: x509.ObjectIdentifier, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(self.subject, named(name), public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 100 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )

    def machine(
        self, name: str = "pi-b", usage: x509.ObjectIdentifier = CLIENT, days: int = 30
    ) -> tuple[Path, Path]:
        """Files with a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.directory / f"{name}.crt"
        certificate.write_bytes(self._pem(self.issue(name, key.public_key(), usage, days)))
        return certificate, write_key(certificate.with_suffix(".key"), key)

    def sign(self, request: Path) -> Path:
        """The file with a certificate for a request that somebody else made, who has the key.

        By openssl, as in docs/how-to/tls.md: what tpm2-openssl 1.1 writes into a request stricter parsers refuse.
        """
        certificate, extensions = request.with_suffix(".crt"), self.directory / "client.ext"
        extensions.write_text("extendedKeyUsage=clientAuth\n")
        key = write_key(self.directory / "ca.key", self.key)
        subprocess.run(
            ["openssl", "x509", "-req", "-in", request, "-CA", self.file, "-CAkey", key, "-days", "30",
             "-extfile", extensions, "-out", certificate],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        return certificate

    def revoke(self, *certificates: Path, days: int = 30) -> None:
        """Put a CRL into ``file``; with negative *days* it has expired."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.subject)
            .last_update(now - 50 * DAY)
            .next_update(now + days * DAY)
        )
        for path in certificates:
            serial = x509.load_pem_x509_certificate(path.read_bytes()).serial_number
            entry = x509.RevokedCertificateBuilder(serial, now - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self.key, hashes.SHA256())
        self.file.write_bytes(self._pem(self.certificate) + self._pem(crl))


def server_certificate(directory: Path, *, key: Any = None) -> tuple[Path, Path]:
    """A self-signed certificate of ``localhost`` and 127.0.0.1, and its *key*; by default one on P-256."""
    key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
    now, subject = datetime.now(UTC), named("localhost")
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + 30 * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "server.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path, write_key(path.with_suffix(".key"), key)


def client_context(shown: tuple[Path, Path] | None) -> ssl.SSLContext:
    """TLS context of a machine that shows *shown*; it trusts every server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if shown is not None:
        context.load_cert_chain(*shown)
    return context

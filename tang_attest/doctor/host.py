"""The machine around the server: files, disk, certificate, port."""

from __future__ import annotations

import http.client
import shutil
import ssl
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from tang_attest.config import Settings
from tang_attest.daemon.sockets import try_address
from tang_attest.doctor.asking import ask
from tang_attest.doctor.finding import Finding, failure, problem, warning, well
from tang_attest.errors import TangAttestError
from tang_attest.keys.secret import load_secret
from tang_attest.web.gate.tls import CRL, server_context

#: Free bytes below which there is a warning (the audit record and a backup need them for a while), and a
#: problem (the next flush may need them).
_LOW: Final = 1 << 30
_FULL: Final = 64 << 20
#: A certificate that ends sooner was not renewed in time.
_RENEWED_BEFORE: Final = timedelta(days=14)


def look_at_host(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Return the findings that need no database."""
    yield _secret(settings.state)
    yield from _modes(settings)
    yield _disk(settings.state)
    yield _certificate(settings, now)
    if settings.tls_client_ca is not None:
        yield _client_ca(settings.tls_client_ca, now)
    yield _port(settings)


def _secret(state: Path) -> Finding:
    try:
        load_secret(state)
    except TangAttestError as error:
        return failure("key-encryption key", error)
    return well("key-encryption key", "it can be read, and by its owner only")


def _modes(settings: Settings) -> Iterator[Finding]:
    """Check the modes of files that only the server reads: the database names every device."""
    paths = [settings.state]
    if settings.database is None:
        paths.append(Path(settings.database_url.removeprefix("sqlite:///")))
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # the checks of the database and of the secret report it better
        if stat.S_IMODE(mode) & 0o077:
            yield warning(
                "permissions", f"others than its owner may use {path}", f"run 'chmod go-rwx {path}'"
            )


def _disk(state: Path) -> Finding:
    try:
        free = shutil.disk_usage(state).free
    except OSError as error:
        return problem("disk", f"{state}: {error.strerror}", "check the setting 'state' and the mounts")
    sentence = f"{free / (1 << 20):,.0f} MiB are free at {state}"
    if free < _FULL:
        return problem("disk", sentence, "make room: without it nothing can be written, so nothing is opened")
    if free < _LOW:
        return warning("disk", sentence, "make room, or move old files away")
    return well("disk", sentence)


def _certificate(settings: Settings, now: datetime) -> Finding:
    if settings.tls_certificate is None or settings.tls_key is None:
        return well("tls", "off: evidence and answers need no secrecy (docs/how-to/tls.md)")
    try:
        server_context(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    except TangAttestError as error:
        return failure("tls", error)
    until = x509.load_pem_x509_certificates(settings.tls_certificate.read_bytes())[0].not_valid_after_utc
    return _good_until("tls", "the certificate", until, now, ", and the key is its own")


def _client_ca(path: Path, now: datetime) -> Finding:
    """Check the client CA and its CRLs: an expired CRL refuses every client, too."""
    try:
        pem = path.read_bytes()
        ends = [(c.not_valid_after_utc, "a CA of the clients") for c in x509.load_pem_x509_certificates(pem)]
        if CRL in pem:
            update = x509.load_pem_x509_crl(pem).next_update_utc
            ends += [(update, "the CRL of the clients")] if update is not None else []
    except (OSError, ValueError):
        return warning("tls-clients", f"{path} cannot be read", "see what is said about tls")
    until, what = min(ends)
    return _good_until("tls-clients", what, until, now, ": who shows no certificate gets no connection")


def _good_until(subject: str, what: str, until: datetime, now: datetime, more: str) -> Finding:
    sentence, action = f"{what} is good until {until:%Y-%m-%d}", "renew it, then reload the server"
    if until <= now:
        return problem(subject, f"{what} has expired on {until:%Y-%m-%d}", action)
    if until - now < _RENEWED_BEFORE:
        return warning(subject, sentence, action)
    return well(subject, f"{sentence}{more}")


def _port(settings: Settings) -> Finding:
    if not settings.port:
        return well("port", "a free one is taken at each start")
    where = f"{settings.host} port {settings.port}"
    tls, status, strange = settings.tls_certificate is not None, None, False
    try:
        status = _ask(settings, tls=tls)
    except ssl.SSLError as error:
        # We have no machine's certificate; a demand for one is an answer.
        demanded = settings.tls_client_ca is not None and "ALERT" in str(error.reason)
        status, strange = (200, False) if demanded else (None, True)
    except (ConnectionResetError, http.client.HTTPException):
        strange = True
    except OSError:
        pass
    if status == 200:
        return well("port", f"the server answers at {where}")
    if strange and _answers_otherwise(settings, tls=not tls):
        spoken, said = ("http", "https") if tls else ("https", "http")
        return problem(
            "port",
            f"a server at {where} speaks {spoken}, and these settings say {said}",
            "name the file of that server's settings with --config, or restart the server with these",
        )
    try:
        try_address(settings.host, settings.port)
    except TangAttestError as error:
        return failure("port", error)
    return warning("port", f"nothing listens at {where}", "start it: systemctl start tang-attest")


def _answers_otherwise(settings: Settings, *, tls: bool) -> bool:
    try:
        return _ask(settings, tls=tls) > 0
    except (OSError, http.client.HTTPException):
        return False


def _ask(settings: Settings, *, tls: bool) -> int:
    demanded = settings.tls_client_ca is not None
    return ask(
        settings.host, settings.port, f"{settings.endpoint}/healthz", tls=tls, demands_clients=demanded
    )[0]

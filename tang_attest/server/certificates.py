"""The ends of the server's own certificates, for ``status``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509

from tang_attest.config import Settings
from tang_attest.service.machines.overview import CERTIFICATE_SOON, Notice, Topic, ends


def certificate_ends(settings: Settings, now: datetime) -> Iterator[Notice]:
    """Yield the ends of the certificates that the settings name; a file that cannot be read wants a person."""
    for setting in ("tls_certificate", "tls_client_ca", "console_certificate"):
        path: Path | None = getattr(settings, setting)
        if path is None:
            continue
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a PEM certificate"
            yield Notice(
                topic=Topic.ENDS,
                name=setting,
                sentence=f"{path} cannot be read: {why}",
                at=None,
                attention=True,
                action="run 'tang-attest serve --check', which says what is wrong with each file",
            )
            continue
        # A server shows its chain, whose first certificate is its own; of authorities, the first end counts.
        mine = found if setting == "tls_client_ca" else found[:1]
        until = min(certificate.not_valid_after_utc for certificate in mine)
        action = "renew it, then run 'systemctl reload tang-attest'"
        yield ends(setting, f"certificate {path}", until, now, soon=CERTIFICATE_SOON, action=action)

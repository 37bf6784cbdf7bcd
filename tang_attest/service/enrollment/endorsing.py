"""Verification of EK certificates by the operator's trust anchors: at enrollment, and before a token is
used.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime

from tang_attest.ports.enrollment import EnrollmentStore
from tang_attest.protocol.endorsement.endorsement import (
    EndorsementKey,
    Root,
    certified_key,
    issuer_digest,
    trim_certificate,
    verify_ek_certificate,
)


async def endorse(
    store: EnrollmentStore, certificate: bytes, spki: bytes | None, now: datetime
) -> EndorsementKey:
    """Return the EK *spki* (DER), verified by *certificate*, the contents of an NV index, and an imported
    anchor.

    Without *spki* the key is the certificate's own, and only the chain is verified.  Raises the errors of
    :func:`~tang_attest.protocol.endorsement.endorsement.trim_certificate` and
    :func:`~tang_attest.protocol.endorsement.endorsement.verify_ek_certificate` raise.

    Anchors are looked up by name, because all vendors together have hundreds.  Certificates are parsed in a
    thread, because that takes milliseconds, and an attacker may have written them.
    """
    der = trim_certificate(certificate)
    issuer = await asyncio.to_thread(issuer_digest, der)
    found = await store.find_ek_roots(issuer, hashlib.sha256(der).hexdigest())
    roots = [Root(root.der, root.label) for root in found]

    def verify() -> EndorsementKey:
        return verify_ek_certificate(der, certified_key(der) if spki is None else spki, roots, (), now)

    return await asyncio.to_thread(verify)

"""Trust anchors for EK certificates, from the operator's side."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.enrollment import EkRoot, EnrollmentStore
from tang_attest.ports.world import Clock
from tang_attest.protocol.endorsement.endorsement import parse_roots, subject_digest
from tang_attest.service.audit.actors import Author


class EkRoots:
    """Adds and removes trust anchors; each change is one transaction with its audit entry."""

    def __init__(self, store: EnrollmentStore, clock: Clock, author: Author) -> None:
        self._store, self._clock, self._author = store, clock, author

    async def add(self, data: bytes, label: str | None, known: Collection[str] = ()) -> list[EkRoot]:
        """Return every certificate in *data* (PEM or DER), added as a trust anchor unless its fingerprint is *known*.

        Raises ``certificate-malformed``.
        """
        added = []
        for root in parse_roots(data):
            fingerprint = hashlib.sha256(root.der).hexdigest()
            record = EkRoot(
                fingerprint, label or root.label, root.der, self._clock.now(), subject_digest(root.der)
            )
            if fingerprint not in known:
                await self._store.add_ek_root(record, self._entry("ek-root add", fingerprint))
            added.append(record)
        return added

    async def remove(self, fingerprint: str) -> None:
        """Remove a trust anchor.  Devices that enrolled with it stay.  Raises ``not-found``."""
        await self._store.remove_ek_root(fingerprint, self._entry("ek-root remove", fingerprint))

    def _entry(self, event: str, fingerprint: str) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, None, {"fingerprint": fingerprint})

"""The check of what operators signed, with the passkeys of the database."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tang_attest.ports.store import HasOperators
from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.protocol.passkeys.registered import SignerKey


async def signature_check(store: HasOperators) -> Callable[..., SignatureCheck]:
    """Return a maker of :class:`SignatureCheck` over the passkeys whose rows this server wrote."""
    keys = {
        each.credential_id: SignerKey(each.operator, each.public_key, each.created_at, each.revoked_at)
        for each in await store.operators.list_passkeys()
    }
    return partial(SignatureCheck, keys)

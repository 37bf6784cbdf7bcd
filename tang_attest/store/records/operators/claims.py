"""The claim of a signed act, in the transaction that does the act."""

from __future__ import annotations

import sqlalchemy as sa

from tang_attest.errors import Refused
from tang_attest.ports.claims import ActClaim
from tang_attest.store.records.operators import accounts, acts, passkeys


def use(connection: sa.Connection, claim: ActClaim) -> None:
    """Use up what *claim* names: the request, the passkey's counter, the pending approval.

    Raises ``act-used``, ``act-changed``, ``passkey-unknown``, ``passkey-invalid``, and ``role-missing`` when
    the operator lost the role or was removed meanwhile.
    """
    acts.use_request(connection, claim.request, claim.at)
    operator = accounts.find(connection, claim.operator)
    if operator is None or operator.removed_at is not None or operator.role.value not in claim.roles:
        raise Refused("role-missing", f"Operator '{claim.operator}' lost the role for this meanwhile.")
    passkeys.use(connection, claim.operator, claim.credential_id, claim.sign_count)
    if claim.completes is not None:
        acts.complete_pending(connection, claim.completes)

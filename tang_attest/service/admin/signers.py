"""Signers of policies, for the holder of an admin token (see service/admin/administration.py).

As there, nothing can be forced: a signer whose values would prove nothing needs an operator.
"""

from __future__ import annotations

from tang_attest.ports.world import Clock
from tang_attest.protocol.signed_values.signer import Signer, Signers
from tang_attest.service.admin.tokens import AdminClient
from tang_attest.service.policies.signers import PolicySigners, Posted, SignerStore, SignerTerms


class AdministeredSigners:
    """Every method raises ``policy-not-granted`` first, and then what the operator's use case raises."""

    def __init__(self, store: SignerStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def signers(self, asker: AdminClient, policy: str) -> Signers:
        """Return the signers of a policy, its posted statements and its retired labels."""
        return await self._of(asker, policy).signers(policy)

    async def trust(self, asker: AdminClient, policy: str, terms: SignerTerms) -> Signer:
        """Let statements of a key count."""
        return await self._of(asker, policy).trust(policy, terms)

    async def drop(self, asker: AdminClient, policy: str, name: str) -> None:
        """Let statements of a signer count no more."""
        await self._of(asker, policy).drop(policy, name)

    async def post(self, asker: AdminClient, policy: str, statement: str) -> Posted:
        """Keep a statement for machines that bring none."""
        return await self._of(asker, policy).post(policy, statement)

    async def retire(self, asker: AdminClient, policy: str, label: str) -> None:
        """Let signed values with a label, or below it, count no more."""
        await self._of(asker, policy).retire(policy, label)

    async def reinstate(self, asker: AdminClient, policy: str, label: str) -> None:
        """Let them count again."""
        await self._of(asker, policy).reinstate(policy, label)

    def _of(self, asker: AdminClient, policy: str) -> PolicySigners:
        asker.grant.require_policy(policy)
        return PolicySigners(self._store, self._clock, asker.author)

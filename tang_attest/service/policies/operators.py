"""The number of operators who have to sign what adds trust to a policy."""

from __future__ import annotations

from tang_attest.errors import Refused
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.service.audit.actors import Author


def require_operators(policy: ReferencePolicy, author: Author) -> None:
    """Raise ``operators-required`` unless as many operators signed the change of *author* as *policy* requires.

    An operator at the server is refused as well: they can lower the number first, which the audit record has
    (docs/decisions/console/).
    """
    needed = policy.conditions.operators
    if needed > 1 and len(author.signed) < needed:
        sentence = f"Policy '{policy.name}' requires that {needed} operators of the console sign this."
        raise Refused("operators-required", sentence)

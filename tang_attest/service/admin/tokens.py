"""Tokens of the admin API: creation, revocation, and the grant of a presented token.

A token never grants more than its scopes, over the policies it is limited to.  Its text has 256 random bits,
so that neither guessing nor looking it up by its SHA-256 needs a limit of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tang_attest.errors import Malformed, Refused
from tang_attest.ports.admin import AdminToken, AdminTokenStore, Scope
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.audit.actors import Author, Caller
from tang_attest.service.enrollment.enroll import token_digest

#: The scopes in a sentence.
SCOPES: Final = f"{', '.join(list(Scope)[:-1])} or {list(Scope)[-1]}"


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights of a token's holder.  ``policies`` limits them to those; ``None`` is every policy."""

    name: str
    scopes: frozenset[Scope]
    policies: frozenset[str] | None

    def require(self, scope: Scope) -> None:
        """Raise ``scope-missing`` unless the token has *scope*."""
        if scope not in self.scopes:
            raise Refused("scope-missing", f"Token '{self.name}' lacks the scope '{scope}'.")

    def covers(self, policy: str) -> bool:
        """Return False for a policy that the token is not for."""
        return self.policies is None or policy in self.policies

    def require_policy(self, policy: str) -> None:
        """Raise ``policy-not-granted`` unless the token is for *policy*, which need not exist."""
        if not self.covers(policy):
            raise Refused("policy-not-granted", f"Token '{self.name}' is not for the policy '{policy}'.")

    def require_every_policy(self) -> None:
        """Raise ``policy-not-granted`` for a token that is limited to some policies."""
        if self.policies is not None:
            raise Refused("policy-not-granted", f"Token '{self.name}' is limited to some policies.")


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Client of the admin API: its token's grant, and the origin of its request."""

    grant: Grant
    caller: Caller

    @property
    def author(self) -> Author:
        """Return the author of this client's changes for the audit record."""
        return Author(f"token:{self.grant.name}", self.caller)


class AdminTokens:
    """Each change is one transaction with its audit entry."""

    def __init__(self, store: AdminTokenStore, clock: Clock, random: Randomness, author: Author) -> None:
        self._store, self._clock, self._random, self._author = store, clock, random, author

    async def create(
        self, name: str, scopes: Collection[Scope], policies: Collection[str] | None, valid_for: timedelta
    ) -> tuple[str, AdminToken]:
        """Create a token; return its text (shown once, 43 characters) and its record.

        Raises ``request-malformed`` (name), ``setting-invalid`` (no scope, or a limit to no policy),
        ``not-found`` (a policy), ``name-taken``.
        """
        if not scopes:
            raise Malformed("setting-invalid", f"An admin token needs a scope: {SCOPES}.")
        if policies is not None and not policies:
            raise Malformed("setting-invalid", "A limit to policies names at least one.")
        now, text = self._clock.now(), b64u(self._random.bytes(32))
        token = AdminToken(
            digest=token_digest(text),
            name=check_name(name),
            scopes=tuple(scope for scope in Scope if scope in scopes),
            policies=None if policies is None else tuple(sorted(set(policies))),
            created_at=now,
            created_by=self._author.actor,
            expires_at=now + valid_for,
        )
        details: dict[str, object] = {
            "name": name,
            "scopes": list(token.scopes),
            "policies": None if token.policies is None else list(token.policies),
            "expires_at": token.expires_at.isoformat(),
        }
        await self._store.add_admin_token(token, self._entry("admin-token create", details))
        return text, token

    async def revoke(self, name: str) -> None:
        """Revoke a token for good; the next request with it is refused.  Raises ``not-found``."""
        await self._store.revoke_admin_token(name, self._entry("admin-token revoke", {"name": name}))

    async def authenticate(self, text: str) -> Grant:
        """Return the present grant of the token *text*.

        Raises ``admin-token-invalid``, in the same words for one that is unknown, expired or revoked.
        """
        token = await self._store.find_admin_token(token_digest(text))
        if token is None or token.revoked_at is not None or self._clock.now() >= token.expires_at:
            raise invalid_token(_cause(token), None if token is None else token.name)
        policies = None if token.policies is None else frozenset(token.policies)
        return Grant(token.name, frozenset(token.scopes), policies)

    def _entry(self, event: str, details: dict[str, object]) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, None, details)


def invalid_token(cause: str, name: str | None = None) -> Refused:
    """Refusal of a client without a valid token; *cause* and *name* are for the log, not for the client."""
    sentence = "The request carries no bearer token that is valid here."
    return Refused("admin-token-invalid", sentence, cause=cause, token=name)


def _cause(token: AdminToken | None) -> str:
    if token is None:
        return "unknown"
    return "expired" if token.revoked_at is None else "revoked"

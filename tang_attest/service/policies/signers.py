"""Signers of a policy, from the operator's side: whose statements count, for which PCRs, and which count no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from tang_attest.errors import Conflict, NotFound, Refused
from tang_attest.ports.policies import LastEvidence
from tang_attest.ports.store import HasPolicies
from tang_attest.ports.world import Clock
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import check_label
from tang_attest.protocol.rules import RuleSet
from tang_attest.protocol.rules.secure_boot import SecureBoot
from tang_attest.protocol.signed_values.examine import state_of, untimely, verify_for
from tang_attest.protocol.signed_values.keys import read_key
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.signed_values.signer import (
    MAX_KEPT,
    SECURE_BOOT_PCR,
    Signer,
    Signers,
    check_signer,
    covers,
    unpinned,
)
from tang_attest.protocol.signed_values.statement import ValueStatement, inspect
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.operators import require_operators

_SECURE_BOOT: Final = RuleSet(frozenset(), (SecureBoot(),))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerTerms:
    """Terms on which a policy trusts a key (PEM); see :class:`~tang_attest.protocol.signed_values.signer.Signer`."""

    name: str
    pem: bytes
    pcrs: tuple[int, ...]
    label: str | None = None
    no_rollback: bool = False


@dataclass(frozen=True, slots=True)
class Posted:
    """A statement that was posted to a policy, and its state."""

    statement: ValueStatement
    state: SignedState


class SignerStore(HasPolicies, Protocol):
    """The roles of the store that signers need."""


class PolicySigners:
    """Changes to the signers of policies; each is one transaction with its audit entry."""

    def __init__(self, store: SignerStore, clock: Clock, author: Author) -> None:
        self._store, self._clock, self._author = store, clock, author

    async def signers(self, policy: str) -> Signers:
        """Return the signers of *policy*.  Raises ``not-found``."""
        return (await self._store.policies.get_policy(policy)).signers

    async def trust(self, policy_name: str, terms: SignerTerms, *, force: bool = False) -> Signer:
        """Let statements of a key count for some PCRs of a policy.

        Raises ``not-found``, ``signer-unsuitable`` (key, PCRs), ``name-taken`` (name or key), and ``signer-unsafe``
        (unless *force*) when the policy does not pin the program that measures these PCRs.  Raises
        ``operators-required``.
        """
        policy = await self._store.policies.get_policy(policy_name)
        require_operators(policy, self._author)
        signer = Signer(
            name=terms.name,
            key=read_key(terms.pem),
            pcrs=tuple(sorted(set(terms.pcrs))),
            label=terms.label,
            no_rollback=terms.no_rollback,
            added_at=self._clock.now(),
            added_by=self._author.actor,
        )
        check_signer(signer, policy.selection, policy.cap_pcr)
        if not force and (reason := unpinned(signer, policy.selection, secure_boot=False)) is not None:
            secure_boot = await self._secure_boot(policy)
            if (reason := unpinned(signer, policy.selection, secure_boot=secure_boot)) is not None:
                raise Refused.because(reason)

        def add(signers: Signers) -> Signers:
            for known in signers.signers:
                if known.name == signer.name:
                    raise Conflict(
                        "name-taken", f"Policy '{policy_name}' has a signer '{signer.name}' already."
                    )
                if known.key == signer.key:
                    sentence = f"Policy '{policy_name}' trusts this key already, as signer '{known.name}'."
                    raise Conflict("name-taken", sentence)
            return signers.with_signer(signer)

        details = {**describe_signer(signer), "forced": force}
        await self._change("policy signer trust", policy_name, add, details)
        return signer

    async def drop(self, policy: str, name: str) -> None:
        """Let statements of the signer *name* count no more, at once.  Raises ``not-found``."""

        def remove(signers: Signers) -> Signers:
            if signers.find(name) is None:
                raise NotFound("not-found", f"Policy '{policy}' has no signer '{name}'.")
            return signers.without(name)

        await self._change("policy signer drop", policy, remove, {"signer": name})

    async def retire(self, policy: str, label: str) -> None:
        """Let signed values with *label*, or with a label below it, count no more, at once.

        Posted statements with it are forgotten.  Raises ``not-found``, ``request-malformed``, ``state-changed`` if the
        label is retired already.
        """
        check_label(label)

        def withdraw(signers: Signers) -> Signers:
            if label in signers.retired:
                raise Conflict("state-changed", f"Label '{label}' of signed values is retired already.")
            kept = tuple(text for text in signers.statements if not covers(label, inspect(text)[1].label))
            return replace(signers.with_retired(label), statements=kept)

        await self._change("policy signed retire", policy, withdraw, {"label": label})

    async def reinstate(self, policy: str, label: str) -> None:
        """Let signed values with *label* count again.  Raises ``not-found``, also if the label is not retired, and
        ``operators-required``.
        """
        require_operators(await self._store.policies.get_policy(policy), self._author)

        def let(signers: Signers) -> Signers:
            if label not in signers.retired:
                raise NotFound(
                    "not-found", f"Policy '{policy}' has no retired label '{label}' of signed values."
                )
            return signers.without_retired(label)

        await self._change("policy signed reinstate", policy, let, {"label": label})

    async def post(self, policy_name: str, compact: str) -> Posted:
        """Keep a statement for the machines of a policy that bring none.

        It takes the place of those with its label and a lower version, and of those whose time is over.  Raises
        ``not-found``, the codes ``statement-*``, and ``announcements-full`` when the policy keeps too many.
        """
        policy = await self._store.policies.get_policy(policy_name)
        now = self._clock.now()
        text = compact.strip()
        signer, statement = verify_for(policy.signers, text, policy_name, policy.selection.bank)
        state = state_of(signer, statement)
        late = untimely(statement, now)
        if late is not None and late.code == "statement-expired":
            raise Refused.because(late)

        def keep(signers: Signers) -> Signers:
            if reason := signers.obstacle(state):
                raise Refused.because(reason)
            others = [each for each in signers.statements if not _replaces(statement, each) and each != text]
            others = [each for each in others if inspect(each)[1].not_after > now]
            if len(others) >= MAX_KEPT:
                sentence = f"Policy '{policy_name}' keeps {MAX_KEPT} statements; retire a label of one first."
                raise Refused("announcements-full", sentence)
            return replace(signers, statements=(*others, text))

        times = {
            "not_before": statement.not_before.isoformat(),
            "not_after": statement.not_after.isoformat(),
        }
        await self._change("policy signed post", policy_name, keep, {**state.named(), **times})
        return Posted(statement, state)

    async def _change(
        self,
        event: str,
        policy: str,
        change: Callable[[Signers], Signers],
        details: Mapping[str, object],
    ) -> None:
        entry = self._author.entry(self._clock.now(), event, None, {"policy": policy, **details})
        await self._store.policies.change_signers(policy, change, entry)

    async def _secure_boot(self, policy: ReferencePolicy) -> bool:
        """Return True if Secure Boot holds wherever *policy* permits, by its rules or by its machines' last boots."""
        if policy.rules is not None and any(isinstance(rule, SecureBoot) for rule in policy.rules.rules):
            return True
        if SECURE_BOOT_PCR not in policy.selection.pcrs:
            return False
        found = await self._store.policies.list_evidence(policy.name, with_logs=True)
        return await asyncio.to_thread(_all_secure, [last for last in found if last.permitted])


def _all_secure(boots: Sequence[LastEvidence]) -> bool:
    """Return True if there is a boot, and the log of each proves that Secure Boot was on."""
    for boot in boots:
        seen = boot.snapshot
        try:
            _SECURE_BOOT.check(seen.event_log, seen.selection.bank, seen.values)
        except Refused:
            return False
    return bool(boots)


def _replaces(statement: ValueStatement, kept: str) -> bool:
    _, known = inspect(kept)
    return known.label == statement.label and known.version <= statement.version


def describe_signer(signer: Signer) -> dict[str, object]:
    """Return a signer in the form of the audit record."""
    return {
        "signer": signer.name,
        "form": signer.form.value,
        "key": signer.key_id,
        "pcrs": list(signer.pcrs),
        "label": signer.label,
        "no_rollback": signer.no_rollback,
    }

"""The admin API's models for signers and signed values; see web/admin/wire.py."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from tang_attest.protocol.signed_values.keys import MAX_KEY, StatementForm
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.signed_values.signer import MAX_TEXT, Signer, Signers
from tang_attest.protocol.signed_values.statement import MAX_STATEMENT, ValueStatement, inspect
from tang_attest.service.policies.signers import Posted, SignerTerms
from tang_attest.web.admin.wire import Name, View
from tang_attest.web.wire import Body

#: Characters of a statement, and of a line break around it.
_STATEMENT = MAX_STATEMENT + 2


class SignerPath(Body):
    """A signer of a policy."""

    policy: Name
    signer: Name


class Trust(Body):
    """A key whose statements count for some PCRs."""

    name: Name
    key: str = Field(max_length=MAX_KEY, description="The public key in PEM: RSA, P-256 or Ed25519.")
    pcrs: list[int] = Field(
        min_length=1, max_length=24, description="The PCRs that it may sign; never 7 or the cap."
    )
    label: str | None = Field(
        None, min_length=1, max_length=MAX_TEXT, description="It signs this label and those below it only."
    )
    no_rollback: bool = Field(
        False, description="Refuse a lower version than the highest that was permitted."
    )

    def terms(self) -> SignerTerms:
        """Return it as a value of the use case."""
        return SignerTerms(
            name=self.name,
            pem=self.key.encode("utf-8", "replace"),
            pcrs=tuple(self.pcrs),
            label=self.label,
            no_rollback=self.no_rollback,
        )


class PostStatement(Body):
    """A signed statement."""

    statement: str = Field(
        max_length=_STATEMENT, description="A JWS in compact form, as 'tang-attest values sign' writes it."
    )


class HighestView(View):
    """The highest version of a family of labels that was permitted, and the time of its first permit."""

    family: str
    version: int
    at: datetime


class SignerView(View):
    """A signer of a policy; ``key`` is the SHA-256 of its SubjectPublicKeyInfo in hex."""

    name: str
    form: StatementForm
    key: str
    pcrs: list[int]
    label: str | None
    no_rollback: bool
    highest: list[HighestView]
    added_at: datetime
    added_by: str

    @classmethod
    def of(cls, signer: Signer) -> SignerView:
        """Return the view of *signer*."""
        return cls(
            name=signer.name,
            form=signer.form,
            key=signer.key_id,
            pcrs=list(signer.pcrs),
            label=signer.label,
            no_rollback=signer.no_rollback,
            highest=[
                HighestView(family=family, version=highest.version, at=highest.at)
                for family, highest in sorted(signer.highest.items())
            ],
            added_at=signer.added_at,
            added_by=signer.added_by,
        )


class StatementView(View):
    """A statement that was posted; ``signer`` made it."""

    label: str
    version: int
    pcrs: list[int]
    not_before: datetime
    not_after: datetime
    signer: str | None = None

    @classmethod
    def of(cls, statement: ValueStatement, state: SignedState | None = None) -> StatementView:
        """Return the view of *statement*."""
        return cls(
            label=statement.label,
            version=statement.version,
            pcrs=sorted(statement.values),
            not_before=statement.not_before,
            not_after=statement.not_after,
            signer=None if state is None else state.signer,
        )

    @classmethod
    def posted(cls, posted: Posted) -> StatementView:
        """Return the view of what was posted now."""
        return cls.of(posted.statement, posted.state)


class SignersView(View):
    """The signers of a policy, the statements that were posted to it, and labels that count no more."""

    policy: str
    signers: list[SignerView]
    statements: list[StatementView]
    retired: list[str]

    @classmethod
    def of(cls, policy: str, found: Signers) -> SignersView:
        """Return the view of the signers of *policy*."""
        return cls(
            policy=policy,
            signers=[SignerView.of(each) for each in found.signers],
            statements=[StatementView.of(inspect(text)[1]) for text in found.statements],
            retired=list(found.retired),
        )

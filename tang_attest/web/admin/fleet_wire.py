"""The admin API's models for enrollment and machines; see web/admin/wire.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import Field

from tang_attest.errors import Malformed
from tang_attest.ports.enrollment import EkRoot, RegisteredEk, Token
from tang_attest.protocol.endorsement.endorsement import MAX_CERTIFICATE
from tang_attest.protocol.endorsement.registered import EkEntry, certificate_digest
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION
from tang_attest.protocol.values.labels import MAX_LABELS, check_labels
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.enrollment.tokens import MAX_MACHINES, TokenTerms
from tang_attest.service.machines.overview import Notice
from tang_attest.web.admin.wire import ACCEPT, Accepted, Label, Limit, Name, Seconds, View, parts
from tang_attest.web.wire import B64u, Body

Words = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=63)]], Field(max_length=MAX_LABELS, fail_fast=True)
]
EkDigest = Annotated[
    str,
    Field(
        pattern=r"^[0-9A-Fa-f]{64}$",
        description="The EK: SHA-256 of its DER SubjectPublicKeyInfo, as `tpm2 readpublic -f der` writes it.",
    ),
]
CapPcr = Annotated[int, Field(ge=0, le=15, description="The PCR that is extended once the disks are open.")]
SelectionText = Annotated[str, Field(max_length=80, description="Such as sha256:0,2,4,7,15.")]


#: Characters of PEM that a body has room for; a vendor's whole bundle goes in several requests.
MAX_ROOTS: Final = 32_768


# --- queries and bodies -------------------------------------------------------------------------------------


class NewestTokens(Body):
    """The newest tokens."""

    limit: Limit = 100


class CreateToken(Body):
    """An enrollment token: of an existing `policy`, or one that lets a machine `record` a policy of its own."""

    policy: Name | None = None
    record: bool = Field(False, description="Make a policy from the machine's first quote.")
    machines: int = Field(
        1, ge=1, le=MAX_MACHINES, description="With policy: it enrolls so many machines, each counted once."
    )
    name: str | None = Field(
        None, max_length=63, description="Only for names that match; * and ? stand for any characters."
    )
    expires_in: Seconds = Field(86_400, description="Seconds until it cannot be used any more.")
    labels: Words = Field(default_factory=list, description="Each machine gets them.")
    allow_unverified_ek: bool = Field(
        False, description="Accept a TPM whose EK no known vendor root vouches for."
    )
    accept_uncovered: Accepted = Field(default_factory=list, description=ACCEPT)
    selection: SelectionText | None = Field(
        None, description="With record: the PCRs of the new policy; proposed from the event log by default."
    )
    cap_pcr: CapPcr = DEFAULT_CAP_PCR
    again: bool = Field(False, description="Although a machine has that name.")

    def terms(self) -> TokenTerms:
        """Return the terms of the use case.  Raises ``selection-invalid``."""
        return TokenTerms(
            self.name,
            self.policy,
            self.record,
            Selection.parse(self.selection or DEFAULT_SELECTION),
            self.cap_pcr,
            allow_unverified_ek=self.allow_unverified_ek,
            force=False,
            valid_for=timedelta(seconds=self.expires_in),
            learn_for=timedelta(days=1),
            labels=tuple(self.labels),
            accepted_uncovered=parts(self.accept_uncovered),
            proposes=self.record and self.selection is None,
            machines=self.machines,
            name_free=not self.again,
        )


class RevokeToken(Body):
    """A token by its id."""

    id: str = Field(pattern=r"^[0-9A-Fa-f]{8,64}$", description="Its id, or the first 8 digits or more.")


class RegisterEk(Body):
    """A machine that is expected by its EK: `ek_sha256` or `ek_certificate` says which."""

    policy: Name
    ek_sha256: EkDigest | None = None
    ek_certificate: B64u | None = Field(
        None, max_length=MAX_CERTIFICATE, description="b64u: the EK's certificate in place of its hash."
    )
    labels: Words = Field(default_factory=list)
    without_token: bool = Field(False, description="It needs no token to enroll.")

    def entry(self, name: str, line: int) -> EkEntry:
        """Return the entry of machine *name*.  Raises ``request-malformed``, ``ek-malformed``."""
        if (self.ek_sha256 is None) == (self.ek_certificate is None):
            raise Malformed("request-malformed", f"'{name}' needs either ek_sha256 or ek_certificate.")
        digest = (
            certificate_digest(self.ek_certificate)
            if self.ek_certificate is not None
            else bytes.fromhex(self.ek_sha256 or "")
        )
        return EkEntry(
            line=line,
            name=name,
            ek_sha256=digest,
            policy=self.policy,
            labels=check_labels(self.labels),
            without_token=self.without_token,
        )


class ListedEk(RegisterEk):
    """A machine of a list."""

    name: Name


class RegisterEks(Body):
    """Machines that are expected by their EKs; all are registered, or none."""

    machines: list[ListedEk] = Field(min_length=1, max_length=1000, fail_fast=True)

    def entries(self) -> list[EkEntry]:
        """Return the entries of the use case; a fault names the number of its machine as a line."""
        return [machine.entry(machine.name, number) for number, machine in enumerate(self.machines, 1)]


class AddEkRoots(Body):
    """Certificates to trust as anchors of EK certificates: `pem` or `der` has them."""

    pem: str | None = Field(None, max_length=MAX_ROOTS, description="One or more certificates as PEM.")
    der: B64u | None = Field(None, max_length=MAX_CERTIFICATE, description="b64u: one certificate as DER.")
    label: Label | None = Field(
        None, description="A name for listings; the certificate's subject by default."
    )

    def data(self) -> bytes:
        """Return the bytes of the certificates.  Raises ``request-malformed``."""
        if (self.pem is None) == (self.der is None):
            raise Malformed("request-malformed", "Trust anchors are given either as pem or as der.")
        return self.der if self.der is not None else (self.pem or "").encode()


class RemoveEkRoot(Body):
    """A trust anchor to remove."""

    fingerprint: Annotated[
        str, Field(pattern=r"^[0-9A-Fa-f]{64}$", description="SHA-256 of the certificate's DER.")
    ]


class SetLabels(Body):
    """All the labels of a device."""

    labels: Words


class Suspend(Body):
    """The reason of a suspension."""

    reason: str = Field(min_length=1, max_length=200, description="Printable; for the operator.")


class Allow(Body):
    """The time for which a machine may unlock."""

    for_seconds: Seconds


class RenameDevice(Body):
    """The new name of a device."""

    name: Name


class MoveDevice(Body):
    """The policy to bring a device under."""

    policy: Name


class CreatePolicy(Body):
    """An empty policy, which refuses every machine until it has a state that counts."""

    selection: SelectionText
    cap_pcr: CapPcr = DEFAULT_CAP_PCR


# --- answers ------------------------------------------------------------------------------------------------


class TokenView(View):
    """An enrollment token, without its text."""

    id: str
    policy: str | None
    record: bool
    name: str | None
    machines: int
    uses: int = Field(description="How many machines it has enrolled.")
    labels: list[str]
    allow_unverified_ek: bool
    accepted_uncovered: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime
    used_at: datetime | None = Field(description="The time of its last possible use.")
    revoked_at: datetime | None

    @classmethod
    def of(cls, token: Token) -> TokenView:
        """Return the view of *token*."""
        return cls(
            id=token.digest.hex(),
            policy=token.policy,
            record=token.record,
            name=token.name,
            machines=token.machines,
            uses=token.uses,
            labels=list(token.labels),
            allow_unverified_ek=token.allow_unverified_ek,
            accepted_uncovered=[part.value for part in token.accepted_uncovered],
            created_at=token.created_at,
            created_by=token.created_by,
            expires_at=token.expires_at,
            used_at=token.used_at,
            revoked_at=token.revoked_at,
        )


class NewTokenView(TokenView):
    """A new token with its text, which is told this once."""

    token: str

    @classmethod
    def with_text(cls, text: str, token: Token) -> NewTokenView:
        """Return the view of *token*, whose text is *text*."""
        return cls(token=text, **TokenView.of(token).model_dump())


class TokenList(View):
    """Enrollment tokens, newest first."""

    tokens: list[TokenView]
    more: bool = Field(description="There are older ones.")

    @classmethod
    def of(cls, tokens: Sequence[Token], limit: int) -> TokenList:
        """Return the view of the first *limit* of *tokens*."""
        return cls(tokens=[TokenView.of(token) for token in tokens[:limit]], more=len(tokens) > limit)


class RegisteredEkView(View):
    """A registered EK."""

    name: str
    ek_sha256: str
    policy: str
    labels: list[str]
    without_token: bool
    added_at: datetime
    added_by: str
    used_at: datetime | None = Field(description="The time at which its machine enrolled.")

    @classmethod
    def of(cls, each: RegisteredEk) -> RegisteredEkView:
        """Return the view of *each*."""
        return cls(
            name=each.name,
            ek_sha256=each.ek_sha256.hex(),
            policy=each.policy,
            labels=list(each.labels),
            without_token=each.without_token,
            added_at=each.added_at,
            added_by=each.added_by,
            used_at=each.used_at,
        )


class RegisteredEkPage(View):
    """Registered EKs, by name."""

    registered: list[RegisteredEkView]
    next: str | None = Field(description="For the parameter `after`; null on the last page.")

    @classmethod
    def of(cls, found: Iterable[RegisteredEk], limit: int, after: str | None) -> RegisteredEkPage:
        """Return the view of the first *limit* after the name *after*."""
        rest = [each for each in found if after is None or each.name > after]
        views = [RegisteredEkView.of(each) for each in rest[:limit]]
        return cls(registered=views, next=views[-1].name if len(rest) > limit else None)


class RegisteredEkList(View):
    """The machines of a list as they are registered, by name."""

    registered: list[RegisteredEkView]
    new: int = Field(description="How many were not registered before.")

    @classmethod
    def of_list(cls, found: Iterable[RegisteredEk], new: int) -> RegisteredEkList:
        """Return the view of *found*, of which *new* are new."""
        return cls(registered=[RegisteredEkView.of(each) for each in found], new=new)


class EkRootView(View):
    """A trust anchor for EK certificates."""

    fingerprint: str = Field(description="SHA-256 of the certificate's DER, in hex.")
    label: str
    added_at: datetime
    not_after: datetime

    @classmethod
    def of(cls, root: EkRoot) -> EkRootView:
        """Return the view of *root*."""
        until = x509.load_der_x509_certificate(root.der).not_valid_after_utc
        return cls(fingerprint=root.fingerprint, label=root.label, added_at=root.added_at, not_after=until)


class EkRootList(View):
    """Trust anchors for EK certificates, by label."""

    roots: list[EkRootView]

    @classmethod
    def of(cls, roots: Iterable[EkRoot]) -> EkRootList:
        """Return the view of *roots*."""
        return cls(roots=[EkRootView.of(root) for root in roots])


class AddedEkRoots(EkRootList):
    """Trust anchors as they are kept."""

    new: int = Field(description="How many were not trusted before.")

    @classmethod
    def of_list(cls, roots: Iterable[EkRoot], new: int) -> AddedEkRoots:
        """Return the view of *roots*, of which *new* are new."""
        return cls(roots=[EkRootView.of(root) for root in roots], new=new)


class NoticeView(View):
    """One line of the status."""

    topic: Literal["refused", "suspended", "silent", "waiting", "rollout", "ends", "database"]
    name: str
    sentence: str
    at: datetime | None
    attention: bool = Field(description="It wants a person.")
    action: str


class StatusView(View):
    """Notices: things that want a person, and ends to come."""

    attention: bool
    machines: int
    notices: list[NoticeView]

    @classmethod
    def of(cls, machines: int, notices: Iterable[Notice]) -> StatusView:
        """Return the view of *notices*."""
        views = [
            NoticeView(
                topic=notice.topic.value,
                name=notice.name,
                sentence=notice.sentence,
                at=notice.at,
                attention=notice.attention,
                action=notice.action,
            )
            for notice in notices
        ]
        return cls(attention=any(view.attention for view in views), machines=machines, notices=views)

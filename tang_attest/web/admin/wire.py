"""The models of the admin API; its OpenAPI document is generated from them (web/admin/openapi.py).

Models of requests are strict; models of answers are built by their ``of``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tang_attest.errors import Malformed, TangAttestError
from tang_attest.ports.audit import AuditEntry, AuditSearch
from tang_attest.ports.machines import Device, DeviceSearch
from tang_attest.ports.policies import Observation
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.endorsement.registered import ek_digest
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import MAX_LABEL, ReferenceState, check_label
from tang_attest.protocol.values.pcr import PcrValues, Selection
from tang_attest.protocol.values.pcr_file import parse_values
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG
from tang_attest.service.admin.administration import Page, ValuesOf
from tang_attest.service.policies.explanation import Explanation
from tang_attest.service.policies.reference_values import Approval, Backing, Waiting
from tang_attest.web.wire import B64u, Body, validate

#: As long as the command line allows.
_MAX_SECONDS: Final = 3650 * 24 * 3600
#: The database counts to 2^63 - 1, and a search may need the number after this one.
_MAX_ID: Final = 2**63 - 2


def _decimal(value: object) -> object:
    """Return the number of a query parameter, which is text; pydantic would take signs, spaces and
    underscores.
    """
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal() and len(value) < 20):
            raise ValueError("not a number in decimal digits")
        return int(value)
    return value


def _label(value: str) -> str:
    try:
        return check_label(value)
    except Malformed as error:
        raise ValueError(error.sentence.removesuffix(".")) from None


Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Of a device or policy.")
]
Label = Annotated[
    str,
    AfterValidator(_label),
    Field(min_length=1, max_length=MAX_LABEL, description="Printable, without spaces around it."),
]
Seconds = Annotated[int, Field(ge=1, le=_MAX_SECONDS)]
Number = Annotated[int, Field(ge=1, le=_MAX_ID)]
Decimal = BeforeValidator(_decimal)
Limit = Annotated[int, Field(ge=1, le=100, description="How many at most."), Decimal]
Pcr = Annotated[str, Field(pattern=r"^(?:[0-9]|1[0-9]|2[0-3])$")]
Digest = Annotated[str, Field(pattern=r"^(?:[0-9A-Fa-f]{64}|[0-9A-Fa-f]{96}|[0-9A-Fa-f]{128})$")]


def _truth(value: object) -> object:
    """Return the truth value of a query parameter, which is text."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _tuple(value: object) -> object:
    """Return the words of a query parameter."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _moment(value: object) -> object:
    """Return the time of a query parameter; one without a zone is of no use to a server elsewhere."""
    if isinstance(value, str):
        # Unescaped, the plus sign of a zone arrives as a space.
        at = datetime.fromisoformat(value.replace(" ", "+"))
        if at.tzinfo is None:
            raise ValueError("a time needs its zone, such as 2026-11-27T10:20:00Z")
        try:
            return at.astimezone(UTC)
        except OverflowError:
            raise ValueError("no time that a server can have recorded") from None
    return value


Truth = BeforeValidator(_truth)
Moment = Annotated[datetime, BeforeValidator(_moment)]
SearchWords = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[ -~]+$")], ...], Field(max_length=32)
]
Accepted = list[Literal["kernel", "initrd", "command_line"]]
ACCEPT: Final = "Parts of the boot that nothing covers, and that are accepted all the same."


def _words(value: object) -> object:
    """A query parameter is one text."""
    return value.split(",") if isinstance(value, str) else value


# --- addresses and queries ----------------------------------------------------------------------------------


class Nothing(Body):
    """No parameters."""


class DevicePath(Body):
    """A device in the address."""

    device: Name


class PolicyPath(Body):
    """A policy in the address."""

    policy: Name


class StatePath(PolicyPath):
    """A reference state in the address; its label is percent-encoded."""

    label: Label


class ObservationPath(Body):
    """An observation in the address."""

    observation: Annotated[Number, Decimal]


class ByName(Body):
    """A page of named entries."""

    limit: Limit = 50
    after: Name | None = Field(None, description="Only names after this one: `next` of the page before.")


class DeviceQuery(ByName):
    """A page of machines that meet every condition."""

    policy: Annotated[tuple[Name, ...], BeforeValidator(_tuple)] = Field(
        (), description="Only under one of these policies, with commas in between."
    )
    label: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...], BeforeValidator(_tuple)
    ] = Field((), description="Only with all of these labels, with commas in between.")
    refused: Annotated[bool, Truth] = Field(
        False, description="Only those whose last boot or round was refused, and suspended ones."
    )
    stale: Annotated[Seconds | None, Decimal] = Field(
        None, description="Only those that gave no evidence for so many seconds."
    )

    def search(self) -> DeviceSearch:
        """Return the conditions of the use case, without ``stale``."""
        return DeviceSearch(policies=self.policy, labels=self.label, refused=self.refused)


class Newest(Body):
    """A page of numbered entries."""

    limit: Limit = 50
    before: Annotated[Number | None, Decimal] = Field(
        None, description="Only numbers below this one: `next` of the page before."
    )
    device: Name | None = Field(None, description="Only of this device.")


class ObservationQuery(Newest):
    """A page of observations."""

    policy: Name | None = Field(None, description="Only of machines under this policy.")


class AuditQuery(Newest):
    """A page of audit entries that meet every condition."""

    device: Name | None = Field(None, description="Only of this device, under every name that it had.")
    since: Moment | None = Field(None, description="Only of this time or later.")
    until: Moment | None = Field(None, description="Only of before this time.")
    event: Annotated[SearchWords, BeforeValidator(_tuple)] = Field(
        (), description="Only these events, or their first words, with commas in between."
    )
    code: Annotated[SearchWords, BeforeValidator(_tuple)] = Field(
        (), description="Only with one of these codes, with commas in between."
    )
    who: Annotated[SearchWords, BeforeValidator(_tuple)] = Field(
        (), description="Only of these actors, such as operator:alice or alice, with commas in between."
    )

    def search(self) -> AuditSearch:
        """Return the conditions of the use case.  Raises ``request-malformed``."""
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise Malformed("request-malformed", "The time since is not before the time until.")
        return AuditSearch(
            since=self.since, until=self.until, codes=self.code, events=self.event, actors=self.who
        )


class AuditExport(AuditQuery):
    """Audit entries for a spreadsheet."""

    limit: Annotated[int, Field(ge=1, le=10_000, description="How many at most."), Decimal] = 1000


class StageQuery(Body):
    """The parameters beside a text body; a JSON body holds them itself."""

    label: Label | None = Field(None, description="With a text body: the new state's name.")
    accept_uncovered: Annotated[Accepted, BeforeValidator(_words)] = Field(
        default_factory=list,
        description="With a text body: parts that nothing covers, with commas in between.",
    )
    expires_in: Annotated[Seconds | None, Decimal] = Field(
        None, description="With a text body: seconds until it counts no more."
    )


class ApproveStateQuery(Body):
    """Gaps of an announced state."""

    accept_uncovered: Annotated[Accepted, BeforeValidator(_words)] = Field(
        default_factory=list,
        description="Parts that nothing covers and that are accepted, with commas in between.",
    )


# --- bodies -------------------------------------------------------------------------------------------------


class Stage(Body):
    """Values that no machine has quoted yet: one for each PCR of the policy's selection, and no others."""

    label: Label
    values: dict[Pcr, Digest] = Field(description="PCR number to the hex of its value.", max_length=24)
    expires_in: Seconds | None = Field(None, description="Seconds until the state counts no more.")
    accept_uncovered: Accepted = Field(default_factory=list, description=ACCEPT)
    event_log: B64u = Field(
        b"",
        max_length=MAX_EVENT_LOG,
        description="b64u: the log of the boot that had these values, for its coverage.",
    )

    def backing(self) -> Backing:
        """As the use case takes it."""
        return Backing(event_log=self.event_log, accepted=parts(self.accept_uncovered))


class ApproveAny(Body):
    """The limits of an approval."""

    label: Label | None = Field(None, description="The new state's name; the time by default.")
    once: bool = Field(False, description="For one boot only.")
    for_seconds: Seconds | None = Field(None, description="For so many seconds only.")
    only_this_device: bool = Field(False, description="Not for other devices under the policy.")
    accept_uncovered: Accepted = Field(default_factory=list, description=ACCEPT)

    def approval(self) -> Approval:
        """Return the approval of the use case."""
        return Approval(
            only_this_device=self.only_this_device,
            once=self.once,
            valid_for=_span(self.for_seconds),
            accepted=parts(self.accept_uncovered),
        )


class Approve(ApproveAny):
    """An observation to accept, and the limits of the approval."""

    observation: Number


class ApproveAlike(ApproveAny):
    """The observations that were looked at, and the limits of their approval."""

    observations: list[Number] = Field(
        min_length=1, max_length=1000, fail_fast=True, description="Of those that are alike."
    )


def parts(names: Iterable[str]) -> tuple[BootPart, ...]:
    """Return *names* as parts, in the order of the boot."""
    chosen = set(names)
    return tuple(part for part in BootPart if part.value in chosen)


def staging(query: StageQuery, body: Stage | bytes) -> tuple[str, ValuesOf, timedelta | None, Backing]:
    """Return the label, the values, the time and the backing of a request to stage.

    Raises ``request-malformed`` for a text body without a label, and for a query that repeats a JSON body.
    """
    if isinstance(body, bytes):
        complete = validate(_TextStage, query.model_dump())
        backing = Backing(accepted=parts(complete.accept_uncovered))
        return complete.label, partial(parse_values, body), _span(complete.expires_in), backing
    if query != StageQuery():
        raise Malformed(
            "request-malformed", "A JSON body has the label and expires_in; the query has neither."
        )
    return body.label, partial(_read_values, body.values), _span(body.expires_in), body.backing()


class _TextStage(Body):
    label: Label
    expires_in: Seconds | None
    accept_uncovered: Accepted


def _read_values(values: dict[str, str], _selection: Selection) -> PcrValues:
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}


def _span(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


# --- answers ------------------------------------------------------------------------------------------------


class View(BaseModel):
    """An answer of the admin API."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StateView(View):
    """A reference state."""

    label: str
    life: str = Field(description="proposed, staged, active or retired; staged and active states count.")
    origin: str
    device: str | None = Field(description="The only device it is for.")
    rollout: str | None = Field(description="The rollout that decides which devices it is for.")
    expires_at: datetime | None
    uses_left: int | None
    created_at: datetime | None
    created_by: str | None
    notes: list[str]
    accepted_uncovered: list[str] = Field(
        description="Parts of the boot that nothing covers, which the operator accepted."
    )
    values: dict[str, str]

    @classmethod
    def of(cls, state: ReferenceState) -> StateView:
        """Return the view of *state*."""
        return cls(
            label=state.label,
            life=state.life.value,
            origin=state.origin,
            device=state.limits.device,
            rollout=state.limits.rollout,
            expires_at=state.limits.expires_at,
            uses_left=state.limits.uses_left,
            created_at=state.created_at,
            created_by=state.created_by,
            notes=list(state.notes),
            accepted_uncovered=[part.value for part in state.accepted],
            values=_hex(state.values),
        )


class StagedView(StateView):
    """A reference state that waits, and its policy."""

    policy: str


class StagedList(View):
    """The states that wait for approval, or for the first machine that boots them."""

    states: list[StagedView]

    @classmethod
    def of_states(cls, states: Iterable[tuple[str, ReferenceState]]) -> StagedList:
        """Return the view of *states*, each with its policy's name."""
        return cls(
            states=[StagedView(policy=name, **StateView.of(state).model_dump()) for name, state in states]
        )


class PolicySummary(View):
    """A policy in a list."""

    name: str
    selection: str
    cap_pcr: int
    trust_predictions: bool
    states: dict[str, str] = Field(description="Label to life.")

    @classmethod
    def of(cls, policy: ReferencePolicy) -> PolicySummary:
        """Return the view of *policy* in a list."""
        return cls(
            name=policy.name,
            selection=str(policy.selection),
            cap_pcr=policy.cap_pcr,
            trust_predictions=policy.trust_predictions,
            states={state.label: state.life.value for state in policy.states},
        )


class PolicyView(View):
    """A policy and its reference states, oldest first."""

    name: str
    selection: str
    cap_pcr: int
    trust_predictions: bool
    rules: dict[str, Any] | None = Field(description="Over event logs; null: values only.")
    states: list[StateView]
    retirable: list[str] = Field(description="States that every device has moved on from.")

    @classmethod
    def of(cls, policy: ReferencePolicy, retirable: list[str]) -> PolicyView:
        """Return the view of *policy*."""
        about = PolicySummary.of(policy).model_dump(exclude={"states"})
        return cls(
            **about,
            rules=None if policy.rules is None else dict(policy.rules.as_json()),
            states=[StateView.of(state) for state in policy.states],
            retirable=retirable,
        )


class PolicyPage(View):
    """Policies, by name."""

    policies: list[PolicySummary]
    next: str | None = Field(description="For the parameter `after`; null on the last page.")

    @classmethod
    def of(cls, page: Page[ReferencePolicy]) -> PolicyPage:
        """Return the view of *page*."""
        views = [PolicySummary.of(policy) for policy in page.items]
        return cls(policies=views, next=views[-1].name if page.more else None)


class DisksView(View):
    """A running machine's statement about its disks."""

    opened: Literal["attested", "passphrase", "not told"] = Field(
        description="attested: attestation opened each volume of this boot; passphrase: not each."
    )
    volumes: dict[str, Literal["attested", "passphrase"]] = Field(description="By LUKS UUID.")
    because: str | None = Field(description="The reason that it is not told.")
    told_at: datetime | None = Field(description="The newest time at which the machine gave evidence of it.")

    @classmethod
    def of(cls, device: Device) -> DisksView:
        """Return the statement that is known of *device*."""
        told = device.disks.as_json()
        del told["explained"]
        return cls(**told, told_at=device.told.at if device.told else None)


class DeviceView(View):
    """A registered machine."""

    name: str
    policy: str
    labels: list[str]
    origin: str
    kids: list[str] = Field(description="Thumbprints of its exchange keys.")
    enrolled_at: datetime
    ek_sha256: str | None = Field(description="Of the EK's DER SubjectPublicKeyInfo, in hex.")
    ek_verified: bool
    ek_issuer: str | None
    grade: dict[str, Any] | None
    last_seen_at: datetime | None
    last_code: str | None
    last_state: str | None = Field(description="The state that its last permitted unlock met.")
    suspended_at: datetime | None = Field(description="While it is suspended, its keys answer nobody.")
    suspended_by: str | None
    suspended_reason: str | None
    allowed_until: datetime | None = Field(description="The end of an approval to unlock.")
    disks: DisksView = Field(description="The way in which its newest boot opened its disks.")

    @classmethod
    def of(cls, device: Device) -> DeviceView:
        """Return the view of *device*."""
        return cls(
            name=device.name,
            policy=device.policy,
            labels=list(device.labels),
            origin=device.origin,
            kids=list(device.kids),
            enrolled_at=device.enrolled_at,
            ek_sha256=None if device.ek_spki is None else ek_digest(device.ek_spki).hex(),
            ek_verified=device.ek_verified,
            ek_issuer=device.ek_issuer,
            grade=None if device.grade is None else dict(device.grade),
            last_seen_at=device.last_seen_at,
            last_code=device.last_code,
            last_state=device.last_state,
            suspended_at=device.suspension.at if device.suspension else None,
            suspended_by=device.suspension.by if device.suspension else None,
            suspended_reason=device.suspension.reason if device.suspension else None,
            allowed_until=device.allowed_until,
            disks=DisksView.of(device),
        )


class DevicePage(View):
    """Machines, by name."""

    devices: list[DeviceView]
    next: str | None = Field(description="For the parameter `after`; null on the last page.")

    @classmethod
    def of(cls, page: Page[Device]) -> DevicePage:
        """Return the view of *page*."""
        views = [DeviceView.of(device) for device in page.items]
        return cls(devices=views, next=views[-1].name if page.more else None)


class ObservationView(View):
    """Authentic evidence that the policy refused."""

    id: int
    device: str
    at: datetime
    code: str
    selection: str
    values: dict[str, str]
    reset_count: int
    event_log_bytes: int

    @classmethod
    def of(cls, seen: Observation) -> ObservationView:
        """Return the view of *seen*."""
        return cls(
            id=seen.id,
            device=seen.device,
            at=seen.at,
            code=seen.code,
            selection=str(seen.snapshot.selection),
            values=_hex(seen.snapshot.values),
            reset_count=seen.reset_count,
            event_log_bytes=len(seen.snapshot.event_log),
        )


class ExplanationView(View):
    """An observation, and its differences: by value, and event by event if the machine sent its log."""

    observation: ObservationView
    policy: str
    nearest_state: str | None = Field(description="The approved state that differs least.")
    differs: list[int] = Field(description="The PCRs in which it is not that state.")
    reasons: list[dict[str, Any]] = Field(description="What the policy says now; empty: it would permit.")
    changes: list[dict[str, Any]] = Field(description="Events that differ from the last permitted boot.")
    doubts: list[str] = Field(description="What `changes` does not tell, or may not be believed.")

    @classmethod
    def of(cls, found: Explanation) -> ExplanationView:
        """Return the view of *found*."""
        return cls(
            observation=ObservationView.of(found.observation),
            policy=found.policy,
            nearest_state=found.nearest.label if found.nearest else None,
            differs=list(found.differences),
            reasons=[reason.as_json() for reason in found.reasons],
            changes=[change.as_json() for change in found.changes],
            doubts=list(found.doubts),
        )


class ObservationPage(View):
    """Observations, newest first."""

    observations: list[ObservationView]
    next: int | None = Field(description="For the parameter `before`; null on the last page.")

    @classmethod
    def of(cls, page: Page[Observation]) -> ObservationPage:
        """Return the view of *page*."""
        views = [ObservationView.of(seen) for seen in page.items]
        return cls(observations=views, next=views[-1].id if page.more else None)


class WaitingView(View):
    """A machine that waits for an approval, and its observation."""

    device: str
    policy: str
    observation: int
    at: datetime
    code: str

    @classmethod
    def of(cls, each: Waiting) -> WaitingView:
        """Return the view of *each*."""
        seen = each.observation
        return cls(
            device=each.device.name, policy=each.policy.name, observation=seen.id, at=seen.at, code=seen.code
        )


class AlikeList(View):
    """Machines in which the same PCRs have the same new values."""

    waiting: list[WaitingView]

    @classmethod
    def of(cls, found: Iterable[Waiting]) -> AlikeList:
        """Return the view of *found*."""
        return cls(waiting=[WaitingView.of(each) for each in found])


class AlikeResult(View):
    """The approval of one machine: its state, or the refusal."""

    device: str
    policy: str
    observation: int
    state: str | None = Field(description="The label of the state that covers it; null: it was refused.")
    code: str = Field(description="ok, or that of the refusal.")
    detail: str | None

    @classmethod
    def of(cls, each: Waiting, result: ReferenceState | TangAttestError) -> AlikeResult:
        """Return the view of the *result* for *each*."""
        return cls(
            device=each.device.name,
            policy=each.policy.name,
            observation=each.observation.id,
            state=None if isinstance(result, TangAttestError) else result.label,
            code=result.code if isinstance(result, TangAttestError) else "ok",
            detail=result.sentence if isinstance(result, TangAttestError) else None,
        )


class AlikeResults(View):
    """The approvals of machines, each with its own result."""

    results: list[AlikeResult]

    @classmethod
    def of(cls, done: Iterable[tuple[Waiting, ReferenceState | TangAttestError]]) -> AlikeResults:
        """Return the view of *done*."""
        return cls(results=[AlikeResult.of(each, result) for each, result in done])


class AuditView(View):
    """A decision or a change."""

    no: int
    at: datetime
    event: str
    actor: str
    verdict: str
    code: str
    device: str | None
    kid: str | None
    address: str | None
    request_id: str | None
    details: dict[str, Any]

    @classmethod
    def of(cls, number: int, entry: AuditEntry) -> AuditView:
        """Return the view of *entry*."""
        return cls(
            no=number,
            at=entry.at,
            event=entry.event,
            actor=entry.actor,
            verdict=entry.verdict,
            code=entry.code,
            device=entry.device,
            kid=entry.kid,
            address=entry.address,
            request_id=entry.request_id,
            details=dict(entry.details),
        )


class AuditPage(View):
    """The audit record, newest first."""

    entries: list[AuditView]
    next: int | None = Field(description="For the parameter `before`; null on the last page.")

    @classmethod
    def of(cls, page: Page[tuple[int, AuditEntry]]) -> AuditPage:
        """Return the view of *page*."""
        views = [AuditView.of(number, entry) for number, entry in page.items]
        return cls(entries=views, next=views[-1].no if page.more else None)


class Problem(View):
    """A refusal or an error (RFC 9457); docs/errors.md explains every code.  Made by web/problems.py."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    action: str
    request_id: str


def _hex(values: PcrValues) -> dict[str, str]:
    return {str(pcr): value.hex() for pcr, value in sorted(values.items())}

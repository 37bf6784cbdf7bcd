"""Request bodies: strict models, one for each body of docs/protocol.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tang_attest.errors import Malformed
from tang_attest.protocol.cap import MAX_TEXTS
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.reference_state import MAX_LABEL
from tang_attest.protocol.tpm import MAX_STRUCTURE
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.protocol.values.json_bounds import Bounds, TooMuch, check_bounds
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG, MAX_IMA_PART, MAX_PCRS
from tang_attest.service.enrollment.enroll import Application
from tang_attest.service.policies.announce import Announcement

#: Limits of a request.  An honest one nests 2 deep and has fewer than 100 members and elements.
BOUNDS: Final = Bounds(depth=32, parts=256)
#: The same for a client with an admin token, which may change whole policies.
ADMIN_BOUNDS: Final = Bounds(depth=32, parts=8192)
MAX_CERTIFICATE: Final = 8 * 1024
#: A session holds an application of the largest size, encoded twice.
MAX_SESSION: Final = 32 * 1024
#: Characters of a nonce, and of a ticket; of a token.
MAX_NONCE: Final = 128
MAX_TOKEN: Final = 128
#: Names in a list of critical members, and characters of one.
MAX_CRITICAL: Final = 32
MAX_MEMBER: Final = 64
#: Sentences about an announcement, and characters of one.
MAX_CHANGES: Final = 64
MAX_CHANGE: Final = 256
#: The size of an event log that was not sent, and the offset of a part of IMA's list.
MAX_SIZE: Final = 2**40
#: Characters of a number; none is longer than 2^63, and Python's own take quadratic time.
MAX_NUMBER: Final = 32


def parse_json(body: bytes, bounds: Bounds = BOUNDS) -> dict[str, Any]:
    """Return the JSON object in *body*, which is UTF-8 without a byte order mark (RFC 8259, 8.1).

    Raises :class:`Malformed` ``request-malformed`` for anything but one object, for a repeated member, NaN,
    Infinity, half of a surrogate pair, a number of more than 32 characters, and, before anything is parsed,
    for a body beyond *bounds*.
    """
    try:
        check_bounds(body, bounds)
    except TooMuch as error:
        raise Malformed("request-malformed", f"The body is too much: {error}.") from None
    try:
        value = _DECODER.decode(body.decode())
        if b"\\u" in body:  # UTF-8 has no half of a pair
            _check_pairs(value)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Strict) else "it is not JSON"
        raise Malformed("request-malformed", f"The body cannot be read: {reason}.") from None
    if not isinstance(value, dict):
        raise Malformed("request-malformed", "The body is not a JSON object.")
    return value


class _Strict(ValueError):
    pass


def _check_pairs(value: object) -> None:
    r"""Refuse half of a surrogate pair (``"\ud800"``), which no database, digest and answer can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Strict("it has half of a surrogate pair") from None


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Strict("a member is repeated")
    return members


def _no_constant(_: str) -> None:
    raise _Strict("it holds NaN or Infinity")


def _integer(text: str) -> int:
    return int(_short(text))


def _float(text: str) -> float:
    return float(_short(text))


def _short(text: str) -> str:
    if len(text) > MAX_NUMBER:
        raise _Strict("a number is too long")
    return text


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_no_repetition, parse_constant=_no_constant, parse_int=_integer, parse_float=_float
)


def _decode_b64u(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004 - pydantic reports a ValueError, not a TypeError
    return unb64u(value)


B64u = Annotated[bytes, BeforeValidator(_decode_b64u)]


class Body(BaseModel):
    """A request body: unknown members are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Message(Body):
    """A request body of docs/protocol.md: unknown members are ignored, unless ``critical`` names them (12.2)."""

    model_config = ConfigDict(extra="ignore")

    critical: list[Annotated[str, Field(max_length=MAX_MEMBER)]] = Field(
        default_factory=list, max_length=MAX_CRITICAL, fail_fast=True
    )


class AttestMember(Message):
    """Member ``attest`` of an unlock request (docs/protocol.md, 3.2)."""

    nonce: str = Field(max_length=MAX_NONCE)
    quote: B64u = Field(max_length=MAX_STRUCTURE)
    signature: B64u = Field(max_length=MAX_STRUCTURE)
    pcrs: B64u = Field(max_length=MAX_PCRS)
    event_log: B64u = Field(b"", max_length=MAX_EVENT_LOG)
    event_log_size: int = Field(0, ge=0, le=MAX_SIZE)
    # Its contents are looked at once the quote is the TPM's: what is wrong there is as if it were not there (3.8).
    signed_values: dict[str, Any] | None = None

    def evidence(self) -> Evidence:
        """Return it as a value of the core."""
        return Evidence(
            self.nonce,
            self.quote,
            self.signature,
            self.pcrs,
            self.event_log,
            event_log_size=self.event_log_size,
            signed_values=self.signed_values,
        )


class EnrollBody(Message):
    """``POST /attest/enroll`` (docs/protocol.md, 4.1)."""

    name: str = Field(max_length=64)
    token: str | None = Field(None, max_length=MAX_TOKEN)
    ak: B64u = Field(max_length=MAX_STRUCTURE)
    ek: B64u = Field(max_length=MAX_STRUCTURE)
    ek_certificate: B64u | None = Field(None, max_length=MAX_CERTIFICATE)

    def application(self) -> Application:
        """Return it as a value of the use case.  Raises ``request-malformed`` for a name that is none."""
        return Application(check_name(self.name), self.token, self.ak, self.ek, self.ek_certificate or None)


class ProveBody(AttestMember):
    """``POST /attest/agent/{kid}/evidence`` (docs/protocol.md, 10.2)."""

    ima: B64u | None = Field(None, max_length=MAX_IMA_PART)
    ima_offset: int = Field(0, ge=0, le=MAX_SIZE)
    cap_events: B64u | None = Field(None, max_length=MAX_TEXTS)

    def evidence(self) -> Evidence:
        """Return it as a value of the core."""
        return replace(
            AttestMember.evidence(self),
            ima=self.ima,
            ima_offset=self.ima_offset,
            cap_events=self.cap_events,
        )


class SelectionBody(Message):
    """``POST /attest/enroll/selection`` (docs/protocol.md, 4.1)."""

    session: str = Field(max_length=MAX_SESSION)
    event_log: B64u = Field(max_length=MAX_EVENT_LOG)


class FinishBody(Message):
    """``POST /attest/enroll/finish`` (docs/protocol.md, 4.2)."""

    session: str = Field(max_length=MAX_SESSION)
    proof: str = Field(pattern=r"^[0-9a-f]{64}$")
    quote: B64u = Field(max_length=MAX_STRUCTURE)
    signature: B64u = Field(max_length=MAX_STRUCTURE)
    pcrs: B64u = Field(max_length=MAX_PCRS)
    event_log: B64u = Field(b"", max_length=MAX_EVENT_LOG)

    def evidence(self) -> Evidence:
        """Return it as a value of the core; the nonce is in the session."""
        return Evidence("", self.quote, self.signature, self.pcrs, self.event_log)


class AnnounceBody(AttestMember):
    """``POST /attest/announce/{kid}`` (docs/protocol.md, section 9)."""

    label: str = Field(min_length=1, max_length=MAX_LABEL)
    values: B64u = Field(max_length=MAX_PCRS)
    changes: list[Annotated[str, Field(max_length=MAX_CHANGE)]] = Field(
        default_factory=list, max_length=MAX_CHANGES, fail_fast=True
    )

    def announcement(self) -> Announcement:
        """Return it as a value of the use case.  Raises ``request-malformed`` for a label that is none."""
        return Announcement(self.label, self.values, tuple(self.changes))


class PollBody(Message):
    """``POST /attest/agent/{kid}`` (docs/protocol.md, 10.1)."""

    ticket: str | None = Field(None, max_length=MAX_NONCE)


_Model = TypeVar("_Model", bound=Body)


def validate(model: type[_Model], value: object, code: str = "request-malformed") -> _Model:
    """Return *value* as *model*.  Raises :class:`Malformed` *code*, naming the first member that is wrong.

    A :class:`Message` is read as docs/protocol.md, 12.2 says; raises ``extension-unsupported``.  Unknown members
    of another body are refused first: pydantic would describe every one of them.
    """
    if isinstance(value, dict):
        if issubclass(model, Message):
            value = _known(model, value)
        elif (surplus := next((name for name in value if name not in model.model_fields), None)) is not None:
            raise Malformed(code, f"{_shown(surplus)}: Extra inputs are not permitted.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        member = ".".join(str(part) for part in first["loc"]) or "the body"
        message = first["msg"].removeprefix("Value error, ")
        raise Malformed(code, f"{_shown(member)}: {message[:120]}.") from None


def _known(model: type[Message], value: Mapping[str, object]) -> dict[str, object]:
    """Return the members of *value* that *model* knows, without optional ones that are null.

    Raises ``extension-unsupported``.
    """
    fields, critical = model.model_fields, value.get("critical")
    for member in critical if isinstance(critical, list) else ():
        if isinstance(member, str) and member not in fields:
            raise Malformed(
                "extension-unsupported", f"{_shown(member)}: This server does not know this member."
            )
    return {
        name: member
        for name, member in value.items()
        if name in fields and (member is not None or fields[name].is_required())
    }


def _shown(member: str) -> str:
    """Return a member's name, which the client chose, in a form that is safe for a console."""
    return member[:80] if member[:80].isprintable() else ascii(member)[1:81]

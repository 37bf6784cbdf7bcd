"""Acts that an operator signs with their passkey: what is done, to which machines, within which limits."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Final, TypeAlias

from tang_attest.errors import Malformed
from tang_attest.ports.operators import OperatorRole
from tang_attest.protocol.coverage import BootPart

#: The most boots of one approval, and minutes of a limit (a year).
MAX_BOOTS: Final = 256
MAX_MINUTES: Final = 366 * 24 * 60
_MAX_NAME: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproveBoots:
    """Approve refused boots, each by its device and observation; one machine, or several that differ alike.

    ``only_this_device``, ``once`` and ``minutes`` are the limits of
    :class:`~tang_attest.service.policies.reference_values.Approval`; without them the values count for the
    policy, for good.
    """

    kind: ClassVar[str] = "approve"
    role: ClassVar[OperatorRole] = OperatorRole.APPROVER

    boots: tuple[tuple[str, int], ...]
    only_this_device: bool = False
    once: bool = False
    minutes: int | None = None
    accepted: tuple[BootPart, ...] = ()


@dataclass(frozen=True, slots=True)
class ApproveAnnounced:
    """Let an announced state of a policy count."""

    kind: ClassVar[str] = "approve-announced"
    role: ClassVar[OperatorRole] = OperatorRole.APPROVER

    policy: str
    label: str
    accepted: tuple[BootPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Let a retired state of a policy count again."""

    kind: ClassVar[str] = "reinstate"
    role: ClassVar[OperatorRole] = OperatorRole.APPROVER

    policy: str
    label: str


@dataclass(frozen=True, slots=True)
class ResumeDevice:
    """Let the keys of a suspended device answer again."""

    kind: ClassVar[str] = "resume"
    role: ClassVar[OperatorRole] = OperatorRole.APPROVER

    device: str


@dataclass(frozen=True, slots=True)
class AllowUnlock:
    """Allow a device to unlock for some minutes."""

    kind: ClassVar[str] = "allow"
    role: ClassVar[OperatorRole] = OperatorRole.APPROVER

    device: str
    minutes: int


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    """Forget a device and destroy its exchange keys."""

    kind: ClassVar[str] = "remove"
    role: ClassVar[OperatorRole] = OperatorRole.ADMIN

    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueToken:
    """Create an enrollment token: for the device *name*, if it is given, and under *policy*, or else with a
    policy that is recorded.
    """

    kind: ClassVar[str] = "token"
    role: ClassVar[OperatorRole] = OperatorRole.ADMIN

    name: str | None = None
    policy: str | None = None
    minutes: int = 60
    machines: int = 1
    labels: tuple[str, ...] = ()
    allow_unverified_ek: bool = False


@dataclass(frozen=True, slots=True)
class TrustPredictions:
    """Let values count at once that machines under a policy announce for their next boot."""

    kind: ClassVar[str] = "trust-predictions"
    role: ClassVar[OperatorRole] = OperatorRole.ADMIN

    policy: str


Act: TypeAlias = (
    ApproveBoots
    | ApproveAnnounced
    | Reinstate
    | ResumeDevice
    | AllowUnlock
    | RemoveDevice
    | IssueToken
    | TrustPredictions
)
KINDS: Final[Mapping[str, type[Act]]] = {kind.kind: kind for kind in typing.get_args(Act)}


def members_of(act: Act) -> dict[str, Any]:
    """Return *act* JSON-compatible, as :func:`read_act` takes it."""
    return {"act": act.kind, **{name: _plain(value) for name, value in asdict(act).items()}}


def read_act(members: object) -> Act:
    """Return the act in *members*: ``act`` names its kind, the others are its fields, some of them optional.

    Raises ``request-malformed``.
    """
    if not isinstance(members, Mapping) or (kind := KINDS.get(str(members.get("act")))) is None:
        raise Malformed("request-malformed", f"An act is one of: {', '.join(KINDS)}.")
    given = {str(name): value for name, value in members.items() if name != "act"}
    if unknown := sorted(set(given) - set(_hints(kind))):
        raise Malformed("request-malformed", f"The act '{kind.kind}' has no member '{unknown[0][:40]}'.")
    values = {name: _read(kind, name, value) for name, value in given.items()}
    try:
        act = kind(**values)
    except TypeError:
        missing = [field.name for field in fields(kind) if field.name not in values]
        sentence = f"The act '{kind.kind}' misses one of its members: {', '.join(missing)}."
        raise Malformed("request-malformed", sentence) from None
    check_act(act)
    return act


def check_act(act: Act) -> None:
    """Raise ``request-malformed`` for an act outside of the limits."""
    minutes = getattr(act, "minutes", None)
    if minutes is not None and not 1 <= minutes <= MAX_MINUTES:
        raise Malformed("request-malformed", f"A limit is 1 to {MAX_MINUTES} minutes.")
    if isinstance(act, ApproveBoots):
        names = {name for name, _ in act.boots}
        if not 1 <= len(act.boots) <= MAX_BOOTS or len(names) != len(act.boots):
            sentence = f"An approval has 1 to {MAX_BOOTS} boots, each of another device."
            raise Malformed("request-malformed", sentence)


def _hints(kind: type[Act]) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _read(kind: type[Act], name: str, value: object) -> Any:
    """Return *value* as the field *name* of *kind* has it."""
    hint = _hints(kind)[name]
    optional = isinstance(hint, types.UnionType)
    if optional and value is None:
        return None
    wanted = next(each for each in typing.get_args(hint) if each is not types.NoneType) if optional else hint
    read = _READERS.get(wanted)
    if read is not None and (found := read(value)) is not None:
        return found
    raise Malformed("request-malformed", f"The member '{name}' of the act '{kind.kind}' cannot be read.")


def _text(value: object) -> str | None:
    good = isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable()
    return str(value) if good else None


def _whole(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if good and isinstance(value, int) else None


def _switch(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _texts(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple) or len(value) > MAX_BOOTS:
        return None
    found = tuple(text for each in value if (text := _text(each)) is not None)
    return found if len(found) == len(value) else None


def _parts(value: object) -> tuple[BootPart, ...] | None:
    names = _texts(value)
    known = {part.value for part in BootPart}
    if names is None or not known.issuperset(names):
        return None
    return tuple(part for part in BootPart if part.value in names)


def _boots(value: object) -> tuple[tuple[str, int], ...] | None:
    if not isinstance(value, list | tuple) or len(value) > MAX_BOOTS:
        return None
    found = []
    for each in value:
        if not isinstance(each, list | tuple) or len(each) != 2:
            return None
        name, number = _text(each[0]), _whole(each[1])
        if name is None or number is None:
            return None
        found.append((name, number))
    return tuple(found)


_READERS: Final[Mapping[Any, Any]] = {
    str: _text,
    int: _whole,
    bool: _switch,
    tuple[str, ...]: _texts,
    tuple[BootPart, ...]: _parts,
    tuple[tuple[str, int], ...]: _boots,
}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value.value if isinstance(value, BootPart) else value

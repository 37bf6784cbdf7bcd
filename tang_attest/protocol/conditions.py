"""Conditions of a policy beside reference values: continuous verification, approval by an operator,
freshness.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from tang_attest.errors import Malformed, Reason

#: A hook is a program of the server's hook directory, never a path: who may write policies may not choose
#: programs.
_ACTION: Final = re.compile(
    r"log|suspend|hook:[A-Za-z0-9][A-Za-z0-9._-]{0,62}|webhook:(?i:https?)://[!-~]{1,500}"
)
MAX_ACTIONS: Final = 8
MAX_INTERVAL_S: Final = 7 * 86400
MAX_MISSES: Final = 1000
MAX_JITTER: Final = 50
#: The most operators that a policy can require.
MAX_OPERATORS: Final = 5


def check_new_actions(before: Watch | None, after: Watch | None) -> None:
    """Check the actions of *after* that *before* does not have, more closely than what is stored already.

    Raises ``setting-invalid`` for a webhook at a URL with an impossible host or port, or with a user.
    """
    for action in sorted(_actions(after) - _actions(before)):
        if action.startswith("webhook:") and not _is_address(action.removeprefix("webhook:")):
            sentence = "The URL of a webhook has a host, a port of 1 to 65535 or none, and no user."
            raise Malformed("setting-invalid", sentence)


def _actions(watch: Watch | None) -> frozenset[str]:
    return frozenset() if watch is None else frozenset({*watch.on_refused, *watch.on_unreachable})


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and parts.username is None and parts.password is None
    except ValueError:  # a port above 65535, or brackets without an address
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Continuous verification: every *interval_s* seconds, give or take *jitter* percent.

    A machine is unreachable after *misses* intervals without evidence.  *on_refused* and *on_unreachable* are
    what follows: ``log``, ``suspend``, ``hook:NAME``, ``webhook:URL``.
    """

    interval_s: int = 60
    jitter: int = 10
    misses: int = 3
    on_refused: tuple[str, ...] = ("log",)
    on_unreachable: tuple[str, ...] = ("log",)

    def __post_init__(self) -> None:
        limits = (
            ("interval", self.interval_s, 1, MAX_INTERVAL_S),
            ("jitter", self.jitter, 0, MAX_JITTER),
            ("misses", self.misses, 1, MAX_MISSES),
        )
        for name, value, least, most in limits:
            if not least <= value <= most:
                raise Malformed("setting-invalid", f"The {name} is {least} to {most}, not {value}.")
        for actions in (self.on_refused, self.on_unreachable):
            if len(actions) > MAX_ACTIONS:
                raise Malformed("setting-invalid", f"More than {MAX_ACTIONS} actions follow.")
            for action in actions:
                if not _ACTION.fullmatch(action):
                    sentence = "An action is log, suspend, hook:NAME or webhook:URL."
                    raise Malformed("setting-invalid", sentence)

    def pause_s(self, chance: float) -> float:
        """Seconds between two rounds; *chance*, 0 to 1, spreads machines that began together."""
        return self.interval_s * (1 + self.jitter / 100 * (2 * chance - 1))

    @property
    def silence(self) -> timedelta:
        """Without evidence for this long, a machine is unreachable."""
        return timedelta(seconds=self.interval_s * self.misses * (1 + self.jitter / 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """A policy's conditions; none by default.

    *approval*: an unlock needs an operator's approval within a window.  *stale_after_s*: a machine that gave
    no authentic evidence for so long is refused until a person allows it.  *ima*: the digest of what is
    required of a running machine's measurement list (:class:`tang_attest.protocol.ima.Requirement`).
    *attested_root*: a running machine has to prove that attestation opened each of its disks
    (:mod:`tang_attest.protocol.cap`).  *registered_ek*: a machine enrolls only if an operator registered its
    EK before.  *operators*: so many operators of the console have to sign what adds trust to the policy; with
    1, an operator at the server or a token's holder can do it, too.
    """

    watch: Watch | None = None
    approval: bool = False
    stale_after_s: int | None = None
    ima: str | None = None
    attested_root: bool = False
    registered_ek: bool = False
    operators: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.operators <= MAX_OPERATORS:
            raise Malformed("setting-invalid", f"A policy requires 1 to {MAX_OPERATORS} operators.")

    @property
    def may_delay(self) -> bool:
        """True if an unlock that the values permit may have to wait for an operator."""
        return self.approval or self.stale_after_s is not None

    def obstacle(
        self, device: str, allowed_until: datetime | None, seen_at: datetime | None, now: datetime
    ) -> Reason | None:
        """Return the reason for *device*, whose values the policy permits, to wait for an operator, or
        ``None``.

        *seen_at* is when it last gave authentic evidence (or was enrolled), *allowed_until* the end of an
        operator's approval.
        """
        if allowed_until is not None and now < allowed_until:
            return None
        if self.approval:
            return Reason("approval-required", f"A person has to allow each unlock of '{device}'.")
        if self.stale_after_s is not None and seen_at is not None:
            silent = now - seen_at
            if silent > timedelta(seconds=self.stale_after_s):
                return Reason("device-stale", f"'{device}' was not seen for {_days(silent)}.")
        return None

    def as_json(self) -> dict[str, Any]:
        """JSON-compatible, and what :meth:`from_json` takes."""
        fields = asdict(self)
        if not self.registered_ek:
            del fields["registered_ek"]  # as it was before there was this condition
        if self.operators == 1:
            del fields["operators"]  # likewise
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any] | None) -> Conditions:
        """Rebuild the conditions from the output of :meth:`as_json`."""
        if not fields:
            return cls()
        watch = fields["watch"]
        if watch is not None:
            lists = {name: tuple(watch[name]) for name in ("on_refused", "on_unreachable")}
            watch = Watch(**(watch | lists))
        return cls(**{**fields, "watch": watch})


def _days(span: timedelta) -> str:
    return f"{span.days} days" if span.days != 1 else "1 day"

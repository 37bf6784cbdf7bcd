"""Refusals of unauthenticated clients in the audit record: the first ones in full, the rest as a number.

A client that knows a ``kid`` (it is in the header of every disk that is bound to it) may send anything as
evidence, and may replay evidence from the network.  Each refusal would be a row.

Rules of this module:

* No attempt is hidden behind others: of each key, the first refusals are written one by one, and an entry has
  the number, times, addresses and reasons of the rest.
* The record, which cannot be shortened, is not filled: while refusals go on, each window is twice as long as
  the one before, up to an hour, and has one entry in full.  A key has a hundred entries a day at most,
  whatever is sent about it.
* Refusals that are counted and not written yet are lost when the process is killed: at most one window's
  numbers.
* Decisions are never left out: the store writes a policy's verdict on authentic evidence.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import Final

from tang_attest.errors import Reason, Refused, TangAttestError
from tang_attest.ports.audit import AuditEntry, AuditStore
from tang_attest.ports.decisions import Decision
from tang_attest.ports.world import Clock
from tang_attest.protocol.policy import differing_pcrs
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG

WINDOW: Final = timedelta(minutes=1)
#: Doublings of a window: the longest has an hour and four minutes.
_LONGEST: Final = 6
#: A key that was quiet for so long begins anew.
CALM: Final = timedelta(hours=6)
#: Entries of a first window that are written in full: about one key, and about enrollments, which have none.
FULL_OF_KEY: Final = 10
FULL_OF_ENROLLMENTS: Final = 30
#: Keys that are counted at the same time, and addresses that a summary names.
KEYS: Final = 4096
ADDRESSES: Final = 16


@dataclass(slots=True)
class _Tally:
    """One window of one key."""

    first: AuditEntry
    level: int = 0
    written: int = 0
    last_at: datetime | None = None
    codes: Counter[str] = field(default_factory=Counter)
    _: KW_ONLY
    addresses: Counter[str] = field(default_factory=Counter)

    def has_room(self) -> bool:
        if self.level:
            return not self.written
        return self.written < (FULL_OF_KEY if self.first.kid else FULL_OF_ENROLLMENTS)

    def leave_out(self, entry: AuditEntry) -> None:
        address = entry.address or "unknown"
        if address not in self.addresses and len(self.addresses) >= ADDRESSES:
            address = "others"
        self.addresses[address] += 1
        self.codes[entry.code] += 1
        self.last_at = entry.at

    def is_over(self, now: datetime) -> bool:
        # A clock that was set back ends it too.
        return not self.first.at <= now < self.ends_at

    @property
    def ends_at(self) -> datetime:
        return self.first.at + WINDOW * (1 << self.level)

    def summary(self, now: datetime) -> AuditEntry | None:
        if self.last_at is None:
            return None
        first = self.first
        return AuditEntry(
            at=now,
            event=first.event,
            actor="server",
            verdict="refused",
            code="too-many-requests",
            device=first.device if first.kid else None,
            kid=first.kid,
            details={
                "left_out": self.codes.total(),
                "since": first.at.isoformat(timespec="seconds"),
                "until": self.last_at.isoformat(timespec="seconds"),
                "codes": dict(self.codes),
                "addresses": dict(self.addresses),
            },
        )


def describe_refusal(error: TangAttestError) -> dict[str, object]:
    """Return the reasons of a refusal for the audit record; with ``pcrs`` if the policy named some."""
    details: dict[str, object] = {"reasons": [reason.as_json() for reason in error.reasons]}
    if isinstance(error, Refused) and (pcrs := differing_pcrs(error)):
        details["pcrs"] = list(pcrs)
    return details


def with_log_size(refusal: Refused, size: int) -> Refused:
    """Return *refusal*; a missing event log whose *size* in bytes is over the limit is reported with that
    size.

    The machine reports the size itself, unsigned.
    """
    if size <= MAX_EVENT_LOG or all(reason.code != "log-missing" for reason in refusal.reasons):
        return refusal
    sentence = (
        f"The policy judges an event log: the event log has {size} bytes, and {MAX_EVENT_LOG} is the limit."
    )
    told = Reason("log-missing", sentence)
    return Refused.because(*(told if reason.code == "log-missing" else reason for reason in refusal.reasons))


class Refusals:
    """Writes refusals to *store*; each worker process counts for itself."""

    def __init__(self, store: AuditStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()
        self._noisy: OrderedDict[str, tuple[int, datetime]] = (
            OrderedDict()
        )  # the level that was, and until when
        self.left_out = 0

    async def note(self, entry: AuditEntry) -> None:
        """Write *entry*, durably, or count it.  Raises what the store raises."""
        tally = await self._tally(entry)
        if tally.has_room():
            tally.written += 1
            await self._store.append(entry)
        else:
            tally.leave_out(entry)
            self.left_out += 1

    async def note_lost(self, entry: AuditEntry, decision: Decision) -> None:
        """Write or count *entry*, the reason that the store did not take *decision*.  Raises errors of the
        store.

        The store itself writes the second use of a nonce, in the transaction that notices it, if there was
        room.
        """
        if entry.code == "nonce-used" and decision.replay_in_full:
            (await self._tally(entry)).written += 1
        else:
            await self.note(entry)

    def has_room(self, kid: str) -> bool:
        """Return True when the next refusal about *kid* is written in full."""
        tally = self._tallies.get(kid)
        return tally is None or tally.has_room() or tally.is_over(self._clock.now())

    async def _tally(self, entry: AuditEntry) -> _Tally:
        """Return the tally that counts *entry*; finish the window before if it is over."""
        key = entry.kid or f"{entry.event} without a kid"
        tally = self._tallies.get(key)
        if tally is not None and tally.is_over(entry.at):
            await self._finish(key)
            tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally(entry, self._level(key, entry.at))
        self._tallies.move_to_end(key)
        if len(self._tallies) > KEYS:
            await self._finish(next(iter(self._tallies)))
        return tally

    def _level(self, key: str, now: datetime) -> int:
        """Return the number of doublings of the window of *key*: one more than last time, unless it was quiet
        since.
        """
        level, until = self._noisy.pop(key, (-1, now))
        return 0 if now >= until + CALM else min(level + 1, _LONGEST)

    async def flush(self, *, everything: bool = False) -> None:
        """Write the counts of windows that are over, or of all windows when the server stops."""
        now = self._clock.now()
        for key in [key for key, tally in self._tallies.items() if everything or tally.is_over(now)]:
            await self._finish(key)

    async def _finish(self, key: str) -> None:
        tally = self._tallies.pop(key, None)
        if tally is None:
            return
        if (summary := tally.summary(self._clock.now())) is not None:
            try:
                await self._store.append(summary)
            except TangAttestError:
                self._tallies.setdefault(key, tally)  # tried again with the next one
                raise
        self._noisy[key] = tally.level, min(tally.ends_at, self._clock.now())
        if len(self._noisy) > KEYS:
            self._noisy.popitem(last=False)

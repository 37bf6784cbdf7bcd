"""Differences of a log from an approved one, event by event, in sentences for people.

For eyes only: nothing here decides.  Text of the log beyond its digests is marked with ``claims``, unless
it re-hashes (``rehash.py``): a path, an image's name and a file's name are never measured.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal

from tang_attest.protocol.eventlog.replay import replay
from tang_attest.protocol.eventlog.structures import Event, EventLog
from tang_attest.protocol.eventlog.subject import subject_of

_MOST_ALIGNED: Final = 1000
"""Events of one PCR in one log; finding the best alignment takes quadratic time and more."""

_SHOWN_DIGEST: Final = 12
_MOST_WORDS: Final = 12


@dataclass(frozen=True, slots=True)
class EventDifference:
    """One event that is not as it was approved.

    ``before`` is the approved event and ``after`` the one that was seen; one of them is ``None`` when an
    event was added or removed.  ``sentence`` starts in lower case and has no full stop.
    """

    pcr: int
    kind: Literal["added", "removed", "replaced"]
    sentence: str
    before: Event | None
    after: Event | None

    def as_json(self) -> dict[str, object]:
        """``{"pcr", "kind", "sentence", "before", "after"}``; the last two are event numbers in their logs or
        null.
        """
        return {
            "pcr": self.pcr,
            "kind": self.kind,
            "sentence": self.sentence,
            "before": None if self.before is None else self.before.index,
            "after": None if self.after is None else self.after.index,
        }


def difference(
    approved: EventLog, seen: EventLog, bank: str, pcrs: Collection[int] | None = None
) -> tuple[EventDifference, ...]:
    """Return the events of *seen* that differ from those of *approved*, by PCR and then in the order of the
    logs.

    Compares what was extended in *bank* (``sha256``), in *pcrs* or in all; an event is the same when its
    digest is.  Empty exactly when both logs extend the same digests in the same order.  Odd data is shown as
    bytes.

    Raises :class:`Malformed` ``eventlog-bank-missing`` when one of the logs does not have *bank*.
    NOT checked: that either log replays to anything, so what the sentences explain may never have happened.
    """
    for log in (approved, seen):
        replay(log, bank)
    changes: list[EventDifference] = []
    for pcr in range(24) if pcrs is None else sorted(pcrs):
        old, new = _extended(approved, pcr), _extended(seen, pcr)
        changes += [_change(pcr, before, after, bank) for before, after in _aligned(old, new, bank)]
    return tuple(changes)


def _extended(log: EventLog, pcr: int) -> list[Event]:
    return [event for event in log.events if event.extends and event.pcr == pcr]


_Pair = tuple[Event | None, Event | None]


def _aligned(old: Sequence[Event], new: Sequence[Event], bank: str) -> list[_Pair]:
    """Pairs of different events: (approved, seen), with ``None`` for a partner that is missing."""
    a, b = [event.digests[bank] for event in old], [event.digests[bank] for event in new]
    if a == b:
        return []
    if len(a) > _MOST_ALIGNED or len(b) > _MOST_ALIGNED:
        return _unaligned(old, new, bank)
    pairs: list[_Pair] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, a, b).get_opcodes():
        if tag != "equal":
            pairs += _paired(old[i1:i2], new[j1:j2], bank)
    return pairs


def _unaligned(old: Sequence[Event], new: Sequence[Event], bank: str) -> list[_Pair]:
    """Too many to align: what one log has more often than the other; if only the order differs, its first
    place.
    """
    counts_old, counts_new = (Counter(event.digests[bank] for event in events) for events in (old, new))
    lost, gained = counts_old - counts_new, counts_new - counts_old
    pairs: list[_Pair] = []
    for event in old:
        if lost[event.digests[bank]] > 0:
            lost[event.digests[bank]] -= 1
            pairs.append((event, None))
    for event in new:
        if gained[event.digests[bank]] > 0:
            gained[event.digests[bank]] -= 1
            pairs.append((None, event))
    return pairs or [next(p for p in zip(old, new, strict=True) if p[0].digests[bank] != p[1].digests[bank])]


def _paired(old: Sequence[Event], new: Sequence[Event], bank: str) -> list[_Pair]:
    """Pair the events of a replaced stretch: those about the same thing, then those of one type, then the rest."""
    pairs: list[_Pair] = []
    left_old, left_new = list(old), list(new)
    subjects = {id(event): subject_of(event, bank) for event in (*old, *new)}
    alike: tuple[Callable[[Event], object], ...] = (
        lambda event: (subjects[id(event)].what, subjects[id(event)].claim),
        lambda event: subjects[id(event)].what,
        lambda event: event.type,
    )
    for same in alike:
        waiting: dict[object, deque[Event]] = defaultdict(deque)
        for event in left_new:
            waiting[same(event)].append(event)
        paired: set[int] = set()
        for event in left_old:
            if partners := waiting.get(same(event)):
                partner = partners.popleft()
                pairs.append((event, partner))
                paired |= {id(event), id(partner)}
        left_old = [event for event in left_old if id(event) not in paired]
        left_new = [event for event in left_new if id(event) not in paired]
    pairs += [(event, None) for event in left_old] + [(None, event) for event in left_new]
    return sorted(pairs, key=_place)


def _place(pair: _Pair) -> tuple[int, int]:
    before, after = pair
    event = after or before
    return (event.index if event else 0, 0 if after else 1)


def _change(pcr: int, before: Event | None, after: Event | None, bank: str) -> EventDifference:
    if before is None or after is None:
        kind: Literal["added", "removed"] = "added" if before is None else "removed"
        sentence = "".join(_alone(event, kind, bank) for event in (before, after) if event is not None)
        return EventDifference(pcr, kind, sentence, before, after)
    return EventDifference(pcr, "replaced", _replaced(before, after, bank), before, after)


def _alone(event: Event, verb: str, bank: str) -> str:
    subject = subject_of(event, bank)
    if subject.text is not None:
        return f"{subject.what} was {verb}: {subject.text}"
    return f"{subject.named} was {verb}: digest {_short(event.digests[bank])}"


def _replaced(before: Event, after: Event, bank: str) -> str:
    old, new = subject_of(before, bank), subject_of(after, bank)
    digests = f"digest {_short(after.digests[bank])} instead of {_short(before.digests[bank])}"
    if old.what != new.what:
        return f"{new.shown} took the place of {old.shown}: {digests}"
    if old.text is None or new.text is None:
        return f"{new.named} changed: {digests}"
    if old.switch is not None and new.switch is not None:
        return f"{new.what} was switched {new.switch}"
    if old.words is not None and new.words is not None and (words := _words(old.words, new.words)):
        return f"{new.what} {words}"
    return f"{new.what} changed: {new.text} instead of {old.text}"


def _words(old: Sequence[str], new: Sequence[str]) -> str:
    """``gained init=/bin/sh, lost quiet, changed root=/dev/sdb (was root=/dev/sda)``; empty if only their
    order differs.

    In linear time: a line of a log has as many words as its sender likes, and an alignment of them would be
    quadratic.
    """
    lost, gained = _only_in(old, new), _only_in(new, old)
    before: dict[str, deque[str]] = defaultdict(deque)
    for word in lost:
        before[_name(word)].append(word)
    added, changed = [], []
    for word in gained:
        if was := before[_name(word)]:
            changed.append(f"{word} (was {was.popleft()})")
        else:
            added.append(word)
    unpaired = Counter(word for words in before.values() for word in words)
    removed = _first(lost, unpaired)
    parts = (("gained", added), ("lost", removed), ("changed", changed))
    return ", ".join(f"{verb} {_listed(words)}" for verb, words in parts if words)


def _only_in(words: Sequence[str], other: Sequence[str]) -> list[str]:
    """Of *words*, in their order, what *other* does not have as often."""
    return _first(words, Counter(words) - Counter(other))


def _first(words: Sequence[str], counts: Counter[str]) -> list[str]:
    """Return the first occurrences of each word, as many as *counts* says."""
    found = []
    for word in words:
        if counts[word] > 0:
            counts[word] -= 1
            found.append(word)
    return found


def _name(word: str) -> str:
    return word.partition("=")[0]


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MOST_WORDS} more" if len(words) > _MOST_WORDS else ""
    return " ".join(words[:_MOST_WORDS]) + more


def _short(digest: bytes) -> str:
    shown = digest.hex()
    return f"{shown[:_SHOWN_DIGEST]}..." if len(shown) > _SHOWN_DIGEST else shown

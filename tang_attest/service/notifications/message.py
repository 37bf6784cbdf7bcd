"""The text of a message: short, of one line where a header carries it, and without values and secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urljoin

from tang_attest.ports.notices import NoticeGroup, NoticeKind
from tang_attest.service.notifications import places

#: Machines that a message names.
NAMED: Final = 20
_LONGEST: Final = 300
_TITLES: Final = {
    NoticeKind.BOOT: "a refused boot waits",
    NoticeKind.ANNOUNCEMENT: "announced values wait for an approval",
    NoticeKind.UNLOCK: "an unlock waits for a person",
    NoticeKind.APPROVAL: "a signed approval waits for another operator",
    NoticeKind.SUSPENSION: "suspended",
    NoticeKind.SILENCE: "silent",
    NoticeKind.ROLLOUT: "a rollout was stopped",
    NoticeKind.RECORD: "the audit record does not hold",
    NoticeKind.CERTIFICATE: "a certificate ends",
}
#: Kinds whose subjects are machines.
_MACHINES: Final = frozenset(
    {
        NoticeKind.BOOT,
        NoticeKind.ANNOUNCEMENT,
        NoticeKind.UNLOCK,
        NoticeKind.SUSPENSION,
        NoticeKind.SILENCE,
    }
)


def compose(group: NoticeGroup, server: str, url: str | None) -> Mapping[str, object]:
    """Return the message of *group*, JSON-compatible; *url* is the console's address."""
    names = list(dict.fromkeys(name for name, _ in group.members.values()))
    # Machines that were told before come last: the newest are news.
    news = list(reversed(names)) if group.step else names
    count = len(names) + group.beyond
    action = group.action.replace(" DEVICE", f" {names[0]}") if len(names) == 1 else group.action
    return {
        "id": hashlib.sha256(f"{group.key} {group.first_at.isoformat()} {group.step}".encode()).hexdigest()[
            :32
        ],
        "event": group.kind.value,
        "title": line(_title(group.kind, names, count)),
        "at": _iso(group.first_at),
        "count": count,
        "update": group.step > 0,
        "names": [line(name) for name in news[:NAMED]],
        "sentence": line(group.sentence),
        "action": line(action),
        "server": line(server),
        "url": None if url is None else url.rstrip("/") + _page(group, news),
    }


def _page(group: NoticeGroup, news: list[str]) -> str:
    """Return the console's page on which *group* is decided; *news* are its machines, the newest first if it was told."""
    if group.page is not None:
        return group.page
    if group.kind is NoticeKind.BOOT and news:
        return places.of_newest_refusal(news[0])  # it has the machines with the same difference
    if group.kind in _MACHINES and len(news) == 1 and not group.beyond:
        return places.of_machine(news[0])
    return places.FIRST


def test_message(now: datetime, server: str, url: str | None) -> Mapping[str, object]:
    """Return the message of ``notify test``."""
    return {
        "id": hashlib.sha256(f"test {now.isoformat()}".encode()).hexdigest()[:32],
        "event": "test",
        "title": "a test of the notifications",
        "at": _iso(now),
        "count": 1,
        "update": False,
        "names": [],
        "sentence": "This is a test of the notifications.",
        "action": "Nothing has to be done.",
        "server": line(server),
        "url": url,
    }


def without_names(message: Mapping[str, object]) -> Mapping[str, object]:
    """Return *message* for a receiver that shall not learn names of machines and policies, nor what differs."""
    if message["event"] == "test":
        return message
    kind = NoticeKind(str(message["event"]))
    return {
        **message,
        "title": line(_title(kind, [], int(str(message["count"])))),
        "names": [],
        "sentence": "",
        "action": "Run 'tang-attest status' on the server.",
        "server": "",
        "url": _first_page(message["url"]),
    }


def _first_page(url: object) -> str | None:
    """Return the console's first page; the address of another one has names."""
    return urljoin(str(url), places.FIRST) if url else None


def subject_line(message: Mapping[str, object]) -> str:
    """Return one line for a subject or a title."""
    return line(f"tang-attest: {message['title']}")


def text_of(message: Mapping[str, object]) -> str:
    """Return the message for people, as plain text of short paragraphs."""
    names = message["names"] if isinstance(message["names"], list) else []
    count = int(str(message["count"]))
    more = count - len(names)
    about = ", ".join(map(str, names)) + (f" and {more} more" if names and more > 0 else "")
    first = f"{message['title']}." if not message["update"] else f"{message['title']}, by now."
    paragraphs = [
        first[:1].upper() + first[1:],
        str(message["sentence"]),
        about,
        str(message["action"]),
        str(message["url"] or ""),
        f"{message['at']}{' on ' + str(message['server']) if message['server'] else ''}",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def line(text: str) -> str:
    """Return *text* in one bounded line of printable characters: it may come from a machine or an operator."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return kept if len(kept) <= _LONGEST else f"{kept[: _LONGEST - 1]}\u2026"


def _title(kind: NoticeKind, names: list[str], count: int) -> str:
    if kind not in _MACHINES:
        return f"{names[0]}: {_TITLES[kind]}" if names else _TITLES[kind]
    if count == 1:
        return f"{names[0]}: {_TITLES[kind]}" if names else f"1 machine: {_TITLES[kind]}"
    return f"{count:,} machines: {_TITLES[kind]}"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

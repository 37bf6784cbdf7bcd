"""The cap, and what its text says of the disks (docs/protocol.md, 10.6).

Each time an initrd caps a boot, it extends a text into the cap PCR.  The text names the volumes that are open
then, and the way in which each was opened.  A running machine hands its texts over; replayed from zero they
lead to the quoted value, or they tell nothing.

Rules of this module:

* A text is believed for two reasons together: the quoted cap PCR is made of it, and the other PCRs show that
  approved software wrote it.  This module checks the first; the caller checks the second.
* Everything else is *not told*, with the reason.  Nothing here takes silence for a yes.
* A UUID that one line calls attested and another one opened by a passphrase counts as the latter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tang_attest.errors import Malformed, Reason

#: The first line of each text, and all that a boot without an open volume (or an older initrd) extends.
HEADER: Final = b"tang-attest/v1 cap\n"
#: Bytes of one text: TPM2B_EVENT holds no more (TPM 2.0 part 2, section 10.4.10).
MAX_TEXT: Final = 1024
#: Bytes of all texts of one boot.
MAX_TEXTS: Final = 8192

#: Volumes that a sentence names.
_NAMED: Final = 4
_LINE: Final = re.compile(
    rb"(attested|passphrase) ([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\n"
)


class OpenedBy(StrEnum):
    """The way in which a volume was opened."""

    ATTESTED = "attested"
    PASSPHRASE = "passphrase"  # noqa: S105 - a word of the text


#: LUKS UUID, in lower case, to the way in which that volume was opened.
Volumes = Mapping[str, OpenedBy]


@dataclass(frozen=True, slots=True)
class CapText:
    """One text: the bytes that were extended, and the volumes that they name."""

    raw: bytes
    volumes: Volumes


@dataclass(frozen=True, slots=True)
class Opened:
    """The way in which one boot opened its disks; or ``untold``, the reason that nothing is known of it.

    ``explained`` is true when the quoted cap PCR is made of nothing but caps.  ``texts`` are the bytes that
    told.
    """

    volumes: Volumes
    untold: str = ""
    explained: bool = False
    texts: bytes = b""

    @property
    def attested(self) -> bool:
        """True when there was a volume, and attestation opened each."""
        return bool(self.volumes) and all(how is OpenedBy.ATTESTED for how in self.volumes.values())

    @property
    def word(self) -> str:
        """``attested``, ``passphrase`` (for one volume or more) or ``not told``."""
        if not self.volumes:
            return "not told"
        return (OpenedBy.ATTESTED if self.attested else OpenedBy.PASSPHRASE).value

    def doubted(self, why: str) -> Opened:
        """The same without what it tells, because of *why*."""
        return self if self.untold else Opened({}, why, self.explained)

    def obstacle(self) -> Reason | None:
        """The reason to refuse a machine whose disks attestation has to open; ``None``: it did."""
        if self.attested:
            return None
        if not self.volumes:
            return Reason(
                "root-not-told", f"This machine does not tell how its disks were opened: {self.untold}."
            )
        typed = [uuid for uuid, how in sorted(self.volumes.items()) if how is OpenedBy.PASSPHRASE]
        more = f" and {len(typed) - _NAMED} more" if len(typed) > _NAMED else ""
        subject = (
            f"Volume {typed[0]} was" if len(typed) == 1 else f"Volumes {', '.join(typed[:_NAMED])}{more} were"
        )
        return Reason("root-not-attested", f"{subject} opened by a passphrase, not by attestation.")

    def as_json(self) -> dict[str, Any]:
        """``{"opened", "volumes", "because", "explained"}``, JSON-compatible."""
        return {
            "opened": self.word,
            "volumes": {uuid: how.value for uuid, how in sorted(self.volumes.items())},
            "because": self.untold or None,
            "explained": self.explained,
        }


def untold(why: str, *, explained: bool = False) -> Opened:
    """Nothing is known, because of *why*: words in lower case, without a full stop."""
    return Opened({}, why, explained)


def parse(data: bytes) -> tuple[CapText, ...]:
    """The texts in *data*, in the order in which they were extended; at least one.

    A text begins with :data:`HEADER`; each further line is ``attested UUID`` or ``passphrase UUID``,
    ascending by UUID, and ends with LF.  A UUID comes twice when two open volumes have it.  Raises
    :class:`Malformed` ``cap-malformed`` for anything else, and past either limit.

    NOT checked: that this was extended into any PCR.
    """
    if len(data) > MAX_TEXTS:
        raise Malformed(
            "cap-malformed", f"The cap's text has {len(data)} bytes; at most {MAX_TEXTS} are read."
        )
    if not data.startswith(HEADER):
        raise Malformed("cap-malformed", "The cap's text does not begin with its header line.")
    if not data.endswith(b"\n"):
        raise Malformed("cap-malformed", "The last line of the cap's text does not end.")
    texts: list[list[bytes]] = []
    for line in data.splitlines(keepends=True):
        if line == HEADER:
            texts.append([])
        else:
            texts[-1].append(line)
    return tuple(_text(lines) for lines in texts)


def _text(lines: Sequence[bytes]) -> CapText:
    volumes: dict[str, OpenedBy] = {}
    last, raw = "", HEADER + b"".join(lines)
    if len(raw) > MAX_TEXT:
        raise Malformed(
            "cap-malformed", f"A text of the cap has {len(raw)} bytes; a TPM takes {MAX_TEXT} at once."
        )
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            raise Malformed("cap-malformed", "A line of the cap's text names no volume.")
        uuid = found[2].decode()
        if uuid < last:
            raise Malformed("cap-malformed", f"Volume {uuid} is out of order in the cap's text.")
        last = uuid
        _add(volumes, uuid, OpenedBy(found[1].decode()))
    return CapText(raw, volumes)


def _add(volumes: dict[str, OpenedBy], uuid: str, how: OpenedBy) -> None:
    volumes[uuid] = OpenedBy.PASSPHRASE if OpenedBy.PASSPHRASE in (how, volumes.get(uuid)) else how


def replay(events: Iterable[bytes], bank: str) -> bytes:
    """The cap PCR of *bank* after TPM2_PCR_Event of each of *events*, from zero (TPM 2.0 part 1, section 17).

    *bank* is ``sha256``, ``sha384`` or ``sha512``.
    """
    value = bytes(hashlib.new(bank).digest_size)
    for event in events:
        value = hashlib.new(bank, value + hashlib.new(bank, event).digest()).digest()
    return value


def cap_value(bank: str) -> bytes:
    """The cap PCR of *bank* after one cap that names no volume."""
    return replay((HEADER,), bank)


def read(events: bytes | None, bank: str, value: bytes) -> Opened:
    """Compare *events*, the texts that a machine sent, with the cap PCR's quoted *value*.

    NOT checked: that approved software wrote the texts.  Raises nothing: what cannot be read tells nothing.
    """
    if not any(value):
        return untold("its boot was not capped")
    if value == cap_value(bank):
        return untold("its cap names no volume", explained=True)
    if not events:
        return untold("it sent no text of its cap")
    try:
        texts = parse(events)
    except Malformed as error:
        sentence = error.sentence.rstrip(".")
        return untold(f"its text cannot be read ({sentence[:1].lower()}{sentence[1:]})")
    if replay((text.raw for text in texts), bank) != value:
        return untold("its text does not lead to the cap PCR, which something else may extend too")
    return tell(events)


def tell(events: bytes) -> Opened:
    """Return the statements of the texts *events*, once they were replayed.  Raises ``cap-malformed``."""
    volumes: dict[str, OpenedBy] = {}
    for text in parse(events):
        for uuid, how in text.volumes.items():
            _add(volumes, uuid, how)
    if not volumes:
        return untold("its cap names no volume", explained=True)
    return Opened(volumes, explained=True, texts=events)

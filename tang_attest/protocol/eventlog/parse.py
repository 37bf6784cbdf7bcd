"""Bytes -> EventLog, strictly.

Two formats (PFP "Event Logging"), told apart by the first event; all integers are little-endian:

    "sha1"           TCG_PCR_EVENT    pcr u32, type u32, SHA-1 digest [20], size u32, data [size]
    "crypto-agile"   TCG_PCR_EVENT2   pcr u32, type u32, count u32, count x (algorithm u16, digest),
                                      size u32, data [size]

A crypto-agile log opens with one TCG_PCR_EVENT of type EV_NO_ACTION that holds a TCG_EfiSpecIDEvent ("Spec ID
Event03") and announces the digest algorithms.  Every later event carries digests of some, each once. Some
firmware announces banks that are not active, and Windows' later events may have a SHA-1 digest alone.  A bank
is part of the log only if every event has a digest for it: anything else could not be replayed, and an event
that is missing from a bank would be in the log without having been extended.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog.structures import (
    HASH_ALGORITHMS,
    NO_PCR,
    PCR_COUNT,
    Algorithm,
    Event,
    EventLog,
    EventType,
)

MAX_LOG_SIZE: Final = 1 << 20
"""Bytes.  Real logs have 2 to 60 KB; PFP asks firmware to reserve 64 KB."""

MAX_EVENTS: Final = 4096
"""Real logs have 25 to 400 events."""

MAX_ALGORITHMS: Final = 16
"""TPM2_NUM_PCR_BANKS of the TSS; real TPMs have 2 to 5."""

MAX_UNKNOWN_DIGEST: Final = 128
"""Bytes; a digest of an algorithm we do not know is skipped by its announced size, up to this one."""

_SIGNATURE_SIZE: Final = 16
_SPEC_ID: Final = b"Spec ID Event"
_SPEC_ID_AGILE: Final = b"Spec ID Event03\0"
_SPEC_ID_SHA1: Final = (b"Spec ID Event00\0", b"Spec ID Event02\0")
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_LOCALITIES: Final = (0, 3, 4)
_SHORTEST_EVENT: Final = 32
_SHA1: Final = Algorithm("sha1", 20)


def parse(data: bytes, *, limit: int = MAX_LOG_SIZE, max_events: int = MAX_EVENTS) -> EventLog:
    """Read the whole of *data*, as in /sys/kernel/security/tpm0/binary_bios_measurements.

    A log cut exactly between two events is a shorter valid log: only comparing it with quoted PCRs tells.

    Raises :class:`Malformed` ``eventlog-malformed``, with ``event`` and ``offset`` where they apply: empty;
    more than *limit* bytes or *max_events* events; anything cut short; a bad Spec ID event; a digest that was
    not announced, or twice; no bank that every event has a digest for; PCR above 23 (0xffffffff is
    allowed for EV_NO_ACTION); padding or garbage after the last event (the kernel's file is exact); a startup
    locality that is not 0, 3 or 4, is told twice, or comes after PCR 0 was extended.

    NOT checked: the Spec ID event's platform class, version and vendor bytes; the meaning of event data; that
    event data matches its digests; that any PCR ever had these values.
    """
    if len(data) > limit:
        raise Malformed("eventlog-malformed", f"the log has {len(data)} bytes, more than {limit}")
    if not data:
        raise Malformed("eventlog-malformed", "the log is empty")
    reader = _EventReader(data)
    first = _read_event_sha1(reader)
    log_format, algorithms = _format(reader, first)
    events = [first]
    while not reader.at_end:
        if len(events) >= max_events:
            raise Malformed("eventlog-malformed", f"the log has more than {max_events} events")
        reader.start_event(len(events))
        if log_format == "sha1":
            events.append(_read_event_sha1(reader))
            continue
        events.append(_read_event_agile(reader, algorithms))
    banks = tuple(known for known in algorithms.values() if all(known.name in e.digests for e in events[1:]))
    if not banks and log_format == "crypto-agile":
        raise Malformed("eventlog-malformed", "the log has no bank that every event has a digest for")
    return EventLog(log_format, banks or tuple(algorithms.values()), tuple(events), _startup_locality(events))


class _EventReader:
    """A cursor over *data* that knows which event it is in, so that every error can say where."""

    def __init__(self, data: bytes, at: int = 0, index: int = 0) -> None:
        self._data = data
        self._at = at
        self.index = index
        self.offset = at

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def start_event(self, index: int) -> None:
        self.index, self.offset = index, self._at
        # 32 bytes of zeros would be a valid SHA-1 event (PCR 0, EV_PREBOOT_CERT, no data) that no firmware
        # logs, so a zero-padded log must be noticed before it is understood.
        opening = self._data[self._at : self._at + _SHORTEST_EVENT]
        for filler in (b"\0", b"\xff"):
            if not opening.strip(filler):
                raise self.error(
                    f"{self.left} bytes that begin as 0x{filler.hex()} padding follow the last event"
                )

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise self.error(f"need {size} bytes for {what}, had {self.left}")
        self._at += size
        return self._data[self._at - size : self._at]

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def inside(self, data: bytes) -> _EventReader:
        """A reader over the *data* of this event, reporting errors as being in this event."""
        reader = _EventReader(data)
        reader.index, reader.offset = self.index, self.offset
        return reader

    def error(self, what: str) -> Malformed:
        sentence = f"event {self.index} at offset 0x{self.offset:x}: {what}"
        return Malformed("eventlog-malformed", sentence, event=self.index, offset=self.offset)


def _read_event_sha1(reader: _EventReader) -> Event:
    """TCG_PCR_EVENT."""
    pcr, event_type = _read_pcr_and_type(reader)
    digest = reader.take(_SHA1.size, "the sha1 digest")
    data = _read_data(reader)
    digests = MappingProxyType({_SHA1.name: digest})
    return Event(reader.index, reader.offset, pcr, event_type, digests, data=data)


def _read_event_agile(reader: _EventReader, algorithms: dict[int, Algorithm]) -> Event:
    """TCG_PCR_EVENT2 with a digest of at least one of *algorithms*."""
    pcr, event_type = _read_pcr_and_type(reader)
    count = reader.integer(4, "the digest count")
    if not 1 <= count <= len(algorithms):
        raise reader.error(f"{count} digests, but the Spec ID event announces {len(algorithms)} algorithms")
    digests: dict[str, bytes] = {}
    for _ in range(count):
        algorithm_id = reader.integer(2, "a digest's algorithm")
        if algorithm_id not in algorithms:
            raise reader.error(f"digest algorithm 0x{algorithm_id:04x} is not announced in the Spec ID event")
        algorithm = algorithms[algorithm_id]
        if algorithm.name in digests:
            raise reader.error(f"two {algorithm.name} digests")
        digests[algorithm.name] = reader.take(algorithm.size, f"the {algorithm.name} digest")
    data = _read_data(reader)
    return Event(reader.index, reader.offset, pcr, event_type, MappingProxyType(digests), data=data)


def _read_pcr_and_type(reader: _EventReader) -> tuple[int, int]:
    pcr = reader.integer(4, "the PCR index")
    event_type = reader.integer(4, "the event type")
    informative = pcr == NO_PCR and event_type == EventType.EV_NO_ACTION
    if pcr >= PCR_COUNT and not informative:
        raise reader.error(f"PCR index {pcr} is above {PCR_COUNT - 1}")
    return pcr, event_type


def _read_data(reader: _EventReader) -> bytes:
    size = reader.integer(4, "the event size")
    return reader.take(size, "the event data")


def _format(
    reader: _EventReader, first: Event
) -> tuple[Literal["crypto-agile", "sha1"], dict[int, Algorithm]]:
    """Return the format that the first event announces, and the digest algorithms by TPM_ALG_ID, in the log's
    order.
    """
    if first.type != EventType.EV_NO_ACTION:
        return "sha1", {0x0004: _SHA1}  # before Spec ID events there was only this format
    signature = first.data[:_SIGNATURE_SIZE]
    # Some firmware leaves the Spec ID event out and tells its startup locality first.
    if signature in _SPEC_ID_SHA1 or not signature.startswith(_SPEC_ID):
        return "sha1", {0x0004: _SHA1}
    if signature != _SPEC_ID_AGILE:
        raise reader.error(f"EV_NO_ACTION with signature {signature!r} is no Spec ID event (00, 02 or 03)")
    if first.pcr != 0 or any(first.digests["sha1"]):
        raise reader.error("the Spec ID event must name PCR 0 and have an all-zero digest")
    return "crypto-agile", _read_spec_id(reader.inside(first.data))


def _read_spec_id(reader: _EventReader) -> dict[int, Algorithm]:
    """TCG_EfiSpecIDEvent: the announced algorithms (PFP "Specification ID Version Event")."""
    reader.take(_SIGNATURE_SIZE, "the Spec ID signature")
    reader.take(8, "the platform class, version and uintn size")
    count = reader.integer(4, "the number of algorithms")
    if not 1 <= count <= MAX_ALGORITHMS:
        raise reader.error(f"{count} digest algorithms announced, not 1 to {MAX_ALGORITHMS}")
    algorithms: dict[int, Algorithm] = {}
    for _ in range(count):
        algorithm_id = reader.integer(2, "an announced algorithm")
        size = reader.integer(2, "an announced digest size")
        if algorithm_id in algorithms:
            raise reader.error(f"digest algorithm 0x{algorithm_id:04x} is announced twice")
        algorithms[algorithm_id] = _announced(reader, algorithm_id, size)
    vendor_size = reader.integer(1, "the vendor info size")
    reader.take(vendor_size, "the vendor info")
    if not reader.at_end:
        raise reader.error(f"{reader.left} bytes after the vendor info")
    return algorithms


def _announced(reader: _EventReader, algorithm_id: int, size: int) -> Algorithm:
    known = HASH_ALGORITHMS.get(algorithm_id)
    if known is None:
        if not 1 <= size <= MAX_UNKNOWN_DIGEST:
            raise reader.error(f"digest algorithm 0x{algorithm_id:04x} is announced with {size} bytes")
        return Algorithm(f"0x{algorithm_id:04x}", size)
    if size != known[1]:
        raise reader.error(f"{known[0]} is announced with {size} bytes, it has {known[1]}")
    return Algorithm(*known)


def _startup_locality(events: list[Event]) -> int | None:
    """The locality that PCR 0 starts from, if the log tells (PFP "Startup Locality Event", "H-CRTM").

    Both must come before anything else is extended into PCR 0: later they could not have had an effect on it,
    and readers of the log would differ.  An H-CRTM means 4 whatever StartupLocality says: TPM2_Startup does
    not touch PCR 0 after an H-CRTM sequence (TPM 2.0 Part 1, "H-CRTM before TPM2_Startup()").
    """
    told: int | None = None
    hcrtm = False
    pcr0_extended = False
    for event in events:
        error = _EventReader(b"", event.offset, event.index).error
        if not event.extends and event.data.startswith(_STARTUP_LOCALITY):
            if told is not None or pcr0_extended or event.pcr != 0:
                raise error("StartupLocality must come once, in PCR 0, before PCR 0 is extended")
            told = _locality_of(event)
        elif event.type == EventType.EV_EFI_HCRTM_EVENT and event.pcr == 0:
            if pcr0_extended:
                raise error("the H-CRTM event must come once, before PCR 0 is otherwise extended")
            hcrtm = pcr0_extended = True
        elif event.extends and event.pcr == 0:
            pcr0_extended = True
    return 4 if hcrtm else told


def _locality_of(event: Event) -> int:
    """TCG_EfiStartupLocalityEvent: the signature and one byte."""
    value = event.data[len(_STARTUP_LOCALITY) :]
    if len(value) != 1 or value[0] not in _LOCALITIES:
        what = f"startup locality {value.hex() or 'missing'} is not one byte 0, 3 or 4"
        raise _EventReader(b"", event.offset, event.index).error(what)
    return value[0]

"""Compare an event's data with its digest, for the event types whose data the log holds completely."""

from __future__ import annotations

import hashlib
from typing import Final

from tang_attest.protocol.eventlog.describe import split_variable
from tang_attest.protocol.eventlog.replay import REPLAYABLE
from tang_attest.protocol.eventlog.structures import Event, EventType

REHASHABLE: Final = frozenset(
    {
        EventType.EV_SEPARATOR,
        EventType.EV_ACTION,
        EventType.EV_S_CRTM_VERSION,
        EventType.EV_IPL,
        EventType.EV_PLATFORM_CONFIG_FLAGS,
        EventType.EV_EFI_ACTION,
        EventType.EV_EFI_GPT_EVENT,
        EventType.EV_EFI_GPT_EVENT2,
        EventType.EV_EFI_VARIABLE_DRIVER_CONFIG,
        EventType.EV_EFI_VARIABLE_BOOT,
        EventType.EV_EFI_VARIABLE_BOOT2,
        EventType.EV_EFI_VARIABLE_AUTHORITY,
    }
)
"""Types whose digest is over the data itself (PFP "Event Types"), or often so (:data:`OFTEN_LABELED`)."""

OFTEN_LABELED: Final = frozenset({EventType.EV_IPL, EventType.EV_PLATFORM_CONFIG_FLAGS})
"""Those types whose data may as well be a name or something else about the measured bytes."""

GRUB_PREFIXES: Final = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ")
"""Prefixes that GRUB writes before a text that it measured; not measured themselves."""

_LONGEST_SECTION_NAME: Final = 32
"""Bytes: a PE section's name has at most 8 characters, in UTF-16 with a NUL; some more do no harm."""


def data_matches_digest(event: Event, bank: str) -> bool:
    """Return True if *event*'s data, or the part of it that its type measures, hashes to its digest in
    *bank*.

    True ties the data to a digest, so that a log that replays to a quote proves it too: all of it, except for
    the name of an EV_EFI_VARIABLE_BOOT and the prefix of a GRUB command.  False proves nothing bad: for most
    types the digest is over something that the log does not hold (an image), and where there is no digest in
    *bank*, or its hash is not available, there is no answer.
    """
    return measured_data(event, bank) is not None


def measured_data(event: Event, bank: str) -> bytes | None:
    """The bytes of *event* that hash to its digest in *bank*, or ``None`` when the log does not hold them.

    Only these bytes are proven by a log that replays to a quote.  A rule appraises them and nothing
    else: its type, and what is in ``data`` beside them (``grub_cmd: ``), is the sender's claim.
    """
    if event.type not in REHASHABLE or bank not in event.digests or bank not in REPLAYABLE:
        return None
    digest = event.digests[bank]
    return next((data for data in _measured(event) if hashlib.new(bank, data).digest() == digest), None)


def _measured(event: Event) -> list[bytes]:
    """Yield the data that firmware or boot loaders may have hashed for this event."""
    spans = [event.data]
    if event.type == EventType.EV_EFI_VARIABLE_BOOT:
        spans += _variable_value(event.data)  # EDK2 hashes the value alone for this one type
    if event.type == EventType.EV_IPL:
        text = event.data.removesuffix(b"\0")
        spans.append(text)  # GRUB logs a terminating NUL and does not hash it
        spans += [text.removeprefix(prefix) for prefix in GRUB_PREFIXES if text.startswith(prefix)]
        spans += _narrowed(event.data)
    return spans


def _variable_value(data: bytes) -> list[bytes]:
    try:
        return [split_variable(data)[2]]
    except ValueError:
        return []


def _narrowed(data: bytes) -> list[bytes]:
    """systemd-stub logs a section's name in UTF-16 and hashes it in ASCII (systemd, ``tpm_log_event_ascii``)."""
    if len(data) % 2 or len(data) > _LONGEST_SECTION_NAME or any(data[1::2]):
        return []
    return [data[::2]]

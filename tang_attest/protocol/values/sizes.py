"""Limits on the members of evidence, in bytes: what is longer is refused before it is read."""

from __future__ import annotations

from typing import Final

from tang_attest.protocol.values.pcr import PCR_COUNT

#: PCR values, one after the other; the longest digest has 64 bytes.
MAX_PCRS: Final = PCR_COUNT * 64
#: A TCG event log.
MAX_EVENT_LOG: Final = 128 * 1024
#: A part of IMA's measurement list: with the largest event log it makes a request that is still taken.
MAX_IMA_PART: Final = 48 * 1024

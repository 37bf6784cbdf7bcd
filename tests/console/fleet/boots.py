"""Boots of the fleet: recorded event logs, and the same with other software in them.

A changed digest is a changed file. A changed command line is changed together with its digest, so that it stays proven.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from tang_attest.protocol.eventlog import parse

_VECTORS: Final = Path(__file__).parents[2] / "vectors/eventlogs"
#: Bytes that GRUB hashes without their prefix in the event.
_PREFIXES: Final = (b"grub_cmd: ", b"kernel_cmdline: ")


@cache
def recorded(name: str) -> bytes:
    """Return the log of a recorded boot."""
    return (_VECTORS / f"{name}.bin").read_bytes()


def with_other_kernel(log: bytes, version: str) -> bytes:
    """Return *log* with another kernel and initrd: the digests that GRUB made of both files."""
    for event in parse(log).events:
        if event.pcr == 9 and event.data.rstrip(b"\0") in (b"/vmlinuz", b"/initrd.img"):
            old = event.digests["sha256"]
            log = log.replace(old, hashlib.sha256(version.encode() + old).digest())
    return log


def with_other_words(log: bytes, old: str, new: str) -> bytes:
    """Return *log* with *new*, padded to the length of *old*, in the command line of the kernel."""
    padded = new.ljust(len(old)).encode()
    assert len(padded) == len(old), "an event keeps its length"
    for event in parse(log).events:
        for prefix in _PREFIXES:
            text = event.data.rstrip(b"\0").removeprefix(prefix)
            if event.pcr == 8 and event.data.startswith(prefix) and old.encode() in text:
                changed = text.replace(old.encode(), padded)
                assert hashlib.sha256(text).digest() == event.digests["sha256"]
                log = log.replace(event.digests["sha256"], hashlib.sha256(changed).digest())
                log = log.replace(event.data, event.data.replace(old.encode(), padded))
    return log

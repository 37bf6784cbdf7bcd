"""Linux' runtime measurement list, in parts; and what operators require of it."""

from __future__ import annotations

from collections.abc import Iterator

from tang_attest.documents import load_yaml
from tang_attest.protocol.ima import (
    ImaProgress,
    advance,
    parse_requirement,
    parse_sums,
    read_entries,
    reasons,
)
from tang_attest.protocol.ima.progress import replay_all
from tests.fuzz.target import Parser, Target
from tests.protocol.ima.writer import measured, measured_old

_REQUIREMENT = parse_requirement({"files": [{"path": "/usr/.*", "digests": ["sha256:" + "00" * 32]}]})


def whole(data: bytes) -> None:
    """A list to its end: entries lie one after the other, and a machine that has it is judged."""
    entries = read_entries(data)
    ends = [entry.end for entry in entries]
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(data)
    quoted = dict.fromkeys(range(24), bytes(32)) | {10: replay_all(data, "sha256", len(data))}
    progress, met = advance(ImaProgress.begin(1, _REQUIREMENT, "sha256"), data, quoted, _REQUIREMENT)
    assert met
    assert ImaProgress.from_json(progress.as_json()) == progress
    for reason in reasons(progress, _REQUIREMENT):
        reason.sentence.encode()


def part(data: bytes) -> None:
    """A part that is cut: what is read of it is what would be read of the whole entries alone."""
    entries = read_entries(data, cut=True)
    assert read_entries(data[: entries[-1].end] if entries else b"") == entries


def requirement(data: bytes) -> None:
    """A document, and back."""
    read = parse_requirement(load_yaml(data, "it"))
    assert parse_requirement(read.as_json()) == read


def sums(data: bytes) -> None:
    """Output of sha256sum is a requirement."""
    parse_requirement({"sums": {path: list(digests) for path, digests in parse_sums(data).items()}})


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Entries of each template."""
    entries = [
        measured("boot_aggregate", bytes(32)),
        measured("/usr/bin/bash", bytes(32), b"\x03\x02\x04" + bytes(16)),
        measured("/usr/bin/env", bytes(48), hash_name="sha384", template="ima-ng"),
        measured("kernel_cmdline", bytes(32), b"root=/dev/vda1 ro", template="ima-buf"),
        measured("/var/log/messages", bytes(32), violation=True),
        measured_old("/sbin/init", bytes(20)),
    ]
    for entry in entries:
        yield whole, entry.raw
        yield part, entry.raw + entry.raw[:9]
    yield whole, b"".join(entry.raw for entry in entries)
    yield (
        requirement,
        (
            b"files:\n  - path: /usr/bin/.*\n    digests: [sha256:" + b"ab" * 32 + b"]\n"
            b"sums: {/bin/sh: [sha256:" + b"cd" * 32 + b"]}\nignore: [/tmp/]\naccept-violations: true\n"
        ),
    )
    yield sums, b"ab" * 32 + b"  /usr/bin/bash\n" + b"cd" * 48 + b"  /usr/bin/env\n"


TARGET = Target([whole, part, requirement, sums], seeds)

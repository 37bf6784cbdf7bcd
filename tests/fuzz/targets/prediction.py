"""Inputs of a prediction on an enrolled machine: logs, GRUB's scripts, PE images, boot loader entries."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from predict.files import MachineFiles
from predict.loaders.entries import settings
from predict.loaders.grub_script import UNKNOWN, matches, parse
from predict.pe import NotAnImage, Window
from predict.pe import parse as parse_image
from predict.plan import Target
from predict.prediction import MAX_LOG, predict
from predict.sentences import Unpredictable, WrongCommandLine
from predict.text import lines, of_bytes

from tang_attest.protocol.eventlog import parse as parse_log
from tang_attest.protocol.eventlog import replay
from tests.fuzz.target import Parser
from tests.fuzz.target import Target as FuzzTarget
from tests.fuzz.vectors import event_logs
from tests.pin.predict.boots import Grub, SystemdBoot, UBoot, Unified

_SMALL = 16 * 1024
_DIRECTORY = tempfile.TemporaryDirectory()
_ROOT = Path(_DIRECTORY.name)
_SELECTION = "sha256:" + ",".join(map(str, range(16)))


def log(data: bytes) -> None:
    """Each PCR has a value or a sentence, for any measurements that a log names."""
    read = parse_log(data, limit=MAX_LOG)
    if read.format == "sha1" or "sha256" not in {algorithm.name for algorithm in read.algorithms}:
        return
    predicted = predict(
        read,
        MachineFiles(str(_ROOT), "sha256"),
        Target(),
        command_line="root=/dev/mapper/root quiet",
        selection=_SELECTION,
        cap=15,
        running=replay(read, "sha256"),
        label="",
        release="6.1.0",
    )
    for outcome in predicted.outcomes:
        assert (outcome.value is None) == bool(outcome.unpredictable)
        assert outcome.unpredictable.isprintable()
        assert outcome.changed.isprintable()
    assert predicted.label.isprintable()


def script(data: bytes) -> None:
    """A script has statements that match themselves."""
    for statement in parse(lines(of_bytes(data)), {"a": "value"}):
        assert matches(statement.text.replace(UNKNOWN, "x"), statement.text)


def image(data: bytes) -> None:
    """No more than twice the size of an image is hashed."""
    read = parse_image(Window(lambda: io.BytesIO(data), 0, len(data), len(data)))
    assert sum(map(len, read.authenticode())) <= 2 * len(data)


def entry(data: bytes) -> None:
    """Keys have no white space."""
    for key, _ in settings(of_bytes(data)):
        assert not set(key) & set(" \t\n\0")


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Recorded logs, and those of machines with GRUB, systemd-boot and a unified kernel image, with their
    files.
    """
    for data in event_logs():
        yield log, data[:_SMALL]
    for kind in (Grub, SystemdBoot, UBoot, Unified):
        machine = kind(_ROOT / kind.__name__)
        machine.install()
        yield log, machine.log()
    yield script, Grub(_ROOT).config().encode()
    yield image, Unified(_ROOT).image()
    yield entry, b"title x\nlinux /linux\ninitrd /initrd\noptions a b\n"


TARGET = FuzzTarget(
    [log, script, image, entry],
    seeds,
    max_length=_SMALL,
    raises=(Unpredictable, WrongCommandLine, NotAnImage),
)

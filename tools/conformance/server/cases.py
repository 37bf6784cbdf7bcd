"""Duties made of vectors: each fault of requests.json in a live request, each clock of counters.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..evidence.draft import Draft
from ..evidence.faults import BY_NAME, Fault
from ..report import Duty, NotTestedError, ViolationError, expect
from ..tpm.structures import ClockReading
from .client import Tested, refused

#: In this repository, and where a packager puts the files beside the kit.
VECTORS: Final = Path(__file__).parents[3] / "vectors"
_HALF: Final = 2**31
_CLOCK_STEP: Final = 9


def load(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Return the vectors of a file.  Raises OSError or ValueError."""
    document = json.loads((directory / f"{kind}.json").read_text())
    if document["format"] != 1:
        raise ValueError(f"{kind}.json has format {document['format']}, and this kit reads format 1")
    vectors: list[dict[str, Any]] = document["vectors"]
    return vectors


def requests(directory: Path) -> Iterator[Duty[Tested]]:
    """Yield a duty for each vector with a fault."""
    for vector in load(directory, "requests"):
        # Other duties send good requests, and wait for an expired nonce.
        if vector["code"] is None or "expired-nonce" in vector["faults"]:
            continue
        faults = [BY_NAME[name] for name in vector["faults"]]
        steps = " before ".join(f"step {step}" for step in vector["steps"])
        sentence = f"{steps}: {vector['name']} is {vector['status']} {vector['code']}"
        yield Duty("3.3", sentence, _request(vector, faults))


def _request(vector: Mapping[str, Any], faults: list[Fault]) -> Callable[[Tested], None]:
    def trial(world: Tested) -> None:
        device = world.device
        if "capped" in vector["faults"] and not device.has_cap:
            raise NotTestedError("the cap PCR is not in the selection")
        if any(int(fault.step) == _CLOCK_STEP for fault in faults):
            # Quotes that were refused moved the machine's clock, and not the server's record of it.
            device.opens()
        challenge = device.challenge()
        if "used-nonce" in vector["faults"]:
            answer = device.send(device.draft(challenge))
            expect(answer.status == 200, f"the first use of the nonce is answered with {answer.named}")
        draft = device.draft(challenge)
        if "used-nonce" in vector["faults"]:
            _before_the_nonce(draft)
        for fault in reversed(faults):
            fault.apply(draft)
        refused(device.send(draft), vector["status"], vector["code"])

    return trial


def _before_the_nonce(draft: Draft) -> None:
    """The use of the nonce is no evidence from before the nonce: step 9 compares with the one before that."""
    draft.before = ClockReading(draft.before.clock - 20, draft.before.reset_count, draft.before.restart_count)


def counters(directory: Path) -> Iterator[Duty[Tested]]:
    """Yield a duty for each pair of clocks."""
    for vector in load(directory, "counters"):
        outcome = f"refused with {vector['code']}" if vector["code"] else "good"
        yield Duty("3.3", f"step 9: {vector['name']}: {outcome}", _counter(vector))


def _counter(vector: Mapping[str, Any]) -> Callable[[Tested], None]:
    def trial(world: Tested) -> None:
        device, machine = world.device, world.device.machine
        newest, quote = vector["newest"], vector["quote"]
        _lead_to(world, newest)
        draft = device.draft(device.challenge())
        draft.clock = ClockReading(quote["clock"], quote["reset_count"], quote["restart_count"])
        answer = device.send(draft)
        if vector["code"]:
            refused(answer, 403, vector["code"])
            return
        machine.clock, machine.reset_count = quote["clock"], quote["reset_count"]
        machine.restart_count = quote["restart_count"]
        expect(answer.status == 200, f"it is answered with {answer.named}")

    return trial


def _lead_to(world: Tested, newest: Mapping[str, int]) -> None:
    """Move the device's stored clock to *newest* by good unlocks, each less than half of the circle further."""
    device, machine = world.device, world.device.machine
    away = (newest["reset_count"] - machine.reset_count) % 2**32 or 2**32
    while away:
        step = min(away, _HALF - 1)
        away -= step
        machine.reset_count = (machine.reset_count + step) % 2**32
        machine.clock = newest["clock"] - 10
        machine.restart_count = newest["restart_count"]
        answer = device.unlock()
        if answer.status != 200:
            raise ViolationError(f"a reset counter that rose by {step} is answered with {answer.named}")

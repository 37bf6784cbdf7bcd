"""Duties, their results, and the two forms in which a person or a program reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Final, Generic, TypeVar

#: The revision of docs/protocol.md that the kit and the vectors are of.
PROTOCOL: Final = "1.2"

World = TypeVar("World")


class ViolationError(Exception):
    """A duty that was not kept; the text says what happened instead."""


class NotTestedError(Exception):
    """A duty that could not be tried here; the text says why, and what to do about it."""


def expect(held: object, sentence: str) -> None:
    """Raise :class:`ViolationError` with *sentence* unless *held*."""
    if not held:
        raise ViolationError(sentence)


@dataclass(frozen=True)
class Duty(Generic[World]):
    """One duty: a section of docs/protocol.md, a sentence, and the trial of it."""

    section: str
    sentence: str
    trial: Callable[[World], None]


@dataclass(frozen=True)
class Result:
    """The outcome of one duty: ``kept``, ``broken`` or ``not tested``, and a sentence for the last two."""

    section: str
    duty: str
    outcome: str
    detail: str = ""


#: Duties of one group, in the order of their trial.
Group = list[Duty[World]]


def collect(group: Group[World], section: str, sentence: str) -> Callable[[Callable[[World], None]], None]:
    """Return a decorator that adds a trial to *group*."""

    def add(trial: Callable[[World], None]) -> None:
        group.append(Duty(section, sentence, trial))

    return add


@dataclass
class Run(Generic[World]):
    """A run of duties over *world*.  *only* are words, one of which a duty's section or sentence has."""

    world: World
    only: tuple[str, ...] = ()
    fail_fast: bool = False
    tell: Callable[[Result], None] = lambda _: None
    results: list[Result] = field(default_factory=list)

    def all(self, duties: Iterable[Duty[World]]) -> list[Result]:
        """Try *duties* in their order, and return the results."""
        for duty in duties:
            if self.only and not any(word in f"{duty.section} {duty.sentence}" for word in self.only):
                continue
            result = self.one(duty)
            self.results.append(result)
            self.tell(result)
            if self.fail_fast and result.outcome == "broken":
                break
        return self.results

    def one(self, duty: Duty[World]) -> Result:
        """Try one duty; whatever an answer makes fail is a broken duty."""
        try:
            duty.trial(self.world)
        except NotTestedError as reason:
            return Result(duty.section, duty.sentence, "not tested", str(reason))
        except ViolationError as found:
            return Result(duty.section, duty.sentence, "broken", str(found))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
            detail = f"the answer cannot be used ({type(error).__name__}: {error})"
            return Result(duty.section, duty.sentence, "broken", detail)
        return Result(duty.section, duty.sentence, "kept")


_MARKS = {"kept": "ok  ", "broken": "FAIL", "not tested": "-   "}


def print_line(result: Result) -> None:
    """Print a line for a person."""
    detail = f": {result.detail}" if result.detail else ""
    sys.stdout.write(f"{_MARKS[result.outcome]}  {result.section:<9} {result.duty}{detail}\n")
    sys.stdout.flush()


def print_end(results: list[Result]) -> None:
    """Print the counts."""
    counts = {outcome: sum(it.outcome == outcome for it in results) for outcome in _MARKS}
    sys.stdout.write(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + "\n")


def print_json(subject: str, results: list[Result]) -> None:
    """Print everything for a program."""
    body = {"format": 1, "subject": subject, "protocol": PROTOCOL, "results": [asdict(it) for it in results]}
    sys.stdout.write(json.dumps(body, indent=1) + "\n")


def exit_code(results: list[Result]) -> int:
    """Return 0 when every duty was kept or not tested, 1 when one was broken, 2 when none was tried."""
    if any(result.outcome == "broken" for result in results):
        return 1
    return 0 if any(result.outcome == "kept" for result in results) else 2

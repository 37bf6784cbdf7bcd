"""Fuzz targets: parsers of bytes from clients or operators, and honest examples of each.

A parser returns, or raises what is allowed; anything else is a finding, as is a property that does not hold.  One
target may have several parsers: the first byte of an input chooses one, so that structures inside of base64 inside of
JSON are reached without the fuzzer having to learn base64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tang_attest.errors import ACTIONS, TangAttestError

Parser = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Target:
    """*parsers*, and *seeds*: honest examples of what they read.  *raises* are errors beside :class:`TangAttestError`.

    *max_length* is in bytes: somewhat more than the parsers' own limits where those are small.  *smoke_runs* are the
    inputs of ``make test``.
    """

    parsers: Sequence[Parser]
    seeds: Callable[[], Iterable[tuple[Parser, bytes]]]
    max_length: int = 8192
    raises: tuple[type[Exception], ...] = ()
    smoke_runs: int = 3000

    def run(self, data: bytes) -> None:
        """One input.  Raises what must not happen."""
        if not data:
            return
        try:
            self.parsers[data[0] % len(self.parsers)](data[1:])
        except TangAttestError as error:
            check_error(error)
        except self.raises:
            return

    def corpus(self) -> Iterator[bytes]:
        """The seeds, as :meth:`run` takes them."""
        for parser, data in self.seeds():
            yield bytes([self.parsers.index(parser)]) + data[: self.max_length - 1]


def check_error(error: TangAttestError) -> None:
    """An error of any input has a known code, and sentences that a database, a log and a console can take."""
    assert error.reasons, "no reason"
    for reason in error.reasons:
        assert reason.code in ACTIONS, reason.code
        assert len(reason.sentence) < 4096, f"a sentence of {len(reason.sentence)} characters"
        reason.sentence.encode()  # no half of a surrogate pair
        assert "\0" not in reason.sentence

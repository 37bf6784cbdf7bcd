"""An unlock request, from which a fault changes one part and leaves the others true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from ..primitives.curve import Affine, NistCurve
from ..primitives.encoding import b64u, compact, thumbprint
from ..primitives.texts import unlock_data
from ..tpm.machine import Machine
from ..tpm.signing import PrivateKey, sign
from ..tpm.structures import GENERATED, ST_QUOTE, ClockReading, Quote


@dataclass(frozen=True)
class Asked:
    """The question of a request: the challenge, and the X of the client."""

    kid: str
    nonce: str
    selection: str
    curve: NistCurve
    x: Affine

    @property
    def jwk(self) -> dict[str, Any]:
        """X, as a stock Tang client sends it."""
        return self.curve.jwk(self.x, alg="ECMR")

    @property
    def binding(self) -> bytes:
        """The qualifying data that the quote has to have."""
        return unlock_data(self.nonce, self.kid, thumbprint(self.jwk))


@dataclass
class Draft:
    """A request, by its parts.  *before* is the clock of the newest evidence, *clock* that of the quote.

    Each part is what an honest machine has, until a fault replaces it.
    """

    machine: Machine
    asked: Asked
    before: ClockReading
    clock: ClockReading
    _: KW_ONLY
    nonce_state: str = "fresh"
    binding: bytes = b""
    banks: list[str] = field(default_factory=list)
    values: bytes = b""
    sent_values: bytes | None = None
    magic: int = GENERATED
    kind: int = ST_QUOTE
    digest_by: Callable[[bytes], bytes] | None = None
    after_quote: bytes = b""
    signer: PrivateKey | None = None
    scheme: str = ""
    claim: str = ""
    signature: Callable[[bytes], bytes] = lambda made: made
    sent_quote: Callable[[bytes], bytes] = lambda made: made
    x: dict[str, Any] = field(default_factory=dict)
    attest: dict[str, Any] = field(default_factory=dict)
    text: Callable[[bytes], bytes] = lambda made: made

    def __post_init__(self) -> None:
        self.binding = self.binding or self.asked.binding
        self.banks = self.banks or [self.asked.selection]
        self.values = self.values or self.machine.values(self.asked.selection)
        self.scheme = self.scheme or self.machine.ak_area.scheme
        self.x = self.x or self.asked.jwk

    def quote(self) -> bytes:
        """Return the TPMS_ATTEST that is signed."""
        digest = (self.digest_by or self.machine.digest)(self.values)
        made = Quote(self.binding, self.clock, self.banks, digest, magic=self.magic, kind=self.kind)
        return made.marshal() + self.after_quote

    def evidence(self) -> dict[str, Any]:
        """Return the member ``attest``; a member that is None is left out."""
        quote = self.quote()
        made = sign(
            self.signer or self.machine.ak, self.scheme, quote, claim=self.claim, fixed=self.machine.fixed
        )
        members = {
            "nonce": self.asked.nonce,
            "quote": b64u(self.sent_quote(quote)),
            "signature": b64u(self.signature(made)),
            "pcrs": b64u(self.values if self.sent_values is None else self.sent_values),
        }
        return {name: value for name, value in (members | self.attest).items() if value is not None}

    def body(self) -> bytes:
        """Return the request's body."""
        return self.text(compact(self.x | {"attest": self.evidence()}))

    def moved(self, **changes: int) -> None:
        """Change the clock of the quote."""
        self.clock = replace(self.clock, **changes)

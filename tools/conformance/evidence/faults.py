"""Faults of an unlock request, each with the step of 3.3 that refuses it; and pairs of them, of which the earlier wins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from itertools import combinations
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from ..primitives.curve import CURVES
from ..primitives.encoding import b64u, thumbprint, unb64u
from ..primitives.texts import CAP_HEADER, extend, unlock_data
from ..tpm.machine import CAP_PCR
from ..tpm.structures import ST_TIME, split_selection
from .draft import Draft

#: A key that is no machine's, the same each time.
_FOREIGN_AK: Final = ec.derive_private_key(0x5EED, ec.SECP256R1())
_DEEP: Final = 40
#: Steps of which two faults go together, and the earlier one in the table decides.
_DIVIDED: Final = (9, 12)


@dataclass(frozen=True)
class Fault:
    """One fault: its name, the step that refuses it, and the answer.  *apply* changes a draft.

    *stands_for_step*: pairs are made of it.  *reason* is a sentence for a reader.
    """

    name: str
    step: float
    status: int
    code: str
    apply: Callable[[Draft], None]
    _: KW_ONLY
    reason: str
    stands_for_step: bool = False


# --- (1) the shape ----------------------------------------------------------------------------------------------


def _cut(draft: Draft) -> None:
    draft.text = lambda body: body[:-1]


def _twice(draft: Draft) -> None:
    draft.text = lambda body: body.replace(b'"kty":"EC"', b'"kty":"EC","kty":"EC"')


def _deep(draft: Draft) -> None:
    draft.text = lambda body: body[:-1] + b',"more":' + b"[" * _DEEP + b"]" * _DEEP + b"}"


def _array(draft: Draft) -> None:
    draft.text = lambda body: b"[" + body + b"]"


def _without(member: str) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        draft.attest[member] = None

    return apply


def _oversized(member: str, size: int) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        draft.attest[member] = b64u(bytes(size))

    return apply


def _long_nonce(draft: Draft) -> None:
    draft.attest["nonce"] = "n" * 129


def _padded(draft: Draft) -> None:
    draft.attest["pcrs"] = b64u(draft.values) + "="


def _number(draft: Draft) -> None:
    draft.attest["quote"] = 7


def _critical(draft: Draft) -> None:
    draft.attest |= {"critical": ["future"], "future": 1}


# --- (2) X ------------------------------------------------------------------------------------------------------


def _off_curve(draft: Draft) -> None:
    curve, (x, y) = draft.asked.curve, draft.asked.x
    draft.x |= {"y": b64u(curve.octets((y + 1) % curve.p)), "x": b64u(curve.octets(x))}


def _other_curve(draft: Draft) -> None:
    other = next(curve for curve in CURVES.values() if curve is not draft.asked.curve)
    draft.x = other.jwk(other.multiply(7), alg="ECMR")


def _long_coordinate(draft: Draft) -> None:
    curve, (x, _) = draft.asked.curve, draft.asked.x
    draft.x["x"] = b64u(b"\0" + curve.octets(x))


def _empty_coordinate(draft: Draft) -> None:
    draft.x["x"] = ""


def _zero(draft: Draft) -> None:
    curve = draft.asked.curve
    draft.x |= {"x": b64u(curve.octets(0)), "y": b64u(curve.octets(0))}


# --- (3) the nonce ----------------------------------------------------------------------------------------------


def _renamed(draft: Draft, nonce: str, state: str) -> None:
    """Replace the nonce in the request, and in the quote if that is bound to it."""
    bound = draft.binding == draft.asked.binding
    draft.asked = replace(draft.asked, nonce=nonce)
    draft.nonce_state = state
    if bound:
        draft.binding = draft.asked.binding


def _foreign_nonce(draft: Draft) -> None:
    nonce = draft.asked.nonce
    _renamed(draft, ("B" if nonce[8] == "A" else "A").join((nonce[:8], nonce[9:])), "foreign")


def _odd_nonce(draft: Draft) -> None:
    _renamed(draft, "A" * 16, "foreign")


def _expired(draft: Draft) -> None:
    draft.nonce_state = "expired"


# --- (4) the signature --------------------------------------------------------------------------------------------


def _no_signature(draft: Draft) -> None:
    draft.signature = lambda made: made[:9]


def _long_signature(draft: Draft) -> None:
    draft.signature = lambda made: made + b"\0"


def _sha1(draft: Draft) -> None:
    draft.scheme = f"{draft.scheme.partition('-')[0]}-sha1"


def _null(draft: Draft) -> None:
    draft.claim = "null-null"


def _foreign_key(draft: Draft) -> None:
    draft.signer, draft.scheme, draft.claim = _FOREIGN_AK, "ecdsa-sha256", draft.machine.ak_area.scheme


def _other_hash(draft: Draft) -> None:
    draft.scheme = f"{draft.scheme.partition('-')[0]}-sha384"


def _other_claim(draft: Draft) -> None:
    draft.claim = f"{draft.scheme.partition('-')[0]}-sha384"


def _changed_quote(draft: Draft) -> None:
    draft.sent_quote = lambda made: made[:-1] + bytes([made[-1] ^ 1])


# --- (5) a quote -------------------------------------------------------------------------------------------------


def _magic(draft: Draft) -> None:
    draft.magic = 0x4D414749


def _kind(draft: Draft) -> None:
    draft.kind = ST_TIME


def _trailing(draft: Draft) -> None:
    draft.after_quote = b"\0"


# --- (6) the qualifying data ----------------------------------------------------------------------------------------


def _bound(change: Callable[[Draft], bytes]) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        draft.binding = change(draft)

    return apply


def _other_x(draft: Draft) -> bytes:
    asked, curve = draft.asked, draft.asked.curve
    other = curve.jwk(curve.multiply(11))
    return unlock_data(asked.nonce, asked.kid, thumbprint(other))


def _other_kid(draft: Draft) -> bytes:
    return unlock_data(draft.asked.nonce, "K" * 43, thumbprint(draft.asked.jwk))


def _other_nonce(draft: Draft) -> bytes:
    return unlock_data("N" * len(draft.asked.nonce), draft.asked.kid, thumbprint(draft.asked.jwk))


def _other_purpose(draft: Draft) -> bytes:
    lines = ("tang-attest/v1 verify", draft.asked.nonce, draft.asked.kid, thumbprint(draft.asked.jwk))
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).digest()


def _no_line_end(draft: Draft) -> bytes:
    lines = ("tang-attest/v1 unlock", draft.asked.nonce, draft.asked.kid, thumbprint(draft.asked.jwk))
    return hashlib.sha256("\n".join(lines).encode()).digest()


# --- (7) the selection, (8) the values ------------------------------------------------------------------------------


def _banks(change: Callable[[str], list[str]]) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        draft.banks = change(draft.asked.selection)

    return apply


def _other_bank(selection: str) -> list[str]:
    bank, _, numbers = selection.partition(":")
    return [f"{'sha384' if bank == 'sha256' else 'sha256'}:{numbers}"]


def _more(selection: str) -> list[str]:
    _, numbers = split_selection(selection)
    unused = next(number for number in range(24) if number not in numbers)
    return [f"{selection},{unused}"]


def _short_values(draft: Draft) -> None:
    draft.sent_values = draft.values[:-1]


def _changed_values(draft: Draft) -> None:
    draft.sent_values = draft.values[:-1] + bytes([draft.values[-1] ^ 1])


def _other_digest(draft: Draft) -> None:
    draft.digest_by = lambda values: hashlib.sha512(values).digest()


# --- (9) the clock ------------------------------------------------------------------------------------------------


def _reset_fell(draft: Draft) -> None:
    draft.moved(reset_count=(draft.before.reset_count - 1) % 2**32)


def _restart_fell(draft: Draft) -> None:
    draft.moved(restart_count=(draft.before.restart_count - 1) % 2**32)


def _clock_stood(draft: Draft) -> None:
    draft.moved(clock=draft.before.clock)


# --- (10) use, (12) the policy --------------------------------------------------------------------------------------


def _used(draft: Draft) -> None:
    draft.nonce_state = "used"


def _place(draft: Draft, pcr: int) -> tuple[str, slice]:
    bank, numbers = split_selection(draft.asked.selection)
    size = hashlib.new(bank).digest_size
    start = numbers.index(pcr) * size
    return bank, slice(start, start + size)


def _extended(pcr_of: Callable[[Draft], int], event: bytes) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        bank, place = _place(draft, pcr_of(draft))
        values = bytearray(draft.values)
        values[place] = extend(bank, bytes(values[place]), event)
        draft.values = bytes(values)

    return apply


def _first_pcr(draft: Draft) -> int:
    return split_selection(draft.asked.selection)[1][0]


FAULTS: Final = (
    Fault("not-json", 1.0, 400, "request-malformed", _cut, reason="the body ends early"),
    Fault("member-twice", 1.0, 400, "request-malformed", _twice, reason="a member is repeated"),
    Fault("too-deep", 1.0, 400, "request-malformed", _deep, reason="arrays nest deeper than 32"),
    Fault("not-an-object", 1.0, 400, "request-malformed", _array, reason="the body is an array"),
    Fault("no-quote", 1.1, 400, "evidence-malformed", _without("quote"), reason="attest has no quote", stands_for_step=True),
    Fault("no-signature", 1.1, 400, "evidence-malformed", _without("signature"), reason="attest has no signature"),
    Fault("no-pcrs", 1.1, 400, "evidence-malformed", _without("pcrs"), reason="attest has no pcrs"),
    Fault("no-nonce", 1.1, 400, "evidence-malformed", _without("nonce"), reason="attest has no nonce"),
    Fault("quote-is-a-number", 1.1, 400, "evidence-malformed", _number, reason="the quote is no text"),
    Fault("quote-too-long", 1.1, 400, "evidence-malformed", _oversized("quote", 2049), reason="a quote of 2049 bytes"),
    Fault("signature-too-long", 1.1, 400, "evidence-malformed", _oversized("signature", 2049), reason="a signature of 2049 bytes"),
    Fault("pcrs-too-long", 1.1, 400, "evidence-malformed", _oversized("pcrs", 24 * 64 + 1), reason="PCR values of 1537 bytes"),
    Fault("nonce-too-long", 1.1, 400, "evidence-malformed", _long_nonce, reason="a nonce of 129 characters"),
    Fault("critical-member", 1.1, 400, "extension-unsupported", _critical, reason="critical names a member that nobody knows"),
    Fault("padded-base64", 1.1, 400, "evidence-malformed", _padded, reason="pcrs ends with ="),
    Fault("off-curve", 2.0, 400, "point-invalid", _off_curve, reason="X is not on its curve", stands_for_step=True),
    Fault("other-curve", 2.0, 400, "curve-mismatch", _other_curve, reason="X is on another curve than the key",
        stands_for_step=True),
    Fault("long-coordinate", 2.0, 400, "point-invalid", _long_coordinate, reason="a coordinate has a byte more than the field"),
    Fault("empty-coordinate", 2.0, 400, "point-invalid", _empty_coordinate, reason="a coordinate is empty"),
    Fault("zero-point", 2.0, 400, "point-invalid", _zero, reason="X is (0, 0)"),
    Fault("foreign-nonce", 3.0, 403, "nonce-invalid", _foreign_nonce, reason="a character of the nonce is another one", stands_for_step=True),
    Fault("odd-nonce", 3.0, 403, "nonce-invalid", _odd_nonce, reason="the nonce has another length"),
    Fault("expired-nonce", 3.1, 401, "nonce-expired", _expired, reason="the nonce is too old"),
    Fault("signature-cut", 4.0, 400, "evidence-malformed", _no_signature, reason="the signature ends early"),
    Fault("signature-trailing", 4.0, 400, "evidence-malformed", _long_signature, reason="a byte follows the signature"),
    Fault("signature-sha1", 4.0, 400, "evidence-unsupported", _sha1, reason="the signature is over SHA-1"),
    Fault("signature-null", 4.0, 400, "evidence-unsupported", _null, reason="the signature's algorithm is TPM_ALG_NULL"),
    Fault("foreign-key", 4.1, 403, "signature-invalid", _foreign_key, reason="another key signed", stands_for_step=True),
    Fault("other-hash", 4.1, 403, "signature-invalid", _other_hash, reason="the AK signed by another hash than its own"),
    Fault("other-claim", 4.1, 403, "signature-invalid", _other_claim, reason="the signature names another hash than it has"),
    Fault("quote-changed", 4.1, 403, "signature-invalid", _changed_quote, reason="a bit of the quote was changed"),
    Fault("quote-trailing", 5.0, 400, "evidence-malformed", _trailing, reason="a signed byte follows the quote"),
    Fault("other-magic", 5.1, 403, "quote-invalid", _magic, reason="the magic is not TPM_GENERATED_VALUE", stands_for_step=True),
    Fault("other-kind", 5.1, 403, "quote-invalid", _kind, reason="the type is TPM_ST_ATTEST_TIME"),
    Fault("bound-to-another-x", 6.0, 403, "qualifying-data-mismatch", _bound(_other_x), reason="the quote is for another X", stands_for_step=True),
    Fault("bound-to-another-kid", 6.0, 403, "qualifying-data-mismatch", _bound(_other_kid), reason="the quote is for another kid"),
    Fault("bound-to-another-nonce", 6.0, 403, "qualifying-data-mismatch", _bound(_other_nonce), reason="the quote is for another nonce"),
    Fault("bound-to-another-purpose", 6.0, 403, "qualifying-data-mismatch", _bound(_other_purpose), reason="the label is that of a round"),
    Fault("bound-without-line-end", 6.0, 403, "qualifying-data-mismatch", _bound(_no_line_end), reason="the last line has no end"),
    Fault("fewer-pcrs", 7.0, 403, "selection-mismatch", _banks(lambda s: [s.rpartition(",")[0]]), reason="a PCR is left out", stands_for_step=True),
    Fault("more-pcrs", 7.0, 403, "selection-mismatch", _banks(_more), reason="a PCR more"),
    Fault("other-bank", 7.0, 403, "selection-mismatch", _banks(_other_bank), reason="another bank"),
    Fault("two-banks", 7.0, 403, "selection-mismatch", _banks(lambda s: [s, *_other_bank(s)]), reason="a bank more"),
    Fault("empty-bank", 7.0, 403, "selection-mismatch", _banks(lambda s: [s, "sha384:"]), reason="a bank more, without a PCR"),
    Fault("no-bank", 7.0, 403, "selection-mismatch", _banks(lambda _: ["sha256:"]), reason="no PCR at all"),
    Fault("short-values", 8.0, 400, "evidence-malformed", _short_values, reason="pcrs is a byte too short"),
    Fault("changed-values", 8.1, 403, "pcr-digest-mismatch", _changed_values, reason="a bit of pcrs was changed", stands_for_step=True),
    Fault("other-digest", 8.1, 403, "pcr-digest-mismatch", _other_digest, reason="the PCR digest is by another hash than the AK's"),
    Fault("reset-count-fell", 9.0, 403, "reset-count-backwards", _reset_fell, reason="resetCount fell", stands_for_step=True),
    Fault("restart-count-fell", 9.0, 403, "reset-count-backwards", _restart_fell, reason="restartCount fell without a reset"),
    Fault("clock-stood", 9.1, 403, "clock-backwards", _clock_stood, reason="the clock did not move", stands_for_step=True),
    Fault("used-nonce", 10.0, 403, "nonce-used", _used, reason="the nonce was used", stands_for_step=True),
    Fault("other-pcr", 12.0, 403, "pcr-mismatch", _extended(_first_pcr, b"other"), reason="a PCR is not as approved", stands_for_step=True),
    Fault("capped", 12.1, 403, "capped", _extended(lambda _: CAP_PCR, CAP_HEADER), reason="only the cap PCR differs", stands_for_step=True),
)  # fmt: skip


# --- variants that a verifier takes ---------------------------------------------------------------------------------


def _unknown_members(draft: Draft) -> None:
    draft.attest["future"] = {"a": [1]}
    draft.x |= {"future": 1}


def _null_log(draft: Draft) -> None:
    draft.text = lambda body: body.replace(b'"attest":{', b'"attest":{"event_log":null,', 1)


def _known_critical(draft: Draft) -> None:
    draft.attest["critical"] = ["nonce", "quote"]


def _short_x(draft: Draft) -> None:
    """Leave out the zeros of a coordinate; the thumbprint has them.  X of the vector is one with zeros."""
    draft.x |= {name: b64u(unb64u(draft.x[name]).lstrip(b"\0")) for name in "xy"}


def _unsafe_clock(draft: Draft) -> None:
    draft.moved(safe=0)


def _after_a_reset(draft: Draft) -> None:
    draft.moved(clock=5, reset_count=(draft.before.reset_count + 1) % 2**32, restart_count=0)


VARIANTS: Final = (
    Fault("unknown-members", 0, 200, "", _unknown_members, reason="members that nobody knows are ignored"),
    Fault("null-event-log", 0, 200, "", _null_log, reason="null is the same as absent"),
    Fault("known-critical-members", 0, 200, "", _known_critical, reason="critical names known members"),
    Fault("short-coordinate", 0, 200, "", _short_x, reason="a coordinate of X comes without its zeros"),
    Fault("unsafe-clock", 0, 200, "", _unsafe_clock, reason="safe is 0"),
    Fault("after-a-reset", 0, 200, "", _after_a_reset, reason="the TPM was reset, and its clock fell"),
)

BY_NAME: Final = {fault.name: fault for fault in FAULTS}


def pairs() -> Iterator[tuple[Fault, Fault]]:
    """Yield pairs of faults of different steps, the earlier one first: it decides the answer."""
    chosen = [fault for fault in FAULTS if fault.stands_for_step]
    for one, other in combinations(chosen, 2):
        if int(one.step) != int(other.step) or int(one.step) in _DIVIDED:
            # A nonce is foreign or used, and the two faults of the clock change the same counters.
            if {one.name, other.name} == {"foreign-nonce", "used-nonce"}:
                continue
            yield one, other

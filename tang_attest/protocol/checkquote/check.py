"""``tang-attest checkquote``: a quote made by anyone, checked as tpm2_checkquote should.

The unlock's own checks are in :mod:`tang_attest.protocol.quote`, and most of the ones here are the same
functions.  They differ, because nothing was enrolled, so the key has to show that it is an AK; and a person looks,
so all that is wrong is collected instead of stopping at the first.

    (1) the key is an AK: restricted, sign, not decrypt, fixedTPM, fixedParent, sensitiveDataOrigin
    (2) the signature is the key's, under the key's own scheme and hash
    (3) a TPM made it, and it is a quote: magic (CVE-2024-29038), type, nothing after its end
    (4) the qualifying data is the expected one; none expected means none signed
    (5) the signed selection is one SHA-2 bank, and the one asked for
    (6) the PCR values are the signed ones, under the PCR numbers that were signed (CVE-2024-29039)
    (7) the event log explains every quoted PCR

Nothing that a quote says is looked at before (2) holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass
from typing import Final, TypeVar

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol import eventlog, quote, tpm
from tang_attest.protocol.checkquote import tools_files
from tang_attest.protocol.checkquote.tools_files import PcrFormat
from tang_attest.protocol.tpm import Attest, AttestationKey
from tang_attest.protocol.values.pcr import PcrValues, Selection

T = TypeVar("T")

CHECKS: Final = {
    1: "the key is an attestation key",
    2: "the key signed the quote",
    3: "a TPM made it, and it is a quote",
    4: "the qualifying data is the expected one",
    5: "the signed PCR selection is the expected one",
    6: "the PCR values are the signed ones",
    7: "the event log explains the PCR values",
}


@dataclass(frozen=True, slots=True)
class Question:
    """The files of a quote, and what is expected of it.

    ``public`` is PEM, TPM2B_PUBLIC or TPMT_PUBLIC; ``scheme`` and ``hash_name`` are needed where a PEM is
    silent and must agree with any other key.  ``None`` for ``selection``, ``pcr_file`` or ``event_log`` means
    that it is not asked; ``qualification`` is always asked.
    """

    public: bytes
    message: bytes
    signature: bytes
    qualification: bytes = b""
    selection: Selection | None = None
    _: KW_ONLY
    pcr_file: bytes | None = None
    pcr_format: PcrFormat | None = None
    event_log: bytes | None = None
    scheme: str | None = None
    hash_name: str | None = None

    def __post_init__(self) -> None:
        if self.event_log is not None and self.pcr_file is None:
            raise ValueError("an event log is compared with PCR values")

    @property
    def asked(self) -> frozenset[int]:
        """The numbers of the checks that must all pass."""
        conditional = {
            1: tools_files.public_area(self.public) is not None,
            6: self.pcr_file is not None,
            7: self.event_log is not None,
        }
        return frozenset(number for number in CHECKS if conditional.get(number, True))


@dataclass(frozen=True, slots=True)
class Check:
    """One numbered check; ``passed`` is ``None`` if it was not done (not asked for, or an earlier one
    failed).
    """

    number: int
    asked: bool
    passed: bool | None
    reasons: tuple[Reason, ...] = ()

    def as_json(self) -> dict[str, object]:
        """``{"number", "check", "asked", "passed"}``."""
        return {
            "number": self.number,
            "check": CHECKS[self.number],
            "asked": self.asked,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class QuoteCheckResult:
    """Result of the checks.  ``key``, ``attest``, ``selection`` and ``values`` are ``None`` unless verified;
    ``values`` also if no PCR file was given.
    """

    checks: tuple[Check, ...]
    key: AttestationKey | None = None
    attest: Attest | None = None
    selection: Selection | None = None
    values: PcrValues | None = None

    @property
    def verified(self) -> bool:
        """True when every check that was asked for was done and passed."""
        return all(check.passed is True for check in self.checks if check.asked)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Everything that is wrong, in the order of the checks."""
        return tuple(reason for check in self.checks for reason in check.reasons)

    def as_json(self) -> dict[str, object]:
        """JSON-compatible; what the quote says is there only if it is verified."""
        attest = self.attest
        return {
            "verified": self.verified,
            "checks": [check.as_json() for check in self.checks],
            "reasons": [reason.as_json() for reason in self.reasons],
            "key": _key_json(self.key) if self.key else None,
            "selection": str(self.selection) if self.selection else None,
            "pcr_digest": attest.pcr_digest.hex() if attest else None,
            "pcrs": self._pcrs_json(),
            "qualification": attest.extra_data.hex() if attest else None,
            "clock": _clock_json(attest) if attest else None,
            "firmware_version": f"{attest.firmware_version:016x}" if attest else None,
        }

    def _pcrs_json(self) -> dict[str, dict[str, str]]:
        if self.selection is None or self.values is None:
            return {}
        return {self.selection.bank: {str(pcr): value.hex() for pcr, value in self.values.items()}}


def check_quote(question: Question) -> QuoteCheckResult:
    """Do every check that can be done.

    Raises :class:`Malformed` ``key-malformed`` when the key cannot be read: then there is nothing to check
    with.

    Not checked: that the key is in a genuine TPM (its endorsement says so), that a PEM key is an AK, whether
    the quote is fresh beyond its qualifying data, and whether the PCR values are good.
    """
    sheet = _Sheet(question.asked)
    key = _check_key(question, sheet)
    if key is None or not sheet.run(2, lambda: _check_signature(question, key)):
        return QuoteCheckResult(sheet.checks())
    attest = sheet.run(3, lambda: _read_quote(question.message))
    if attest is None:
        return QuoteCheckResult(sheet.checks())
    sheet.run(4, lambda: _check_qualification(attest, question.qualification))
    selection = sheet.run(5, lambda: _check_selection(attest, question.selection))
    values = None
    if selection is not None and question.pcr_file is not None:
        values = sheet.run(6, lambda: _check_values(question, key, attest, selection))
        if values is not None and question.event_log is not None:
            sheet.run(7, lambda: _check_event_log(question.event_log or b"", selection, values))
    verdict = QuoteCheckResult(sheet.checks(), key, attest, selection, values)
    return verdict if verdict.verified else QuoteCheckResult(sheet.checks())


class _Sheet:
    """The list of checks, filled in as they are done."""

    def __init__(self, asked: Collection[int]) -> None:
        self._asked = asked
        self._done: dict[int, tuple[Reason, ...]] = {}

    def run(self, number: int, step: Callable[[], T]) -> T | None:
        """Return the result of *step*, or ``None`` if it refuses; its reasons are noted."""
        try:
            value = step()
        except (Malformed, Refused) as refusal:
            self.note(number, refusal.reasons)
            return None
        self.note(number, ())
        return value

    def note(self, number: int, reasons: tuple[Reason, ...]) -> None:
        """Check *number* was done; it passed when there are no *reasons*."""
        self._done[number] = reasons

    def checks(self) -> tuple[Check, ...]:
        """All checks, in order."""
        return tuple(
            Check(
                number,
                number in self._asked,
                not self._done[number] if number in self._done else None,
                self._done.get(number, ()),
            )
            for number in CHECKS
        )


def _check_key(question: Question, sheet: _Sheet) -> AttestationKey | None:
    """(1); an unsuitable key is still used for (2), so that a person hears both."""
    public = tools_files.public_area(question.public)
    if public is None:
        return tpm.ak_from_pem(
            question.public, scheme=question.scheme, hash_name=question.hash_name or "sha256"
        )
    try:
        shortcomings = tpm.ak_shortcomings(public)
        key = tpm.parse_ak(public)
    except Malformed as error:
        raise Malformed("key-malformed", error.sentence) from error
    except Refused as refusal:
        sheet.note(1, refusal.reasons + shortcomings)
        return None
    sheet.note(1, shortcomings)
    return key


def _check_signature(question: Question, key: AttestationKey) -> bool:
    for option, wanted, own in (
        ("scheme", question.scheme, key.scheme),
        ("hash", question.hash_name, key.hash_name),
    ):
        if wanted is not None and wanted != own:
            raise Refused("signature-invalid", f"The AK's own {option} is {own}; asked for was {wanted}.")
    tpm.verify_signature(key, tools_files.parse_signature(question.signature, key), question.message)
    return True


def _read_quote(message: bytes) -> Attest:
    attest = tpm.parse_attest(message)
    quote.check_is_quote(attest)
    return attest


def _check_qualification(attest: Attest, expected: bytes) -> None:
    if attest.extra_data and not expected:
        raise Refused(
            "qualifying-data-mismatch", "The quote has qualifying data, and none was given to expect."
        )
    quote.check_binding(attest, expected)


def _check_selection(attest: Attest, asked: Selection | None) -> Selection:
    if asked is None:
        asked = _only_bank(attest)
    quote.check_selection(attest, asked)
    return asked


def _only_bank(attest: Attest) -> Selection:
    if len(attest.banks) != 1:
        raise Refused(
            "selection-mismatch", f"The quote is over {_banks_text(attest.banks)}, not over one bank."
        )
    try:
        return Selection(*attest.banks[0])
    except Malformed as error:  # SHA-1, or no PCR
        raise Refused(
            "selection-mismatch", f"The signed selection is not accepted: {error.sentence}"
        ) from error


def _check_values(question: Question, key: AttestationKey, attest: Attest, selection: Selection) -> PcrValues:
    file = tools_files.parse_pcr_file(question.pcr_file or b"", attest.banks, question.pcr_format)
    if file.claimed is not None and file.claimed != attest.banks:
        raise Refused(
            "selection-mismatch",
            f"The PCR file says that its values are {_banks_text(file.claimed)}; signed was {selection}.",
        )
    values = selection.split(file.values)
    quote.check_pcr_digest(attest, selection, values, key.hash_name)
    return values


def _check_event_log(data: bytes, selection: Selection, values: PcrValues) -> None:
    log = eventlog.parse(data)
    mismatches = eventlog.replays_to(log, selection.bank, values)
    if mismatches:
        raise Refused.because(*(_unexplained(mismatch) for mismatch in mismatches))


def _unexplained(mismatch: eventlog.Mismatch) -> Reason:
    quoted, replayed = mismatch.quoted.hex(), mismatch.replayed.hex()
    return Reason(
        "pcr-mismatch",
        f"The event log does not explain PCR {mismatch.pcr} (quoted {quoted}, replayed {replayed}).",
        (("pcr", mismatch.pcr), ("got", quoted), ("expected", [replayed])),
    )


def _banks_text(banks: tools_files.Banks) -> str:
    return " and ".join(f"{bank}:{','.join(map(str, pcrs))}" for bank, pcrs in banks) or "nothing"


def _key_json(key: AttestationKey) -> dict[str, object]:
    return {"name": key.name.hex() or None, "scheme": key.scheme, "hash": key.hash_name}


def _clock_json(attest: Attest) -> dict[str, object]:
    clock = attest.clock_info
    return {
        "clock": clock.clock,
        "reset_count": clock.reset_count,
        "restart_count": clock.restart_count,
        "safe": clock.safe,
    }

"""Step 3: evidence becomes a :class:`VerifiedQuote`.

The numbers are those of docs/protocol.md, section 3.3.  Nothing that a quote says is looked at before its
signature holds; PCR numbers are taken from signed bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol import tpm
from tang_attest.protocol.cap import MAX_TEXTS
from tang_attest.protocol.enrollment import EnrolledDevice
from tang_attest.protocol.tpm import Attest, ClockInfo
from tang_attest.protocol.values.pcr import PcrValues, Selection
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG, MAX_IMA_PART, MAX_PCRS


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence as an Attester sends it, unverified.

    ``quote`` is a TPMS_ATTEST, ``signature`` a TPMT_SIGNATURE, ``pcrs`` the values one after the other,
    ``event_log`` a TCG event log or empty; ``event_log_size`` says how many bytes it has where it is over the limit and
    was not sent, else it is 0: it explains a refusal, and decides nothing.  ``ima`` is a part of IMA's measurement list
    that begins at ``ima_offset``, ``cap_events`` the texts of the machine's cap.  ``signed_values`` is the member of
    that name, read only by an appraisal (:mod:`tang_attest.protocol.signed_values.examine`).
    """

    nonce: str
    quote: bytes
    signature: bytes
    pcrs: bytes
    event_log: bytes = b""
    _: KW_ONLY
    ima: bytes | None = None
    ima_offset: int = 0
    event_log_size: int = 0
    cap_events: bytes | None = None
    signed_values: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        # (1) each member is within its limit
        limits = (
            ("quote", self.quote, tpm.MAX_STRUCTURE),
            ("signature", self.signature, tpm.MAX_STRUCTURE),
            ("pcrs", self.pcrs, MAX_PCRS),
            ("event log", self.event_log, MAX_EVENT_LOG),
            ("part of IMA's list", self.ima or b"", MAX_IMA_PART),
            ("text of the cap", self.cap_events or b"", MAX_TEXTS),
        )
        for what, value, limit in limits:
            if len(value) > limit:
                raise Malformed(
                    "evidence-malformed", f"The {what} has {len(value)} bytes; at most {limit} are read."
                )


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """PCR values that the device's own TPM signed for this very request.

    Made only by :func:`verify_quote`.  ``values`` has one value for each PCR of ``selection``; ``binding`` is
    the qualifying data, so it names the purpose and, for an unlock, the ``kid`` and X.

    Says nothing about whether the values are good: that is the policy's appraisal.
    """

    device: EnrolledDevice
    selection: Selection
    values: PcrValues
    clock: ClockInfo
    firmware_version: int
    _: KW_ONLY
    binding: bytes


def verify_quote(
    device: EnrolledDevice, evidence: Evidence, selection: Selection, binding: bytes
) -> VerifiedQuote:
    """Check *evidence* in the order of docs/protocol.md, 3.3, steps 4 to 9.

    *binding* is the qualifying data this request must have, *selection* what was asked for.  Raises
    :class:`Malformed` (``evidence-malformed``, ``evidence-unsupported``) or :class:`Refused`.

    Not checked here: the nonce (the caller made *binding* from one it checked), its single use, the event log.
    """
    # (4) the signature is the AK's, under the AK's own scheme and hash
    tpm.verify_signature(device.ak, tpm.parse_signature(evidence.signature), evidence.quote)
    # (5) it is a quote, made inside a TPM, and nothing follows its end
    attest = tpm.parse_attest(evidence.quote)
    check_is_quote(attest)
    # (6) it was made for this request
    check_binding(attest, binding)
    # (7) the signed selection is the one asked for
    check_selection(attest, selection)
    # (8) the values are the signed ones
    values = selection.split(evidence.pcrs)
    check_pcr_digest(attest, selection, values, device.ak.hash_name)
    # (9) the TPM's counters and clock did not go back
    if device.clock is not None:
        check_clock(device.clock, attest.clock_info)
    return VerifiedQuote(
        device, selection, values, attest.clock_info, attest.firmware_version, binding=binding
    )


def check_is_quote(attest: Attest) -> None:
    """Raise ``quote-invalid`` unless the TPM made it (magic) and it is a quote (type)."""
    if not attest.magic_ok:
        raise Refused("quote-invalid", "The signed structure does not begin with TPM_GENERATED_VALUE.")
    if not attest.is_quote:
        raise Refused("quote-invalid", "The signed structure is not a quote.")


def check_binding(attest: Attest, binding: bytes) -> None:
    """Raise ``qualifying-data-mismatch`` unless ``extraData`` is *binding*."""
    if not tpm.equal(attest.extra_data, binding):
        raise Refused("qualifying-data-mismatch", "The quote was made for another request.")


def check_selection(attest: Attest, selection: Selection) -> None:
    """Raise ``selection-mismatch`` unless exactly *selection* was quoted.

    Some TPMs list a bank with no PCR chosen; even that is refused: the structure has to say what was asked.
    """
    if attest.banks != ((selection.bank, selection.pcrs),):
        quoted = (
            " and ".join(f"{bank}:{','.join(map(str, pcrs))}" for bank, pcrs in attest.banks) or "nothing"
        )
        raise Refused("selection-mismatch", f"The quote is over {quoted}; asked for was {selection}.")


def check_pcr_digest(attest: Attest, selection: Selection, values: PcrValues, hash_name: str) -> None:
    """Raise ``pcr-digest-mismatch`` unless *values* hash to the signed digest, under the AK's hash."""
    if not tpm.equal(attest.pcr_digest, selection.digest(values, hash_name)):
        raise Refused("pcr-digest-mismatch", "The PCR values sent are not those that were signed.")


def check_clock(before: ClockInfo, now: ClockInfo) -> None:
    """Raise ``reset-count-backwards`` or ``clock-backwards`` (TPM 2.0 part 1, section 36).

    Part 1 says: Clock and the counters only advance, and only a clear or another TPM resets them.  ``safe`` is
    not looked at: after a power cut it is 0 until the next save, and power cuts happen.
    """
    resets = advance(before.reset_count, now.reset_count)
    if resets < 0:
        raise Refused(
            "reset-count-backwards",
            f"The TPM's reset counter fell from {before.reset_count} to {now.reset_count}.",
        )
    if resets > 0:
        return
    if advance(before.restart_count, now.restart_count) < 0:
        raise Refused(
            "reset-count-backwards",
            f"The TPM's restart counter fell from {before.restart_count} to {now.restart_count} without a reset.",
        )
    if now.clock <= before.clock:
        raise Refused("clock-backwards", "The TPM's clock did not move forward since its last evidence.")


def advance(before: int, now: int) -> int:
    """Return the distance that a 32-bit counter moved, from -2^31 to 2^31 - 1.

    For an AK outside the endorsement hierarchy a TPM adds a secret constant to the counters it signs, modulo 2^32
    (TPM 2.0 part 1, section 36.7; part 3, TPM2_Quote), so an honest counter may pass through zero at any time.
    Serial number arithmetic (RFC 1982) sees the distance all the same.
    """
    return (now - before + 2**31) % 2**32 - 2**31

"""PCR values as people have them: the output of ``tpm2 pcrread``, or a JSON object."""

from __future__ import annotations

import json
import re

from tang_attest.errors import Malformed
from tang_attest.protocol.values.pcr import PCR_COUNT, Selection, check_values

_BANK = re.compile(r"\s*([a-z0-9]+)\s*:\s*")
_PCR = re.compile(r"\s*([0-9]{1,2})\s*:\s*0x([0-9A-Fa-f]+)\s*")


def parse_values(data: bytes, selection: Selection) -> dict[int, bytes]:
    """The values of *selection* in *data*; other banks and PCRs in it are left out.

    Raises ``values-invalid`` naming the line, for a PCR that no TPM has, a missing PCR or a value of the
    wrong size.
    """
    values = {pcr: value for pcr, value in _read(data, selection.bank).items() if pcr in selection.pcrs}
    check_values(selection, values)
    return values


def parse_every_value(data: bytes, bank: str) -> dict[int, bytes]:
    """The values of *bank* in *data*, whatever PCRs it has.  Raises ``values-invalid``, also if there is none."""
    values = _read(data, bank)
    if not values:
        raise Malformed("values-invalid", f"The values file has no values of the bank {bank}.")
    check_values(Selection(bank, tuple(sorted(values))), values)
    return values


def _read(data: bytes, bank: str) -> dict[int, bytes]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("values-invalid", "The values file is not text.") from None
    return _from_json(text) if text.lstrip().startswith("{") else _from_pcrread(text, bank)


def _from_json(text: str) -> dict[int, bytes]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
        values = {_number(pcr): bytes.fromhex(value) for pcr, value in pairs}
    except (ValueError, TypeError, RecursionError):
        sentence = 'The values file is not JSON like {"0": "<hex>"}.'
        if '"pkfp"' in text:
            sentence = "The file is a .pcrsig: machines bring it, and 'policy trust-signer' lets it count."
        raise Malformed("values-invalid", sentence) from None
    if len(values) != len(pairs):
        raise Malformed("values-invalid", "The values file names a PCR twice.")
    if unknown := [pcr for pcr in values if pcr >= PCR_COUNT]:
        raise Malformed("values-invalid", f"The values file names PCR {unknown[0]}; a TPM has 0 to 23.")
    return values


def _number(text: str) -> int:
    if re.fullmatch("[0-9]{1,2}", text) is None:  # int() would take signs, spaces and underscores
        raise ValueError("not a PCR number")
    return int(text)


def _from_pcrread(text: str, bank: str) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    current = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        if match := _BANK.fullmatch(line):
            current = match[1]
        elif (match := _PCR.fullmatch(line)) and current is not None and len(match[2]) % 2 == 0:
            if int(match[1]) >= PCR_COUNT:
                raise Malformed(
                    "values-invalid", f"Line {number}: there is no PCR {match[1]}; a TPM has 0 to 23."
                )
            if current == bank:
                if int(match[1]) in values:
                    raise Malformed("values-invalid", f"Line {number}: PCR {match[1]} is there twice.")
                values[int(match[1])] = bytes.fromhex(match[2])
        else:
            raise Malformed("values-invalid", f"Line {number} is not a line of 'tpm2 pcrread'.")
    return values

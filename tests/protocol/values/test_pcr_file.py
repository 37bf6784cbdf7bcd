"""PCR values as people have them."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.values.pcr import BANK_SIZES, PCR_COUNT, Selection
from tang_attest.protocol.values.pcr_file import parse_values
from tests.protocol.signed_values.test_ukify import VECTOR

SELECTION = Selection.parse("sha256:0,7")
ONE, TWO = bytes([1]) * 32, bytes([2]) * 32


def pcrread(banks: dict[str, dict[int, bytes]]) -> str:
    """As ``tpm2 pcrread`` of tpm2-tools 5.4 writes them."""
    lines = []
    for bank, values in banks.items():
        lines.append(f"  {bank}:")
        lines += [f"    {pcr:<2}: 0x{value.hex().upper()}" for pcr, value in values.items()]
    return "\n".join(lines) + "\n"


def refusal(text: str | bytes) -> str:
    """The sentence with which *text* is refused."""
    with pytest.raises(Malformed) as refused:
        parse_values(text.encode() if isinstance(text, str) else text, SELECTION)
    assert refused.value.code == "values-invalid"
    return refused.value.sentence


@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    """Exactly the selected banks and PCRs are read, from either form."""
    banks = {
        bank: {
            pcr: data.draw(st.binary(min_size=size, max_size=size))
            for pcr in sorted(data.draw(st.sets(st.integers(0, PCR_COUNT - 1), min_size=1)))
        }
        for bank, size in {"sha1": 20, **BANK_SIZES}.items()
    }
    bank = data.draw(st.sampled_from(sorted(BANK_SIZES)))
    pcrs = tuple(sorted(data.draw(st.sets(st.sampled_from(sorted(banks[bank])), min_size=1))))
    wanted = {pcr: banks[bank][pcr] for pcr in pcrs}
    selection = Selection(bank, pcrs)
    assert parse_values(pcrread(banks).encode(), selection) == wanted
    as_json = json.dumps({str(pcr): value.hex() for pcr, value in banks[bank].items()})
    assert parse_values(as_json.encode(), selection) == wanted


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Any file holds values or gives one named error."""
    with contextlib.suppress(Malformed):
        assert set(parse_values(data, SELECTION)) == {0, 7}


def test_windows_line_ends_and_empty_lines() -> None:
    """A file that went through another system is the same file."""
    text = "\r\n" + pcrread({"sha256": {0: ONE, 7: TWO}}).replace("\n", "\r\n")
    assert parse_values(text.encode(), SELECTION) == {0: ONE, 7: TWO}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hello\n", "Line 1 is not a line of 'tpm2 pcrread'."),
        (pcrread({"sha256": {0: ONE}}) + "  7 : 0x12345\n", "Line 3 is not a line of 'tpm2 pcrread'."),
        (pcrread({"sha256": {0: ONE}}) + "  7 = 0x1234\n", "Line 3 is not a line of 'tpm2 pcrread'."),
        (pcrread({"sha256": {0: ONE}}) + "  100: 0x1234\n", "Line 3 is not a line of 'tpm2 pcrread'."),
        (pcrread({"sha256": {0: ONE, 7: TWO}}) + f"  24: 0x{ONE.hex()}\n", "Line 4: there is no PCR 24; a TPM has 0 to 23."),
        (f'{{"0": "{ONE.hex()}", "7": "{TWO.hex()}", "24": ""}}', "The values file names PCR 24; a TPM has 0 to 23."),
        (f"0 : 0x{ONE.hex()}\n", "Line 1 is not a line of 'tpm2 pcrread'."),
        (pcrread({"sha256": {0: ONE, 7: TWO}}) * 2, "Line 5: PCR 0 is there twice."),
        (pcrread({"sha256": {0: ONE}}), "The values do not fit sha256:0,7: PCR 7 missing."),
        (pcrread({"sha384": {0: ONE, 7: ONE}}), "The values do not fit sha256:0,7: PCR 0, 7 missing."),
        (pcrread({"sha256": {0: ONE, 7: ONE[:31]}}), "PCR 7 has 31 bytes; a sha256 value has 32."),
        (f'{{"0": "{ONE.hex()}", "7": "{TWO.hex()}", "07": "{ONE.hex()}"}}', "The values file names a PCR twice."),
        (f'{{"0": "{ONE.hex()}", "0": "{ONE.hex()}"}}', "The values file names a PCR twice."),
        ("{}", "The values do not fit sha256:0,7: PCR 0, 7 missing."),
        ("", "The values do not fit sha256:0,7: PCR 0, 7 missing."),
    ],
)  # fmt: skip
def test_refusals(text: str, sentence: str) -> None:
    """A refusal says which line or PCR is wrong."""
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    "text",
    [
        '{"0": 7}', '{"0": "zz"}', '{"zero": ""}', '{"+1": ""}', '{"1_0": ""}', '{" 1": ""}', '{"-1": ""}',
        '{"0": null}', '{"0": {"1": "00"}}', "{", '{"a":' * 5000,
    ],
)  # fmt: skip
def test_json_of_another_form(text: str) -> None:
    """JSON that is not PCR numbers and hex is refused as such."""
    assert refusal(text) == 'The values file is not JSON like {"0": "<hex>"}.'


def test_a_pcrsig_is_told_apart() -> None:
    """Nobody stages one: the machine brings it."""
    text = json.dumps(VECTOR["pcrsig"])
    assert refusal(text) == (
        "The file is a .pcrsig: machines bring it, and 'policy trust-signer' lets it count."
    )


def test_not_text() -> None:
    """A binary file, such as 'tpm2 pcrread -o' writes, is told apart."""
    assert refusal(ONE + b"\xff" + TWO) == "The values file is not text."

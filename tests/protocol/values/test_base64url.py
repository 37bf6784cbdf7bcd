"""Base64url without padding: one text for each value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.protocol.values.base64url import b64u, unb64u


@given(st.binary(max_size=70))
def test_every_value_has_its_text(value: bytes) -> None:
    """And the text has characters of the alphabet alone."""
    text = b64u(value)
    assert unb64u(text) == value
    assert text.replace("-", "a").replace("_", "a").isalnum() or not text


@given(st.text(alphabet="AQgwZz09-_+/=* \n\0é\ud800", max_size=9))
def test_every_other_text_is_refused(text: str) -> None:
    """Each value has one spelling; another text raises."""
    try:
        value = unb64u(text)
    except ValueError:
        return
    assert b64u(value) == text


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "QQ==",
        "QR",
        "QUI=",
        "QUJ",
        "Q+I",
        "Q/I",
        "Q I",
        "QQ\n",
        "QQ=",
        "====",
        "=",
        "QUFB=",
        "Q*I",
        "é",
        "\ud800",
    ],
)
def test_other_spellings(text: str) -> None:
    """Padding, stray bits, the other alphabet, blanks, and what is no ASCII."""
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own for some
        unb64u(text)

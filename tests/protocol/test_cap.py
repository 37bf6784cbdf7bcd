"""The cap's text: read strictly, replayed from zero, and never taken for a yes when it says nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.cap import HEADER, MAX_TEXT, MAX_TEXTS, OpenedBy, cap_value, parse, read, replay

VECTORS: Final = sorted((Path(__file__).parent.parent / "vectors" / "caps").glob("*.json"))
BANKS: Final = ("sha256", "sha384", "sha512")
ONE: Final = "0f6e1c2d-1111-4222-8333-444455556666"
TWO: Final = "1a2b3c4d-1111-4222-8333-444455556666"


def text(*lines: str) -> bytes:
    """One text."""
    return HEADER + "".join(f"{line}\n" for line in lines).encode()


def quoted(*texts: bytes, bank: str = "sha256") -> bytes:
    """A PCR after these events, computed here once more (TPM 2.0 part 1, section 17)."""
    value = bytes(hashlib.new(bank).digest_size)
    for event in texts:
        value = hashlib.new(bank, value + hashlib.new(bank, event).digest()).digest()
    return value


uuids = st.uuids().map(str)
volumes = st.dictionaries(uuids, st.sampled_from(["attested", "passphrase"]), max_size=20)
texts = st.lists(volumes, min_size=1, max_size=5).map(
    lambda found: [text(*(f"{how} {uuid}" for uuid, how in sorted(one.items()))) for one in found]
)
banks = st.sampled_from(BANKS)


# --- the grammar ------------------------------------------------------------------------------------------------------


@given(texts)
def test_what_an_initrd_writes_is_read(written: list[bytes]) -> None:
    """Texts lie one after the other, each from its header to the next."""
    assume(len(b"".join(written)) <= MAX_TEXTS)
    assert [one.raw for one in parse(b"".join(written))] == written


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "does not begin with its header line"),
        (b"attested " + ONE.encode() + b"\n", "does not begin with its header line"),
        (HEADER[:-1], "does not begin with its header line"),
        (b"\n" + HEADER, "does not begin with its header line"),
        (HEADER.replace(b"v1", b"v2"), "does not begin with its header line"),
        (text() + b"attested " + ONE.encode(), "does not end"),
        (text() + HEADER[:-1], "does not end"),
        (text(f"attested {ONE.upper()}"), "names no volume"),
        (text(f"attested {ONE.replace('-', '')}"), "names no volume"),
        (text(f"attested  {ONE}"), "names no volume"),
        (text(f"attested {ONE} "), "names no volume"),
        (text(f"attested {ONE}\r"), "names no volume"),
        (text(f"keyfile {ONE}"), "names no volume"),
        (text(f"attested {ONE}\0"), "names no volume"),
        (text(""), "names no volume"),
        (text(f"x{HEADER.decode().rstrip()}"), "names no volume"),
        (text("attested \uff10f6e1c2d-1111-4222-8333-444455556666"), "names no volume"),
        (text(f"attested {TWO}", f"attested {ONE}"), f"Volume {ONE} is out of order"),
        (text(f"attested {TWO}", f"passphrase {ONE}"), f"Volume {ONE} is out of order"),
        (HEADER * (MAX_TEXTS // len(HEADER) + 1), f"at most {MAX_TEXTS} are read"),
        (text(*[f"attested {ONE}"] * 22), f"a TPM takes {MAX_TEXT} at once"),
    ],
)
def test_anything_else_is_refused(data: bytes, sentence: str) -> None:
    """One code, and a sentence that says what is wrong; read() takes it for untold, with the same words."""
    with pytest.raises(Malformed) as caught:
        parse(data)
    assert caught.value.code == "cap-malformed"
    assert sentence in caught.value.sentence
    found = read(data or HEADER, "sha256", quoted(b"another"))
    assert (found.word, found.explained) == ("not told", False)


def test_the_limits_themselves_are_read() -> None:
    """20 volumes fill a text, and 8192 bytes are read."""
    full = text(*(f"passphrase {ONE[:-2]}{number:02x}" for number in range(20)))
    assert len(parse(full)[0].volumes) == 20
    most = full * (MAX_TEXTS // len(full))
    assert len(parse(most + HEADER * ((MAX_TEXTS - len(most)) // len(HEADER)))) > 8


def test_two_open_volumes_with_one_uuid() -> None:
    """A copied header: the worse of the two lines counts."""
    for lines in ((f"attested {ONE}", f"passphrase {ONE}"), (f"passphrase {ONE}", f"attested {ONE}")):
        assert parse(text(*lines))[0].volumes == {ONE: OpenedBy.PASSPHRASE}


# --- the replay -------------------------------------------------------------------------------------------------------


@given(texts, banks)
def test_replay_is_the_tpms(written: list[bytes], bank: str) -> None:
    """Each event is hashed by the bank's own hash, and extended from zero."""
    assert replay(written, bank) == quoted(*written, bank=bank)
    assert replay((), bank) == bytes(hashlib.new(bank).digest_size)
    assert replay((HEADER,), bank) == cap_value(bank)


@given(texts, banks, st.data())
def test_no_change_of_a_text_leads_to_the_same_value(
    written: list[bytes], bank: str, data: st.DataObject
) -> None:
    """A changed, cut, added or swapped byte makes a machine *not told*, and never another report."""
    whole = b"".join(written)
    assume(len(whole) <= MAX_TEXTS)
    value = quoted(*written, bank=bank)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    changed = whole[:start] + data.draw(st.one_of(st.binary(max_size=60), texts.map(b"".join))) + whole[end:]
    assume(changed != whole)
    found = read(changed, bank, value)
    if value == cap_value(bank):
        assert (found.word, found.explained) == ("not told", True)
    else:
        assert (found.word, found.explained, found.texts) == ("not told", False, b"")


@given(texts, banks)
def test_the_order_of_texts_is_the_tpms(written: list[bytes], bank: str) -> None:
    """Texts that are sent in another order lead elsewhere."""
    assume(written != written[::-1])
    value = quoted(*written, bank=bank)
    assert not read(b"".join(written[::-1]), bank, value).explained


@given(texts, banks)
def test_attested_is_every_volume_and_at_least_one(written: list[bytes], bank: str) -> None:
    """A boot that opened nothing, or one volume by a passphrase in any text, is not attested."""
    whole = b"".join(written)
    assume(len(whole) <= MAX_TEXTS)
    found = read(whole, bank, quoted(*written, bank=bank))
    lines = [line.split()[0] for line in whole.decode().splitlines() if not line.startswith("tang-attest")]
    assert found.attested == (bool(lines) and set(lines) == {"attested"})
    assert (found.obstacle() is None) == found.attested
    assert found.explained


def test_what_is_not_told_says_why() -> None:
    """Each reason is another, and none is an accusation that was not proven."""
    told = text(f"attested {ONE}")
    cases = [
        (None, bytes(32), "its boot was not capped", False),
        (told, bytes(32), "its boot was not capped", False),
        (None, cap_value("sha256"), "its cap names no volume", True),
        (told, cap_value("sha256"), "its cap names no volume", True),
        (HEADER * 2, quoted(HEADER, HEADER), "its cap names no volume", True),
        (None, quoted(told), "it sent no text of its cap", False),
        (b"", quoted(told), "it sent no text of its cap", False),
        (b"x", quoted(told), "its text cannot be read (the cap's text does not begin with its header line)", False),
        (told, quoted(told, b"machine-id"), "its text does not lead to the cap PCR, which something else may extend too", False),
    ]  # fmt: skip
    for events, value, why, explained in cases:
        found = read(events, "sha256", value)
        assert (found.untold, found.explained, found.word) == (why, explained, "not told")
        reason = found.obstacle()
        assert reason is not None
        assert reason.code == "root-not-told"
        assert reason.sentence == f"This machine does not tell how its disks were opened: {why}."


def test_a_passphrase_is_named_with_its_volume() -> None:
    """Few by their UUIDs, many by the first ones and their number."""
    whole = text(f"passphrase {ONE}", f"attested {TWO}")
    found = read(whole, "sha256", quoted(whole))
    reason = found.obstacle()
    assert reason is not None
    assert (reason.code, reason.sentence) == (
        "root-not-attested",
        f"Volume {ONE} was opened by a passphrase, not by attestation.",
    )
    assert found.as_json() == {
        "opened": "passphrase",
        "volumes": {ONE: "passphrase", TWO: "attested"},
        "because": None,
        "explained": True,
    }
    many = text(*(f"passphrase {ONE[:-2]}{number:02x}" for number in range(20)))
    crowd = read(many, "sha256", quoted(many)).obstacle()
    assert crowd is not None
    assert "and 16 more were opened by a passphrase" in crowd.sentence


# --- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors(path: Path) -> None:
    """Texts, the value of each bank that a TPM has after them, and what they tell: for other implementations."""
    vector: dict[str, Any] = json.loads(path.read_text())
    assert set(vector) == {"about", "texts", "sent", "values", "tells"}
    sent = None if vector["sent"] is None else vector["sent"].encode()
    for bank, value in vector["values"].items():
        events = [one.encode() for one in vector["texts"]]
        assert replay(events, bank).hex() == value
        assert read(sent, bank, bytes.fromhex(value)).as_json() == vector["tells"]


def test_there_are_vectors() -> None:
    """One for each way to tell, and some that tell nothing."""
    assert {json.loads(path.read_text())["tells"]["opened"] for path in VECTORS} == {
        "attested",
        "passphrase",
        "not told",
    }

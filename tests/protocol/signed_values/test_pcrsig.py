"""systemd's signed PCR policies: bytes of its own tools, and everything that is no signature of the quoted value."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.protocol.signed_values import pcrsig
from tests.keys.rsa_keys import draw
from tests.protocol.signed_values import signing

VALUE = hashlib.sha256(b"image").digest()
OTHER = hashlib.sha256(b"another phase").digest()


def code(found: pcrsig.Examined) -> str:
    """The code of what is in the way, or ``ok``."""
    assert (found.obstacle is None) == bool(found.keys)
    return "ok" if found.obstacle is None else found.obstacle.code


def examine(member: object, *keys: Any, value: bytes = VALUE) -> str:
    """The code of *member* for *value*, where *keys* are trusted."""
    return code(pcrsig.examine(member, value, [signing.public_der(key) for key in keys]))


def test_openssl_makes_an_entry_that_counts(tmp_path: Path) -> None:
    """Fingerprint, policy digest and signature as openssl computes them, without this program's help."""
    key, public = tmp_path / "k.pem", tmp_path / "p.der"
    run = lambda *command: subprocess.run(("openssl", *command), check=True, capture_output=True).stdout  # noqa: E731
    run("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(key))
    run("rsa", "-in", str(key), "-RSAPublicKey_out", "-outform", "DER", "-out", str(public))
    pol = hashlib.sha256(
        bytes(32) + bytes.fromhex("0000017f00000001000b03000800") + hashlib.sha256(VALUE).digest()
    ).digest()
    (tmp_path / "pol").write_bytes(pol)
    run("dgst", "-sha256", "-sign", str(key), "-out", str(tmp_path / "sig"), str(tmp_path / "pol"))
    sig = subprocess.run(
        ("base64", "-w0", str(tmp_path / "sig")), check=True, capture_output=True, text=True
    ).stdout
    member = {
        "sha256": [
            {
                "pcrs": [11],
                "pkfp": hashlib.sha256(public.read_bytes()).hexdigest(),
                "pol": pol.hex(),
                "sig": sig,
            }
        ]
    }
    spki = run("pkey", "-in", str(key), "-pubout", "-outform", "DER")
    found = pcrsig.examine(member, VALUE, [spki])
    assert found.keys == (spki,)


def test_real_sections_of_systemd() -> None:
    """Each .pcrsig that systemd-measure wrote counts for the value of its own phase, and for no other."""
    vectors = json.loads(
        (Path(__file__).parents[2] / "vectors" / "signed-values" / "pcrsig.json").read_text()
    )
    first, second = vectors["sections"]
    for section, other in ((first, second), (second, first)):
        key, value = bytes.fromhex(section["key"]), bytes.fromhex(section["pcr11"])
        assert pcrsig.policy_digest(value).hex() == section["pcrsig"]["sha256"][0]["pol"]
        assert pcrsig.examine(section["pcrsig"], value, [key]).keys == (key,), section["made"]
        assert code(pcrsig.examine(other["pcrsig"], value, [key])) == "statement-mismatch"
        without = {"sha384": section["pcrsig"]["sha384"]}
        assert code(pcrsig.examine(without, value, [key])) == "statement-malformed"


def test_a_key_of_the_policy_signs() -> None:
    """One of several keys, among entries for several phases."""
    mine, other = draw(2048), draw(2048)
    member = {"sha256": [signing.entry(other, VALUE), signing.entry(mine, OTHER), signing.entry(mine, VALUE)]}
    assert examine(member, mine) == "ok"
    assert examine(member, mine, other) == "ok"


def test_the_reference_of_systemd_262() -> None:
    """Entries for the initrd count, with the reference in the signature; entries for something else do not."""
    key = draw(2048)
    assert examine({"sha256": [signing.entry(key, VALUE, "initrd")]}, key) == "ok"
    assert examine({"sha256": [signing.entry(key, VALUE, "system")]}, key) == "statement-mismatch"
    unsigned = signing.entry(key, VALUE) | {"ref": "initrd"}
    assert examine({"sha256": [unsigned]}, key) == "statement-untrusted"
    stripped = {name: member for name, member in signing.entry(key, VALUE, "initrd").items() if name != "ref"}
    assert examine({"sha256": [stripped]}, key) == "statement-untrusted"


def test_a_foreign_signature() -> None:
    """Another key, and another key that claims the trusted one's fingerprint."""
    mine, foreign = draw(2048), draw(2048)
    assert examine(signing.pcrsig(foreign, VALUE), mine) == "statement-untrusted"
    claimed = signing.entry(foreign, VALUE, pkfp=signing.entry(mine, VALUE)["pkfp"])
    assert examine({"sha256": [claimed]}, mine) == "statement-untrusted"


def test_another_phase_or_image() -> None:
    """A signed value that is not the quoted one; also if the entry claims the policy digest of the quoted one."""
    key = draw(2048)
    assert examine(signing.pcrsig(key, OTHER), key) == "statement-mismatch"
    moved = signing.entry(key, OTHER, pol=pcrsig.policy_digest(VALUE).hex())
    assert examine({"sha256": [moved]}, key) == "statement-untrusted"


@pytest.mark.parametrize(
    "spoiled",
    [
        {"pcrs": [11, 12]},
        {"pcrs": [7]},
        {"pcrs": "11"},
        {"pcrs": None},
        {"pkfp": 1},
        {"pol": "zz"},
        {"pol": None},
        {"sig": "%%%"},
        {"sig": []},
        {"ref": 5},
        {"sig": "A" * 5000},
    ],
)
def test_an_entry_that_is_none(spoiled: dict[str, Any]) -> None:
    """It is passed over; a good one beside it still counts."""
    key = draw(2048)
    bad = signing.entry(key, VALUE) | spoiled
    assert examine({"sha256": [bad]}, key) in ("statement-malformed", "statement-untrusted")
    assert examine({"sha256": [bad, signing.entry(key, VALUE)]}, key) == "ok"


@pytest.mark.parametrize("bank", ["sha1", "sha384", "sha512", "SHA256"])
def test_only_entries_of_the_bank_sha256_count(bank: str) -> None:
    """The very same entry in another bank's list is none."""
    key = draw(2048)
    assert examine({bank: [signing.entry(key, VALUE)]}, key) == "statement-malformed"
    assert examine({bank: [], **signing.pcrsig(key, VALUE)}, key) == "ok"


@pytest.mark.parametrize(
    "member", [None, [], "{}", 1, {"sha256": {}}, {"sha256": None}, {"sha256": [1, None, []]}, {}]
)
def test_what_is_no_pcrsig(member: object) -> None:
    """Nothing is raised."""
    assert examine(member, draw(2048)) == "statement-malformed"


def test_too_many_entries_and_too_many_bytes() -> None:
    """Beyond a limit the whole section is as if it were not there, with the good entry in it."""
    key = draw(2048)
    good = signing.entry(key, VALUE)
    assert examine({"sha256": [good], "sha1": [{}] * (pcrsig.MAX_ENTRIES - 1)}, key) == "ok"
    assert examine({"sha256": [good], "sha1": [{}] * pcrsig.MAX_ENTRIES}, key) == "statement-malformed"
    assert examine({"sha256": [good, *[{}] * pcrsig.MAX_ENTRIES]}, key) == "statement-malformed"
    assert examine({"sha256": [good], "note": "x" * pcrsig.MAX_PCRSIG}, key) == "statement-malformed"


def test_the_number_of_signatures_that_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same entry many times costs one check; entries of unknown keys cost none."""
    key, checked = draw(2048), []
    is_signed = pcrsig._is_signed

    def counted(der: bytes, signature: pcrsig.PcrSignature) -> bool:
        checked.append(signature)
        return is_signed(der, signature)

    monkeypatch.setattr(pcrsig, "_is_signed", counted)
    good, foreign = signing.entry(key, VALUE), signing.entry(draw(2048), VALUE)
    assert examine({"sha256": [foreign] * 10 + [good] * 10}, key) == "ok"
    assert len(checked) == 1


@given(st.binary(min_size=32, max_size=32), st.integers(0, 255))
def test_a_changed_bit_of_the_value_is_another_value(value: bytes, bit: int) -> None:
    """For any value."""
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    assert pcrsig.policy_digest(value) != pcrsig.policy_digest(bytes(changed))

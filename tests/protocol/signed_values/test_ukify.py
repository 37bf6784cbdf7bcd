"""A section that Debian 13's ukify wrote, with a key for the initrd and another for later phases."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives import serialization

from tang_attest.protocol.signed_values import pcrsig

VECTOR: Final = json.loads((Path(__file__).parents[2] / "vectors/signed-values/ukify.json").read_text())
KEYS: Final = {
    name: serialization.load_pem_public_key(key["pem"].encode()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for name, key in VECTOR["keys"].items()
}


@pytest.mark.parametrize("phase", VECTOR["pcr11"])
@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_ukify_counts_for_its_own_phases_only(name: str, phase: str) -> None:
    """The key for the initrd does not vouch for the values that root on a running machine can quote."""
    value = bytes.fromhex(VECTOR["pcr11"][phase])
    found = pcrsig.examine(VECTOR["pcrsig"], value, [KEYS[name]])
    signs = phase in VECTOR["keys"][name]["phases"].split(",")
    assert found.keys == ((KEYS[name],) if signs else ())
    assert (found.obstacle is None) == signs


@pytest.mark.parametrize("phase", VECTOR["pcr11"])
def test_the_value_is_that_of_the_sections_and_the_phases(phase: str) -> None:
    """Extended as the stub and systemd extend PCR 11."""
    value = bytes(32)
    names = [hashlib.sha256(name.encode()).hexdigest() for name in phase.split(":")]
    for digest in (*VECTOR["extended"], *names):
        value = hashlib.sha256(value + bytes.fromhex(digest)).digest()
    assert value.hex() == VECTOR["pcr11"][phase]


def test_the_policy_digests_are_those_of_systemd() -> None:
    """One for each phase, computed from the value alone."""
    computed = [pcrsig.policy_digest(bytes.fromhex(value)).hex() for value in VECTOR["pcr11"].values()]
    assert computed == [entry["pol"] for entry in VECTOR["pcrsig"]["sha256"]]

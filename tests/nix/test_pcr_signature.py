"""``lib.pcrSignature``: the settings with which ukify signs a generation's image when it is built."""

from __future__ import annotations

import pytest

from tests.nix.nix import EvaluationError, Nix
from tools.generate_nix import ROOT

SIGNATURE = f"import {ROOT}/nix/pcr-signature.nix"


def test_one_phase_is_signed_and_only_the_public_key_is_in_the_store(nix: Nix) -> None:
    """The private key stays where the builder has it."""
    settings = nix.value(
        f'({SIGNATURE}) {{ privateKey = "/var/keys/initrd.key"; publicKey = {ROOT}/flake.nix; }}'
    )
    assert settings["UKI"] == {"PCRBanks": "sha256"}
    section = settings["PCRSignature:initrd"]
    assert section.pop("PCRPublicKey").endswith("-flake.nix")
    assert section == {"PCRPrivateKey": "/var/keys/initrd.key", "Phases": "enter-initrd"}


@pytest.mark.parametrize(
    "key",
    [
        f"{ROOT}/flake.nix",
        f'"${{{ROOT}/flake.nix}}"',
        'builtins.storeDir + "/x"',
        'builtins.toFile "key" "secret"',
    ],
)
def test_a_private_key_in_the_store_is_refused(nix: Nix, key: str) -> None:
    """As a path, as text with one in it, by its name, and as a file that the configuration writes."""
    with pytest.raises(EvaluationError, match="outside of the store"):
        nix.value(f"({SIGNATURE}) {{ privateKey = {key}; publicKey = {ROOT}/flake.nix; }}")


def test_a_private_key_at_a_relative_path_is_refused(nix: Nix) -> None:
    """The builder has another directory."""
    with pytest.raises(EvaluationError, match=r"'initrd\.key' is not an absolute path"):
        nix.value(f'({SIGNATURE}) {{ privateKey = "initrd.key"; publicKey = {ROOT}/flake.nix; }}')


def test_the_flake_has_it() -> None:
    """By the name that docs/how-to/updates/signed-updates.md says."""
    assert "lib.pcrSignature = import ./nix/pcr-signature.nix;" in (ROOT / "flake.nix").read_text()
    assert "tang-attest.lib.pcrSignature" in (ROOT / "docs/how-to/updates/signed-updates.md").read_text()

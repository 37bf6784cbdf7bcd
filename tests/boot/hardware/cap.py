"""The cap of a booted machine: its texts, compared with the value in the TPM."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from tests.boot.hardware.machine import Console

HEADER: Final = "tang-attest/v1 cap\n"


def cap_texts(console: Console) -> list[str]:
    """The texts of this boot in the order in which they were extended; PCR 15 is their replay."""
    said = console.shell("cat /run/clevis-attest/cap-events")
    # The shell's first prompt may come after what was typed.
    events = said[said.find(HEADER) :]
    texts = [HEADER + text for text in events.split(HEADER)[1:]]
    assert events == "".join(texts)
    assert replayed(texts) in console.shell("tpm2 pcrread sha256:15").lower()
    return texts


def replayed(texts: list[str]) -> str:
    """Value of PCR 15 of the bank sha256 after these texts."""
    value = bytes(32)
    for text in texts:
        value = hashlib.sha256(value + hashlib.sha256(text.encode()).digest()).digest()
    return value.hex()


def text(volumes: Mapping[str, str]) -> str:
    """The text of a cap, by volume: ``{UUID: "attested" or "passphrase"}``."""
    return HEADER + "".join(f"{volumes[uuid]} {uuid}\n" for uuid in sorted(volumes))

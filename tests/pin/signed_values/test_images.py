"""The ``.pcrsig`` of an image that ukify built: a real TPM's PCR 11, the pin and the server, without the boot around them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine
from tests.pin.signed_values.search import write

pytestmark = pytest.mark.slow

VECTOR: Final = json.loads((Path(__file__).parents[2] / "vectors/signed-values/ukify.json").read_text())
#: Firmware, loader, Secure Boot, the image, the cap.
SELECTION: Final = "sha256:0,4,7,11,15"


@dataclass
class Booting:
    """A machine that was recorded with nothing in PCR 11, and whose policy trusts the vendor's key for the initrd."""

    machine: Machine
    jwe: bytes
    root: Path

    def boot(self, phase: str, pcrsig: dict[str, Any]) -> None:
        """Start the image of the vector, and come to *phase*."""
        self.machine.reboot()
        names = [hashlib.sha256(name.encode()).hexdigest() for name in phase.split(":")]
        for digest in (*VECTOR["extended"], *names):
            self.machine.tpm.run("tpm2", "pcrextend", f"11:sha256={digest}")
        write(self.root, ".extra/tpm2-pcr-signature.json", json.dumps(pcrsig))

    def refusal(self) -> str:
        """Unlock; the code of the refusal."""
        tried = self.machine.decrypt(self.jwe)
        assert tried.stdout == b""
        return tried.stderr.decode().partition("refused (")[2].partition(")")[0]


@pytest.fixture
def booting(machine: Machine, server: Server, name: str, tmp_path: Path) -> Booting:
    """The machine."""
    token = server.operator.token(name, "--selection", SELECTION)
    made = Booting(machine, machine.encrypt(url=server.url, name=name, token=token), tmp_path / "root")
    machine.extra["CLEVIS_ATTEST_ROOT"] = str(made.root)
    assert made.refusal() == "state-learned"
    public = tmp_path / "vendor.pem"
    public.write_text(VECTOR["keys"]["initrd"]["pem"])
    server.operator.run("policy", "trust-signer", name, str(public), "--pcrs", "11")
    return made


def test_an_image_of_a_trusted_vendor_opens(booting: Booting, server: Server, name: str) -> None:
    """Nobody approved its PCR 11; the audit record names the signer."""
    booting.boot("enter-initrd", VECTOR["pcrsig"])
    assert booting.machine.decrypt(booting.jwe).stdout == SECRET
    assert '"vendor' in server.operator.run("audit", "--device", name, "--json")


def test_another_phase_of_the_image_is_refused(booting: Booting) -> None:
    """The trusted key signed the value of the initrd, and the machine quotes that of a later phase."""
    booting.boot("enter-initrd:leave-initrd", {"sha256": VECTOR["pcrsig"]["sha256"][:1]})
    assert booting.refusal() == "statement-mismatch"
    assert "of another phase of the boot" in booting.machine.console


def test_a_foreign_signature_is_refused(booting: Booting) -> None:
    """The value that root on the running machine can quote is signed, but with another key of the vendor."""
    booting.boot("enter-initrd:leave-initrd", VECTOR["pcrsig"])
    assert booting.refusal() == "statement-untrusted"
    assert "not signed with a key that the policy trusts" in booting.machine.console

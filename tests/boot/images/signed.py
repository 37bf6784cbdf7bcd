"""Unified kernel images as a vendor makes them: built, measured and signed by Debian 13's ukify, and signed for Secure Boot."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.boot.images.base import NEWER, base_tree
from tests.boot.images.tree import chroot

#: ukify runs systemd-measure, which loads the libraries of tpm2-tools, and puts the stub of systemd-boot-efi first.
_PACKAGES: Final = ("systemd", "systemd-ukify", "systemd-boot-efi", "tpm2-tools")
_OVMF: Final = Path("/usr/share/ovmf")


@dataclass(frozen=True)
class SigningKey:
    """A key for PCR values, as two PEM files."""

    private: Path
    public: Path


def make_key(directory: Path, name: str) -> SigningKey:
    """Make an RSA key, of the size that systemd's documentation has."""
    key = rsa.generate_private_key(65537, 2048)
    made = SigningKey(directory / f"{name}.key", directory / f"{name}.pem")
    made.private.touch(0o600)
    made.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    made.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return made


def ukify(
    target: Path, kernel: Path, initrd: Path, command_line: str, signers: Sequence[tuple[SigningKey, str]]
) -> str:
    """Make *target* with a ``.pcrsig`` by each of *signers*, a key and the phases that it signs, such as ``enter-initrd``.

    Returns the output of ukify, which has the value of PCR 11 at each phase.
    """
    root, _ = base_tree(_PACKAGES, "ukify", NEWER)
    with tempfile.TemporaryDirectory(dir=root / "tmp") as work:
        place = Path(work)
        inside = f"/tmp/{place.name}"
        for source, name in ((kernel, "linux"), (initrd, "initrd")):
            shutil.copy(source, place / name)
        (place / "cmdline").write_text(command_line)
        keys = ""
        for number, (key, phases) in enumerate(signers):
            shutil.copy(key.private, place / f"{number}.key")
            shutil.copy(key.public, place / f"{number}.pem")
            keys += f" --pcr-private-key={inside}/{number}.key --pcr-public-key={inside}/{number}.pem --phases={phases}"
        said = chroot(
            root,
            f"ukify build --measure --linux={inside}/linux --initrd={inside}/initrd --cmdline=@{inside}/cmdline"
            f" --os-release=ID=test --pcr-banks=sha256{keys} --output={inside}/image.efi",
        )
        _sign(place / "image.efi", target)
    return said


def ukify_version() -> str:
    """Return the version of ukify."""
    root, _ = base_tree(_PACKAGES, "ukify", NEWER)
    return chroot(root, "ukify --version").split()[1]


def _sign(image: Path, target: Path) -> None:
    """Sign *image* for Secure Boot, with the key of OVMF's snakeoil variables."""
    certificate, key = _OVMF / "PkKek-1-snakeoil.pem", _OVMF / "PkKek-1-snakeoil.key"
    target.unlink(missing_ok=True)
    command = ["osslsigncode", "sign", "-certs", str(certificate), "-key", str(key), "-pass", "snakeoil"]
    command += ["-h", "sha256", "-in", str(image), "-out", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def pcrsig(image: Path) -> str:
    """Return the signatures in a unified kernel image, as the file that its stub gives to the initrd."""
    with tempfile.NamedTemporaryFile() as file:
        command = ["objcopy", "-O", "binary", "--only-section=.pcrsig", str(image), file.name]
        subprocess.run(command, check=True, capture_output=True)
        return Path(file.name).read_text().rstrip("\0\n")

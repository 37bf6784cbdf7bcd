"""A machine's client certificate in a root tree, and OpenSSL's provider for a key in the TPM."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PROVIDER: Final = next(Path("/usr/lib").glob("*/ossl-modules/tpm2.so"))

#: The provider, and the libraries of the TPM software stack that it is linked with.
PROVIDER_NEEDS: Final = tuple(
    [_PROVIDER.name]
    + [
        line.split()[0]
        for line in subprocess.run(
            ["ldd", str(_PROVIDER)], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        if "libtss2" in line
    ]
)


@contextmanager
def client_files(root: Path, kind: str) -> Iterator[None]:
    """/etc/ssl/m.crt and m.key, as far as somebody looks who only copies them; *kind* is what PEM says of the key."""
    certificate, key = root / "etc/ssl/m.crt", root / "etc/ssl/m.key"
    certificate.parent.mkdir(exist_ok=True)
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    key.write_text(f"-----BEGIN {kind}-----\n")
    try:
        yield
    finally:
        certificate.unlink()
        key.unlink()


@contextmanager
def provider(root: Path) -> Iterator[None]:
    """tpm2-openssl is installed in the tree: this machine's, which is of the same release."""
    target = root / _PROVIDER.relative_to("/")
    shutil.copy(_PROVIDER, target)
    try:
        yield
    finally:
        target.unlink()

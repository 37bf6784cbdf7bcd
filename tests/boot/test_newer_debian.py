"""The pin's tests in a root of Debian 13: its clevis, curl, tpm2-tools, OpenSSL and Python, as on a Raspberry Pi of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.images.base import NEWER
from tests.boot.images.checkout import checkout, run

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: Each uses clevis, jose, curl, OpenSSL, tpm2-tools and a software TPM, and binds before it unlocks.
_TESTS = (
    "tests/pin/test_client_certificates.py",
    "tests/pin/unlocking/test_unlock.py",
    "tests/web/gate/test_client_certificates.py",
)


def test_the_pin_with_the_programs_of_debian_13(tmp_path: Path) -> None:
    """The same tests as here, in a root that has nothing of this machine."""
    with checkout(NEWER, tmp_path) as root:
        command = (
            f".venv/bin/pytest -q -n 2 -p no:cacheprovider -m 'not boot and not bench' {' '.join(_TESTS)}"
        )
        done = run(root, command, timeout=2300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout

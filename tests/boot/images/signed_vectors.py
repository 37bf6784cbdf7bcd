"""Make tests/vectors/signed-values/ukify.json with Debian 13's ukify: ``PYTHONPATH=clevis-pin python -m tests.boot.images.signed_vectors``.

It runs as root, because ukify runs in a root of Debian 13.  The keys are thrown away.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Final

from predict.pe import Window, parse

from tests.boot.images.base import base_tree
from tests.boot.images.cache import ROOT
from tests.boot.images.signed import make_key, pcrsig, ukify, ukify_version

#: The sections of these images that the stub measures, in its order (systemd-stub(7)).
_SECTIONS: Final = (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat", ".pcrpkey")
TARGET: Final = ROOT / "tests/vectors/signed-values/ukify.json"
#: A vendor's two keys: one for the initrd alone, one for later phases.
PHASES: Final = {
    "initrd": "enter-initrd",
    "later": "enter-initrd:leave-initrd,enter-initrd:leave-initrd:sysinit",
}


def main() -> None:
    """Write the file anew."""
    with tempfile.TemporaryDirectory() as work:
        keys = {name: make_key(Path(work), name) for name in PHASES}
        image, initrd = Path(work) / "image.efi", Path(work) / "initrd"
        initrd.write_bytes(bytes(1024))
        kernel = next((base_tree()[0] / "boot").glob("vmlinuz-*"))
        signers = [(keys[name], phases) for name, phases in PHASES.items()]
        said = ukify(image, kernel, initrd, "a command line", signers)
        found = {
            "made": f"ukify {ukify_version()} build --pcr-banks=sha256, with a key for each list of phases",
            "keys": {
                name: {"phases": PHASES[name], "pem": key.public.read_text()} for name, key in keys.items()
            },
            "pcr11": dict(zip(",".join(PHASES.values()).split(","), measured(said), strict=True)),
            # PCR 11 is extended with these, and then with the SHA-256 of the name of each phase.
            "extended": extended(image),
            "pcrsig": json.loads(pcrsig(image)),
        }
    TARGET.write_text(f"{json.dumps(found, indent=1)}\n")


def extended(image: Path) -> list[str]:
    """Return the digests that the stub extends PCR 11 with: the name and the content of each section."""
    parsed = parse(Window(lambda: image.open("rb"), 0, image.stat().st_size, image.stat().st_size))
    digests = []
    for name in _SECTIONS:
        if section := parsed.section(name):
            content = b"".join(parsed.content(section).chunks(0, section.virtual))
            digests += [hashlib.sha256(data).hexdigest() for data in (f"{name}\0".encode(), content)]
    return digests


def measured(said: str) -> list[str]:
    """Return the values of PCR 11 in the output of ``ukify --measure``, in the order of the phases."""
    return re.findall(r"^11:sha256=([0-9a-f]{64})$", said, re.MULTILINE)


if __name__ == "__main__":
    main()

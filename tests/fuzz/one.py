"""``python -m tests.fuzz.one MODULE [libFuzzer's flags]``: fuzz the target of MODULE until it fails or the flags end it.

Apart from the other modules, because what is imported before atheris instruments imports is invisible to it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import atheris

#: Ours, and what is written in Python and reads bytes for us.
INSTRUMENTED = ["tang_attest", "tests.fuzz", "tomllib", "json", "asn1crypto"]


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, *flags = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        target: Any = importlib.import_module(name).TARGET
    atheris.Setup([sys.argv[0], *flags], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""``python -m tests.fuzz.one MODULE [--smoke] [libFuzzer's flags] [DIRECTORY | FILE...]``: fuzz the target of MODULE.

DIRECTORY is the corpus, and gets the seeds; FILEs are run once each.  Apart from the other modules, because what is
imported before atheris instruments imports is invisible to it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

import atheris

#: Ours, and what is written in Python and reads bytes for us.
INSTRUMENTED = ["tang_attest", "predict", "tests.fuzz", "tomllib", "json", "asn1crypto"]
#: Seconds that one input may take, and MiB that the process may have.  The parsers' own limits keep them far below.
LIMITS = ["-timeout=10", "-rss_limit_mb=1024"]


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        target: Any = importlib.import_module(name).TARGET
    for corpus in filter(Path.is_dir, map(Path, arguments)):
        for seed in target.corpus():
            (corpus / hashlib.sha256(seed).hexdigest()[:40]).write_bytes(seed)
    flags = [f"-runs={target.smoke_runs}" if flag == "--smoke" else flag for flag in arguments]
    atheris.Setup([sys.argv[0], f"-max_len={target.max_length}", *LIMITS, *flags], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

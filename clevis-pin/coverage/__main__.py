"""Print what the event log of this boot covers under a PCR selection, for clevis-attest-status: one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

if sys.version_info < (3, 11):  # noqa: UP036 - the Python of the machine is not ours
    sys.exit("tang-attest: the coverage of a boot needs Python 3.11 or newer")

# Installed, the server's parser of event logs is beside this program; in a checkout, one directory further up.
_BESIDE = Path(__file__).resolve().parent.parent
sys.path[0] = str(_BESIDE if (_BESIDE / "tang_attest").is_dir() else _BESIDE.parent)

from tang_attest.errors import TangAttestError  # noqa: E402
from tang_attest.protocol.coverage import coverage  # noqa: E402
from tang_attest.protocol.eventlog import MAX_LOG_SIZE, parse  # noqa: E402
from tang_attest.protocol.values.pcr import Selection  # noqa: E402

COVERED: Final = 0
UNKNOWN: Final = 1
UNCOVERED: Final = 4


def main(arguments: Sequence[str]) -> int:
    """Print the coverage as one line; ``unknown: `` and why, if the log cannot be read.

    The log is not compared with the TPM: the server does that with each quote.
    """
    parser = argparse.ArgumentParser(prog="coverage", allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--selection", required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(arguments)
    line, status = _look(options.log, options.selection)
    sys.stdout.write(f"{line}\n")
    return status


def _look(path: Path, selection: str) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            log = parse(file.read(MAX_LOG_SIZE + 1))
        found = coverage(log, Selection.parse(selection))
    except OSError as error:
        return f"unknown: the event log cannot be read ({error.strerror})", UNKNOWN
    except TangAttestError as error:
        return f"unknown: {error.sentence.rstrip('.')}", UNKNOWN
    return found.line(), UNCOVERED if found.uncovered else COVERED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

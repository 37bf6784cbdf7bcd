"""The program that clevis-attest-predict calls: its options, what it prints, its exit codes."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from predict.files import MachineFiles
from predict.files import command_line as read_command_line
from predict.plan import Target
from predict.prediction import Prediction, pcr_values, predict, read_log
from predict.sentences import NoPrediction, WrongCommandLine
from predict.text import of_argument, of_path, plain

EVENT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"

DONE: Final = 0
FAILED: Final = 1
WRONG: Final = 2
UNPREDICTABLE: Final = 4
NO_VALUES: Final = 5
"""The caller gave no PCR values on the standard input, and the log is good: the caller knows why the TPM has
none.
"""

_MAX_VALUES: Final = 1 << 16


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Predict the next boot; the standard input has the output of ``tpm2 pcrread``.

    Print values (``print``), JSON (``json``), or what an announcement needs (``announce``): a line each for
    the label, the values (base64url), their SHA-256 (hexadecimal) and the changes (the elements of a JSON
    array).
    """
    options = _options(arguments)
    try:
        prediction = _predict(options, environment)
    except (NoPrediction, WrongCommandLine) as sentence:
        _say(str(sentence))
        return FAILED if isinstance(sentence, NoPrediction) else WRONG
    except OSError as error:
        _say(f"cannot read {error.filename or 'a file'}: {error.strerror}")
        return FAILED
    if prediction is None:
        return NO_VALUES
    if options.form == "json":
        sys.stdout.write(f"{as_json(prediction)}\n")
    elif options.form == "print":
        explain(prediction, everything=True)
        sys.stdout.write(as_pcrread(prediction))
    elif prediction.missing:
        explain(prediction, everything=False)
    else:
        sys.stdout.write(f"{as_announcement(prediction)}\n")
    return UNPREDICTABLE if prediction.missing else DONE


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="predict", allow_abbrev=False, description=main.__doc__)
    parser.add_argument("form", choices=("print", "json", "announce"))
    parser.add_argument("--selection", required=True)
    parser.add_argument("--cap", type=int, required=True)
    parser.add_argument("--root", default="")
    parser.add_argument("--kernel", type=Path)
    parser.add_argument("--initrd", type=Path, action="append", default=[])
    parser.add_argument("--cmdline", default="")
    parser.add_argument("--uki", type=Path)
    parser.add_argument("--label", default="")
    return parser.parse_args(arguments)


def _predict(options: argparse.Namespace, environment: Mapping[str, str]) -> Prediction | None:
    """Return the prediction; None if the log is good and there are no values of PCRs."""
    bank = options.selection.partition(":")[0]
    log = read_log(Path(environment.get("CLEVIS_ATTEST_EVENT_LOG") or EVENT_LOG), bank)
    values = sys.stdin.buffer.read(_MAX_VALUES).decode("ascii", "replace")
    if not values.strip():
        return None
    return predict(
        log,
        MachineFiles(of_path(Path(options.root)) if options.root else "", bank),
        Target(options.kernel, options.initrd, of_argument(options.cmdline), options.uki),
        command_line=read_command_line(Path(environment.get("CLEVIS_ATTEST_CMDLINE") or "/proc/cmdline")),
        selection=options.selection,
        cap=options.cap,
        running=pcr_values(values),
        label=of_argument(options.label),
        release=os.uname().release,
    )


def _say(sentence: str) -> None:
    sys.stderr.write(f"tang-attest: {plain(sentence, len(sentence))}\n")


def explain(prediction: Prediction, *, everything: bool) -> None:
    """Say of each PCR why it changes or cannot be predicted; *everything*: also which stay, and what was
    taken for granted.
    """
    for outcome in prediction.outcomes:
        if outcome.unpredictable:
            _say(f"PCR {outcome.pcr}: cannot be predicted: {outcome.unpredictable}")
        elif outcome.changed:
            _say(f"PCR {outcome.pcr}: changed: {outcome.changed}")
        elif everything:
            _say(f"PCR {outcome.pcr}: unchanged")
    if everything:
        for note in prediction.notes:
            _say(f"note: {note}")
    elif prediction.missing:
        missing = ", ".join(f"PCR {pcr}" for pcr in prediction.missing)
        _say(
            f"nothing was announced, for the policy has {missing}, which cannot be predicted:"
            " after the reboot one approval is needed"
        )


def as_pcrread(prediction: Prediction) -> str:
    """Return the values in the form of ``tpm2 pcrread``."""
    lines = [f"  {prediction.selection.partition(':')[0]}:\n"]
    for outcome in prediction.outcomes:
        if outcome.value is not None:
            lines.append(f"    {outcome.pcr:<2}: 0x{outcome.value.hex().upper()}\n")
    return "".join(lines)


def as_json(prediction: Prediction) -> str:
    """Return the whole prediction as JSON."""
    pcrs = []
    for outcome in prediction.outcomes:
        if outcome.value is None:
            member = {"state": "unpredictable", "because": plain(outcome.unpredictable)}
        elif outcome.changed:
            member = {"state": "changed", "value": outcome.value.hex(), "because": plain(outcome.changed)}
        else:
            member = {"state": "unchanged", "value": outcome.value.hex()}
        pcrs.append({"pcr": outcome.pcr, **member})
    members = {
        "selection": prediction.selection,
        "label": prediction.label,
        "pcrs": pcrs,
        "notes": prediction.notes,
    }
    return json.dumps(members, separators=(",", ":"))


def as_announcement(prediction: Prediction) -> str:
    """Return what an announcement needs (docs/protocol.md, section 9), a line each."""
    values = b"".join(outcome.value or b"" for outcome in prediction.outcomes)
    encoded = base64.urlsafe_b64encode(values).decode().rstrip("=")
    changes = ",".join(
        json.dumps(plain(f"PCR {outcome.pcr}: {outcome.changed[:240]}"))
        for outcome in prediction.outcomes
        if outcome.changed
    )
    return "\n".join((prediction.label, encoded, hashlib.sha256(values).hexdigest(), changes))

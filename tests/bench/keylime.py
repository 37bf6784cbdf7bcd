"""The check of one quote beside Keylime's, for scale: the same quote of a software TPM, by processor time.

Keylime's is ``keylime.tpm.tpm_util.checkquote``: the signature under the AK, the nonce, and the digest of the PCR values, which is
what :func:`verify_quote` checks too.  Keylime reads the AK from PEM each time, as its verifier does; this server keeps it
parsed.  Policies are in neither.  It is no dependency of this project, so it runs in an interpreter of its own:

    uv venv DIR && uv pip install --python DIR keylime==7.14.3 cryptography lark packaging psutil pyasn1 pyasn1-modules pyyaml requests
    .venv/bin/python -m tests.bench --only keylime --keylime DIR/bin/python
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Final

from tang_attest.protocol import tpm
from tang_attest.protocol.checkquote.tools_files import parse_pcr_file, public_area
from tang_attest.protocol.enrollment import EnrolledDevice
from tang_attest.protocol.quote import Evidence, verify_quote
from tang_attest.protocol.values.pcr import Selection
from tests.bench.load.attester import SELECTION
from tests.swtpm import Swtpm

_CALLS: Final = 500
#: Keylime compares the qualifying data with the nonce's text, this server with a digest: the text is one of 32 bytes.
_NONCE: Final = hashlib.sha256(b"a nonce").hexdigest()[:32]

_OF_KEYLIME: Final = """
import json, pathlib, sys, time
from keylime.tpm.tpm_util import checkquote
directory, nonce, calls = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ak, signature, quote, pcrs = ((directory / name).read_bytes() for name in ("ak.pem", "signature", "quote", "pcrs"))
times = []
for _ in range(calls):
    begin = time.thread_time()
    values = checkquote(ak, nonce, signature, quote, pcrs, "sha256")
    times.append(time.thread_time() - begin)
assert sorted(values) == [0, 2, 4, 7], values
print(json.dumps(times))
"""


def measure(work: Path, interpreter: Path | None) -> dict[str, float]:
    """Medians in ms of each check; Keylime's only with an *interpreter* that has it."""
    directory = work / "quote"
    directory.mkdir()
    _make_quote(work / "quote-tpm", directory)
    figures = {"quote_check_ms": 1000 * median(_ours(directory))}
    if interpreter is not None:
        figures["keylime_quote_check_ms"] = 1000 * median(_keylimes(interpreter, directory))
    return figures


def _make_quote(state: Path, directory: Path) -> None:
    with Swtpm(state) as swtpm:
        for command in (
            "createek -Q -G ecc -c ek.ctx",
            "createak -Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub",
            "readpublic -Q -c ak.ctx -f pem -o ak.pem",
            f"quote -Q -c ak.ctx -l {SELECTION} -q {_NONCE.encode().hex()} -m quote -s signature -o pcrs",
        ):
            subprocess.run(
                ["tpm2", *command.split()],
                cwd=directory,
                env=swtpm.environment,
                check=True,
                capture_output=True,
                timeout=60,
            )
            subprocess.run(
                ["tpm2", "flushcontext", "-Q", "-t"], env=swtpm.environment, check=True, timeout=60
            )


def _ours(directory: Path) -> list[float]:
    def read(name: str) -> bytes:
        return (directory / name).read_bytes()

    ak = public_area(read("ak.pub"))
    if ak is None:
        raise RuntimeError("tpm2 createak wrote PEM")
    device, selection = EnrolledDevice("machine", tpm.parse_ak(ak)), Selection.parse(SELECTION)
    pcrs = parse_pcr_file(read("pcrs"), ()).values
    evidence = Evidence(_NONCE, read("quote"), read("signature"), pcrs)
    times = []
    for _ in range(_CALLS):
        begin = time.thread_time()
        verify_quote(device, evidence, selection, _NONCE.encode())
        times.append(time.thread_time() - begin)
    return times


def _keylimes(interpreter: Path, directory: Path) -> list[float]:
    command: list[str | Path] = [interpreter, "-c", _OF_KEYLIME, directory, _NONCE, str(_CALLS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if run.returncode != 0:
        raise RuntimeError(f"Keylime's check failed in {interpreter}: {run.stderr[-1000:]}")
    times: list[float] = json.loads(run.stdout.splitlines()[-1])
    return times

"""Quotes by a TPM that this machine can reach, such as a virtual machine's, with tpm2-tools."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tang_attest.errors import Unavailable
from tang_attest.ports.machines import Reach
from tang_attest.programs.run import run_program
from tang_attest.protocol.cap import MAX_TEXTS
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.values.pcr import Selection

#: A TPM takes up to a second; a discrete one behind a resource manager that others use, longer.
LIMIT_S: Final = 20.0
#: The texts of this boot's caps, which the initrd writes (initrd/clevis-attest-cap).
CAP_EVENTS: Final = Path("/run/clevis-attest/cap-events")
_ERROR: Final = re.compile(r"^(?:ERROR|WARN): *(.*)$", re.MULTILINE)


class Tpm2Tools:
    """:class:`tang_attest.service.rounds.on_demand.Quoter` with ``tpm2 quote``.

    *cap_events* are the texts of the machine's cap; without them, those of this machine go with a quote of
    its own TPM.
    """

    def __init__(self, limit_s: float = LIMIT_S, cap_events: bytes | None = None) -> None:
        self._limit_s, self._cap_events = limit_s, cap_events

    async def quote(self, reach: Reach, selection: Selection, qualifying: bytes, nonce: str) -> Evidence:
        """Return evidence over *selection*.  Raises ``tpm-unreachable``, ``program-missing``."""
        with tempfile.TemporaryDirectory(prefix="tang-attest-") as directory:
            files = {name: Path(directory) / name for name in ("quote", "signature", "pcrs")}
            command = ["tpm2", "quote", "-Q", "-T", reach.tcti, "-c", reach.ak_handle]
            command += ["-l", str(selection), "-q", qualifying.hex(), "-F", "values"]
            command += ["-m", str(files["quote"]), "-s", str(files["signature"]), "-o", str(files["pcrs"])]
            await self._run(command, reach.tcti, "made no quote")
            evidence = await asyncio.to_thread(_read, nonce, files)
        texts = _own_texts() if self._cap_events is None and _is_own(reach) else self._cap_events
        return replace(evidence, cap_events=texts)

    async def read_nv(self, tcti: str, indices: Sequence[str]) -> Mapping[str, bytes]:
        """Return the contents of each readable NV index of *indices*.  Raises ``tpm-unreachable``,
        ``program-missing``.
        """
        with tempfile.TemporaryDirectory(prefix="tang-attest-") as directory:
            await self._run(["tpm2", "getcap", "-T", tcti, "handles-nv-index"], tcti, "does not answer")
            found = {}
            for index in indices:
                file = Path(directory) / index
                for hierarchy in (index, "o"):
                    command = ["tpm2", "nvread", "-Q", "-T", tcti, "-C", hierarchy, "-o", str(file), index]
                    if (await self._said(command, tcti))[0] == 0:
                        found[index] = await asyncio.to_thread(file.read_bytes)
                        break
            return found

    async def _run(self, command: list[str], tcti: str, failure: str) -> None:
        code, said = await self._said(command, tcti)
        if code != 0:
            words = _ERROR.search(said)
            what = words[1].strip().rstrip(".")[:200] if words else f"tpm2 ended with {code}"
            raise Unavailable("tpm-unreachable", f"The TPM at {tcti} {failure}: {what}.")

    async def _said(self, command: list[str], tcti: str) -> tuple[int, str]:
        try:
            return await run_program(command, limit_s=self._limit_s, environment={"TSS2_LOG": "all+NONE"})
        except TimeoutError:
            raise Unavailable(
                "tpm-unreachable", f"The TPM at {tcti} did not answer within {self._limit_s:.0f} s."
            ) from None


def _is_own(reach: Reach) -> bool:
    return reach.tcti.partition(":")[0] in ("device", "tabrmd")


def _own_texts() -> bytes | None:
    """Return the texts of this machine's cap, or None if there are none, or more than the limit."""
    try:
        with CAP_EVENTS.open("rb") as file:
            texts = file.read(MAX_TEXTS + 1)
    except OSError:
        return None
    return texts if len(texts) <= MAX_TEXTS else None


def _read(nonce: str, files: dict[str, Path]) -> Evidence:
    quote, signature, pcrs = (files[name].read_bytes() for name in ("quote", "signature", "pcrs"))
    return Evidence(nonce, quote, signature, pcrs)

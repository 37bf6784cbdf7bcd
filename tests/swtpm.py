"""A software TPM (swtpm) for tests, and tpm2-tools that talk to it.

    with Swtpm(tmp_path / "tpm") as tpm:
        tpm.run("tpm2", "pcrread", "sha256:0")

The TPM is a process of its own with its state in the given directory, so a test can reset it (:meth:`Swtpm.restart`),
copy it or keep several at once.  It listens on two TCP ports of 127.0.0.1, because the swtpm TCTI of tpm2-tss 3.2
knows neither sockets with a path nor a control port that is not the port after the server's.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.ports import is_free, listens

#: Below the range from which Linux gives out ephemeral ports (32768 and up), so that no client takes one of them.
_PORTS: Final = range(20000, 32000, 2)
_ATTEMPTS: Final = 50
_START_SECONDS: Final = 120.0


def end(process: subprocess.Popen[bytes]) -> None:
    """End the swtpm *process*, and wait until it has ended.

    swtpm 0.10 misses a SIGTERM that comes while its client disconnects: it then runs in a loop until the next one.
    """
    for _ in range(20):
        process.terminate()
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()


class Swtpm:
    """One software TPM 2.0; a context manager that starts it on entry and stops it on exit.

    *directory* is created and keeps the TPM's state (``state/``), its log and, with *create_ek_cert*, its
    certificate authority (``ca/``).  *banks* are the PCR banks that ``swtpm_setup`` activates.  One that is *made* has
    the files of another in *directory*, copied while that was off: it is the same TPM, with the same keys.
    """

    def __init__(
        self,
        directory: Path,
        *,
        create_ek_cert: bool = False,
        banks: Sequence[str] = ("sha1", "sha256", "sha384"),
        made: bool = False,
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.log = directory / "swtpm.log"
        self.ca = directory / "ca"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        if not made:
            self.state.mkdir(parents=True)
            self._set_up(create_ek_cert, banks)

    @property
    def tcti(self) -> str:
        """The TCTI of the running TPM, for ``TPM2TOOLS_TCTI`` and ``tpm2 -T``."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running TPM."""
        assert self._process is not None, "the TPM is not running"
        return self._process.pid

    @property
    def ca_certificates(self) -> tuple[Path, Path]:
        """The root and the issuer of the EK certificates (PEM); only with ``create_ek_cert``."""
        return self.ca / "swtpm-localca-rootca-cert.pem", self.ca / "issuercert.pem"

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a program that is to use this TPM."""
        return {**os.environ, "TPM2TOOLS_TCTI": self.tcti, "TCTI": self.tcti, "TSS2_LOG": "all+NONE"}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def run(
        self, *command: str | Path, cwd: Path | None = None, stdin: bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program against this TPM; with *check*, a failure raises and shows what the program said."""
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.directory,
            env=self.environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=120,
            check=False,
        )
        if check and result.returncode != 0:
            said = (result.stdout + result.stderr).decode(errors="replace").strip()
            raise AssertionError(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{said}")
        return result

    def start(self, port: int | None = None) -> None:
        """Power the TPM on, at *port* or any: it is started up with cleared PCRs and ready for commands."""
        assert self._process is None, "the TPM is running"
        for _ in range(_ATTEMPTS):
            self.port = port or random.choice(_PORTS)
            # Only a hint: another test may take the port before swtpm does.  Then swtpm exits, and the next is tried.
            if is_free(self.port) and is_free(self.port + 1) and self._start_on(self.port):
                return
        raise AssertionError(f"swtpm does not start; its log says:\n{self._said()}")

    def stop(self) -> None:
        """Cut the TPM's power."""
        if self._process is None:
            return
        end(self._process)
        self._process = None

    def restart(self, *, orderly: bool = True) -> None:
        """Reset the TPM, as a reboot does; not *orderly* is a power cut, after which the clock is not ``safe``."""
        if orderly:
            self.run("tpm2", "shutdown", "--clear")
        self.stop()
        self.start()

    def _start_on(self, port: int) -> bool:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}"),
                    *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
                    *("--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"),
                    *("--flags", "not-need-init,startup-clear"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._process = process
        deadline = time.monotonic() + _START_SECONDS
        for pause in itertools.chain((0.01, 0.02, 0.05), itertools.repeat(0.1)):
            if process.poll() is not None:
                break
            if listens(process.pid, port, port + 1):
                return True
            if time.monotonic() > deadline:
                break
            time.sleep(pause)
        self.stop()
        return False

    def _set_up(self, create_ek_cert: bool, banks: Sequence[str]) -> None:
        command = ["swtpm_setup", "--tpm2", "--tpmstate", str(self.state), "--pcr-banks", ",".join(banks)]
        command += ["--config", str(self._write_setup_config())]
        if create_ek_cert:
            command += ["--create-ek-cert", "--create-platform-cert", "--lock-nvram"]
        for attempt in itertools.count(1):
            result = subprocess.run(command, capture_output=True, timeout=120, check=False)
            if result.returncode == 0:
                return
            # swtpm_setup picks its port by itself, and may lose it to a test that runs beside this one.
            assert attempt < 3, f"swtpm_setup: {result.stdout.decode()}{result.stderr.decode()}"
            shutil.rmtree(self.state)
            self.state.mkdir()

    def _write_setup_config(self) -> Path:
        """A configuration of swtpm_setup whose certificate authority lives in our own directory."""
        self.ca.mkdir(exist_ok=True)
        authority = self.directory / "swtpm-localca.conf"
        authority.write_text(
            f"statedir = {self.ca}\n"
            f"signingkey = {self.ca}/signkey.pem\n"
            f"issuercert = {self.ca}/issuercert.pem\n"
            f"certserial = {self.ca}/certserial\n"
        )
        options = self.directory / "swtpm-localca.options"
        options.write_text("--platform-manufacturer Test\n--platform-version 1\n--platform-model swtpm\n")
        setup = self.directory / "swtpm_setup.conf"
        setup.write_text(
            f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
            f"create_certs_tool_config = {authority}\n"
            f"create_certs_tool_options = {options}\n"
        )
        return setup

    def _said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

"""A real server, run as an operator runs it: by its commands, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.boot.hardware.machine import SERVER, SERVER_PORT, Machine
from tests.boot.images.cache import ROOT
from tests.boot.images.disk import clevis_bind
from tests.cli import forked
from tests.pin.machine import certificate, pin_of
from tests.ports import free_port
from tests.swtpm import Swtpm


class Site:
    """A server on 127.0.0.1 and its operator; a new one speaks HTTPS if *https* says so."""

    def __init__(self, directory: Path, *, https: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if not directory.exists():
            directory.mkdir(parents=True)
            self._thumbprint.write_text(self.operator("init"))
            if https:
                certificate(directory)

    @property
    def https(self) -> bool:
        """True if machines have to use HTTPS."""
        return self._certificate.exists()

    @property
    def url(self) -> str:
        """Its address for machines."""
        return f"{'https' if self.https else 'http'}://{SERVER}:{SERVER_PORT}"

    @property
    def _certificate(self) -> Path:
        return self.directory / "server.crt"

    @property
    def _thumbprint(self) -> Path:
        return self.directory / "thumbprint"

    def operator(self, *arguments: str) -> str:
        """Return the output of ``tang-attest ARGUMENTS``."""
        command = forked.command("--state", self.directory / "state", *arguments)
        result = forked.run(command, timeout=180, text=True, cwd=ROOT)
        assert result.returncode == 0, f"tang-attest {' '.join(arguments)}: {result.stdout}{result.stderr}"
        return str(result.stdout)

    def approve(self, device: str, *options: str) -> None:
        """Approve what *device* showed last, by its number: the boot that was refused before that one is not meant."""
        [newest] = json.loads(
            self.operator("observation", "list", "--device", device, "--limit", "1", "--json")
        )
        self.operator("approve", device, "--observation", str(newest["id"]), *options)

    def audit(self, device: str) -> list[dict[str, Any]]:
        """The audit records of *device*, newest first."""
        text = self.operator("audit", "--device", device, "--json")
        try:
            records = json.loads(text)
        except json.JSONDecodeError:
            records = [json.loads(line) for line in text.splitlines()]
        return list(records)

    def __enter__(self) -> Self:
        port_file = self.directory / "port"
        port_file.unlink(missing_ok=True)
        tls = []
        if self.https:
            key = self._certificate.with_suffix(".key")
            tls = ["--tls-certificate", str(self._certificate), "--tls-key", str(key)]
        with (self.directory / "server.log").open("ab") as log:
            address = ("--host", "127.0.0.1", "--port", str(self.port), "--port-file", port_file)
            state = self.directory / "state"
            command = forked.command("--state", state, "serve", *address, "--workers", "1", *tls)
            self._process = forked.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        deadline = time.monotonic() + 180
        while not (port_file.exists() and port_file.read_text().strip()):
            assert self._process.poll() is None, (self.directory / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        self.port = int(port_file.read_text())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        self._process = None

    def enroll(self, machine: Machine, name: str, image: Path, *, selection: str) -> None:
        """Bind *image* with the machine's TPM, as ``clevis luks bind`` on the machine itself would.

        The machine is not running: its TPM is driven from here, and its PCRs hold a made-up value.  So its first
        boot is refused, and the operator approves what the server saw.
        """
        terms = ("--name", name, "--record", "--selection", selection, "--allow-unverified-ek")
        token = self.operator("token", "create", *terms, "--json")
        with machine.tpm as tpm:
            tpm.run("tpm2", "pcrextend", f"0:sha256={'5a' * 32}")
            self.bind(machine, tpm, name, image, json.loads(token)["token"])

    def pin(self) -> dict[str, object]:
        """Return the configuration of the pin on a machine, without a name and a token."""
        pinned = {"spki": pin_of(self._certificate)} if self.https else {}
        return {"url": self.url, "thp": self._thumbprint.read_text().strip(), **pinned}

    def bind(
        self, machine: Machine, tpm: Swtpm, name: str, image: Path, token: str = "", *, sss: bool = False
    ) -> None:
        """``clevis luks bind`` with the machine's TPM, which is on; with *sss*, as the only pin of such a policy."""
        configuration = self.pin()
        # The machine reaches the first address, this host the second.
        url = str(configuration["url"])
        configuration["url"] = [url, url.replace(f"{SERVER}:{SERVER_PORT}", f"127.0.0.1:{self.port}")]
        configuration["name"] = name
        if token:
            configuration["token"] = token
        pin, policy = "attest", json.dumps(configuration)
        if sss:
            pin, policy = "sss", json.dumps({"t": 1, "pins": {"attest": [configuration]}})
        environment = {
            **tpm.environment,
            "PATH": f"{ROOT / 'clevis-pin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "CLEVIS_ATTEST_STATE_DIR": str(machine.directory / "enrollment"),
            "CLEVIS_ATTEST_RUN_DIR": str(machine.directory / "run"),
            "CLEVIS_ATTEST_CONNECT_TIMEOUT": "1",
            "no_proxy": "*",
        }
        clevis_bind(image, pin, policy, environment)

"""``make console-demo``: the console over a fleet of software machines in every state, until Ctrl-C.

    python -m tests.console.demo

Machines that wait at their prompts ask again every few seconds, so an approval opens them while you look.
Everything is in one directory, which is removed at the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.console.fleet.prompt import wait_at_prompt
from tests.console.fleet.states import Fleet, make_fleet
from tests.ports import free_port

#: Machines that wait at their prompts when the demonstration begins.
WAITING: Final = ("web-2", "backup-1", "vault-1", "kiosk-1", "kiosk-2", "kiosk-3")
_START_S: Final = 180.0


async def main() -> int:
    """Run the demonstration; return its exit code."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with tempfile.TemporaryDirectory(
        prefix="tang-attest-console-", dir=os.environ.get("XDG_RUNTIME_DIR")
    ) as work:
        print("Making a fleet of 13 software machines, with twelve days behind them.", flush=True)
        fleet = await make_fleet(Path(work, "state"), datetime.now(UTC))
        console = f"http://localhost:{free_port()}"
        environment = _environment(fleet, console)
        async with serving(environment, Path(work)) as machines_url:
            link = await run(environment, "operator", "add", "ada", "--role", "admin")
            print(_told(console, link.strip()), flush=True)
            async with asyncio.TaskGroup() as group:
                waiting = [
                    group.create_task(wait_at_prompt(machines_url, fleet.machines[name], _opened))
                    for name in WAITING
                ]
                await stopped.wait()
                for task in waiting:
                    task.cancel()
    print("\nStopped; nothing is left behind.")
    return 0


@asynccontextmanager
async def serving(environment: dict[str, str], work: Path) -> AsyncIterator[str]:
    """Start the server; yield its address for machines."""
    port_file = work / "port"
    log = work / "server.log"
    with log.open("wb") as errors:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tang_attest", "serve", "--host", "127.0.0.1", "--port", "0"),
            *("--port-file", str(port_file), "--workers", "1"),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            # Ctrl-C at a terminal goes to everybody in the group, and the server is stopped in its turn.
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(_START_S):
            while not port_file.exists():
                if server.returncode is not None:
                    raise RuntimeError(f"the server does not start:\n{log.read_text()}")
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


def _environment(fleet: Fleet, console: str) -> dict[str, str]:
    """Return the settings of the server and of commands beside it; nothing of this machine's own counts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TANG_ATTEST_")}
    return kept | {
        "TANG_ATTEST_CONFIG": os.devnull,
        "TANG_ATTEST_STATE": str(fleet.state),
        "TANG_ATTEST_CONSOLE_LISTEN": console.removeprefix("http://").replace("localhost", "127.0.0.1"),
        "TANG_ATTEST_CONSOLE_URL": console,
    }


async def run(environment: dict[str, str], *arguments: str) -> str:
    """Return the output of a command of ``tang-attest``."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tang_attest", *arguments),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    stdout, _ = await command.communicate()
    if command.returncode:
        raise RuntimeError(f"tang-attest {' '.join(arguments)} exits {command.returncode}")
    return stdout.decode()


def _told(console: str, link: str) -> str:
    port = console.rpartition(":")[2]
    return f"""
The console:   {console}
Your sign-in:  {link}

Open the second address in a browser on this machine: it registers a passkey for the operator 'ada', once.
From another machine, first: ssh -L {port}:localhost:{port} THIS-MACHINE

These machines wait at their prompts, and open when you approve them: {", ".join(WAITING)}.
Ctrl-C ends the demonstration and removes everything.
"""


def _opened(name: str) -> None:
    print(f"{datetime.now():%H:%M:%S}  {name} OPENED its disk.", flush=True)  # noqa: DTZ005 - for a person here


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

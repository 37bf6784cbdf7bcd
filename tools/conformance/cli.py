"""The command line of the kit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .client import binding, unlocking
from .client.played import listening
from .client.unlocking import Tested as TestedClient
from .primitives.http import Http
from .report import Duty, Result, Run, World, exit_code, print_end, print_json, print_line
from .server import run as server
from .server.cases import VECTORS
from .server.client import Device, Tested
from .tpm.structures import read_public

_ABOUT = """\
Test an implementation of the tang-attest protocol (docs/protocol.md) from outside.

Each line of the output is a duty: ok, FAIL, or - for one that was not tested, with the section of the document.
The exit status is 0 when every tested duty was kept, 1 when one was broken, and 2 when nothing could be tested.
"""

_SERVER = """\
Test the server at URL, as a client with a TPM in software.

The kit enrolls one machine with the first token, and a second one with the second token. It needs no TPM.
The tokens MUST allow an endorsement key without a certificate, and record the machine's state as its policy;
the selection SHOULD have PCR 15, the cap. Of this project's server:

    tang-attest token create --name conformance --record --force --allow-unverified-ek --selection sha256:0,2,4,7,15

The file has a line for each token: a device's name, a space, the token. Without --token-file they come on stdin.
A test server is the place for this: the kit sends some hundred requests, most of them bad, and leaves two devices.
"""

_CLIENT = """\
Test a client: the kit plays the server, good and bad, on a port of its own.

COMMAND reads a JWE of the disk's header on stdin and writes the plaintext, as 'clevis-decrypt-attest' does. Put -- before it.
It uses the TPM with the AK, of which the kit has to know the public half:

    tpm2 readpublic -c 0x81010002 -o ak.pub
    conformance client --ak-public ak.pub --ak 0x81010002 -- clevis-decrypt-attest

--bind names a command that enrolls and binds: a plaintext on stdin, a JWE on stdout. The kit puts {url}, {token}, {thp} and
{name} in:

    --bind "clevis-encrypt-attest '{\\"url\\":\\"{url}\\",\\"token\\":\\"{token}\\",\\"thp\\":\\"{thp}\\",\\"name\\":\\"{name}\\"}'"

--cap names the command that the initrd runs before it hands over; PCR 15 has to be zero before. A client that caps by
itself, before it hands the key on, gets --caps-itself.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conformance", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the results as JSON")
    common.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="only duties whose section or sentence has WORD; repeatable",
    )
    common.add_argument("--fail-fast", action="store_true", help="end at the first broken duty")
    tested = commands.add_parser(
        "server", help="test a server", description=_SERVER, parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    tested.add_argument(
        "url", metavar="URL", help="address of the server, with its endpoint's path if it has one"
    )
    tested.add_argument("--token-file", metavar="FILE", help="lines NAME TOKEN; - or no option reads stdin")
    tested.add_argument("--ca", metavar="FILE", help="for https: the CA of the server")
    tested.add_argument(
        "--patience",
        type=float,
        default=10,
        metavar="SECONDS",
        help="wait for a nonce to expire if it lives no longer (default: 10)",
    )
    tested.add_argument(
        "--vectors",
        type=Path,
        default=VECTORS,
        metavar="DIR",
        help="directory of requests.json and counters.json",
    )
    client = commands.add_parser(
        "client", help="test a client", description=_CLIENT, parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    client.add_argument(
        "--ak-public", type=Path, required=True, metavar="FILE", help="TPM2B_PUBLIC of the AK"
    )
    client.add_argument(
        "--ak", default="0x81010002", metavar="HANDLE", help="the AK's handle (default: 0x81010002)"
    )
    client.add_argument("--bind", default="", metavar="COMMAND", help="command that enrolls and binds")
    client.add_argument("--cap", default="", metavar="COMMAND", help="command that extends the cap")
    client.add_argument(
        "--cap-events", default="", metavar="FILE", help="file in which --cap keeps its texts"
    )
    client.add_argument("--caps-itself", action="store_true", help="COMMAND extends the cap itself")
    client.add_argument(
        "--timeout", type=float, default=90, metavar="SECONDS", help="for one run of a command (default: 90)"
    )
    client.add_argument(
        "words", nargs="+", metavar="COMMAND", help="the client that unlocks, and its arguments"
    )
    return parser


def _tokens(file: str | None) -> list[tuple[str, str]]:
    """Return names and tokens.  Raises ValueError, OSError."""
    text = sys.stdin.read() if file in {None, "-"} else Path(str(file)).read_text()
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or any(len(words) != 2 for words in lines):
        raise ValueError("each line of the tokens is a device's name, a space and a token")
    return [(name, token) for name, token in lines[:2]]


def _test_server(arguments: argparse.Namespace) -> tuple[Tested, Iterable[Duty[Tested]]]:
    http = Http(arguments.url, arguments.ca)
    devices = [Device(http, name, token) for name, token in _tokens(arguments.token_file)]
    sibling = devices[1] if len(devices) > 1 else None
    world = Tested(http, devices[0], sibling, patience=arguments.patience)
    return world, list(server.duties(arguments.vectors))


def _run(world: World, duties: Iterable[Duty[World]], arguments: argparse.Namespace) -> list[Result]:
    run = Run(world, tuple(arguments.only), arguments.fail_fast)
    if not arguments.json:
        run.tell = print_line
    return run.all(duties)


def _run_client(arguments: argparse.Namespace) -> list[Result]:
    """Play the server.  Raises OSError, ValueError, KeyError."""
    ak = read_public(arguments.ak_public.read_bytes())
    with listening() as played:
        world = TestedClient(
            played,
            arguments.words,
            ak,
            arguments.ak,
            arguments.timeout,
            bind=arguments.bind,
            cap=arguments.cap,
            cap_events=arguments.cap_events,
            caps_itself=arguments.caps_itself,
        )
        return _run(world, client_duties(), arguments)


def client_duties() -> list[Duty[TestedClient]]:
    """Return the duties of a client; the cap comes last, because it stays until the TPM is reset."""
    return [*binding.DUTIES, *unlocking.DUTIES]


def main(words: Sequence[str]) -> int:
    """Run the kit with the command line *words*; return its exit status."""
    arguments = _parser().parse_args(words)
    try:
        if arguments.command == "client":
            results = _run_client(arguments)
        else:
            results = _run(*_test_server(arguments), arguments)
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"conformance: {error}\n")
        return 2
    if arguments.json:
        print_json(arguments.command, results)
    else:
        print_end(results)
    return exit_code(results)

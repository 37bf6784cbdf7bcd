"""``tang-attest menu``: five choices, repeated until Exit, for a person or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tang_attest.cli import output
from tang_attest.cli.installation.init import make_state
from tang_attest.cli.invocation import run, settings
from tang_attest.cli.machines.device import read_ak
from tang_attest.cli.machines.verification import (
    DEFAULT_AK,
    PATIENCE_S,
    not_registered,
    rounds_of,
    say_round,
    tell,
    watch_rounds,
)
from tang_attest.config import DATABASE_NAME
from tang_attest.errors import Conflict, NotFound, TangAttestError, Unavailable
from tang_attest.files import read_file, writing
from tang_attest.keys.attestation import default_tcti, find_ak, make_ak
from tang_attest.ports.machines import Device, Reach
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.verification import check_reach

if TYPE_CHECKING:
    from tang_attest.protocol.tpm import AttestationKey
    from tang_attest.server.compose import Installation
    from tang_attest.service.rounds.verify import Round

PUBLIC_KEY: Final = Path("id_tpm.pub")
#: The longest line that is read as an answer, in bytes.
_MAX_LINE: Final = 65536
_MAX_ROUNDS: Final = 1_000_000


class _InputEnded(Exception):
    """The input ended within a question."""


class _WrongAnswer(Exception):
    """An answer that no question has; the text says which answers it has."""


@click.command()
@click.option("--init", "initialize", is_flag=True, help=f"First make a key in the TPM, and {PUBLIC_KEY}.")
@click.option(
    "--tcti", help="The TPM of the machines to register; by default $TPM2TOOLS_TCTI or this machine's."
)
def menu(initialize: bool, tcti: str | None) -> None:
    """Register, verify and remove machines by answering questions.

    Over a pipe, each line of stdin answers one question.  A machine whose TPM this machine reaches is
    registered for verification only: it has no exchange key, and what it runs at that time is what it shall
    run.

    With --init, the attestation key is made in the TPM, its public area is written to id_tpm.pub in the
    current directory, and the server's state is made if there is none.

    \b
    tang-attest menu --init
    tang-attest menu --init --tcti swtpm:host=127.0.0.1,port=2321
    """
    if tcti is not None:
        check_reach(tcti, DEFAULT_AK)
    session = _MenuSession(tcti)
    try:
        if initialize:
            session.initialize()
        session.run()
    except _InputEnded:
        click.echo("\nFAILURE: the input ended within a question")
        click.get_current_context().exit(1)


class _MenuSession:
    """One run of the menu; it knows the TPM that was named last."""

    def __init__(self, tcti: str | None) -> None:
        self._named, self._tcti = tcti is not None, tcti or default_tcti()
        self._choices: Sequence[tuple[str, Callable[[], None]]] = (
            ("Register instance", self._register),
            ("Verify instance once", _verify),
            ("Enforce continuous verification policy", _watch),
            ("Remove instance", _remove),
        )

    def initialize(self) -> None:
        """Make the attestation key, ``id_tpm.pub``, and the server's state unless it is there."""
        self._tcti = tcti = self._tcti or _ask("TCTI of the TPM")
        check_reach(tcti, DEFAULT_AK)
        public = make_ak(tcti)
        _write_public(public)
        current = settings()
        if current.database is None and not os.path.lexists(current.state / DATABASE_NAME):
            make_state(current)
            click.echo(f"SUCCESS: state made in {current.state}")
        click.echo(f"SUCCESS: the TPM is initialized, its public key is in {PUBLIC_KEY}")

    def run(self) -> None:
        """Ask for choices until Exit or the end of the input."""
        while True:
            for number, (title, _) in enumerate(self._choices, start=1):
                click.echo(f"{number}  {title}")
            click.echo(f"{len(self._choices) + 1}  Exit")
            try:
                answer = _ask("choice")
            except _InputEnded:
                click.echo("\nFAILURE: the input ended before Exit was chosen")
                return
            if answer == str(len(self._choices) + 1):
                return
            try:
                self._choose(answer)
            except _WrongAnswer as wrong:
                click.echo(f"FAILURE: {wrong}")

    def _choose(self, answer: str) -> None:
        numbers = [str(number + 1) for number in range(len(self._choices))]
        if answer not in numbers:
            raise _WrongAnswer(f"a choice is 1 to {len(self._choices) + 1}")
        self._choices[numbers.index(answer)][1]()

    def _register(self) -> None:
        name, path = _ask("instance"), _ask("file with its public key", str(PUBLIC_KEY))
        try:
            check_name(name)
            # Not "-", which is the standard input elsewhere and here has the answers.
            key = read_ak(Path.cwd() / path if path == "-" else Path(path))
            self._register_as(name, key, self._reach_of(key))
        except TangAttestError as problem:
            _fail(f"instance {name} not registered", problem)

    def _register_as(self, name: str, key: AttestationKey, reach: Reach | None) -> None:
        from tang_attest.server.compose import operator_name

        actor = f"operator:{operator_name()}"

        async def register(installation: Installation) -> tuple[Device, Sequence[str]]:
            device = await installation.devices.register(
                name, key, None, reach=reach, verified_only=reach is not None
            )
            if reach is not None:
                try:
                    await rounds_of(installation).record(name, None, None, PATIENCE_S, actor)
                except TangAttestError:
                    await installation.devices.remove(name)
                    raise
            return device, await installation.devices.sharers(device)

        device, sharers = run(register)
        click.echo(f"SUCCESS: instance {name} registered")
        if sharers:
            click.echo(
                f"note: {name} has the same key as {', '.join(sharers)}: one TPM answers for all of them"
            )
        if device.kids:
            output.hint(f"put kid={device.kids[0]} into /etc/clevis-attest/agent.conf there")

    def _reach_of(self, key: AttestationKey) -> Reach | None:
        """The key in the TPM that is known, or in that of another TCTI.  Raises ``tpm-unreachable``."""
        if self._tcti is not None and (reach := self._derive(self._tcti, key)) is not None:
            return reach
        tcti = _ask("TCTI of its TPM, empty for a machine with an agent")
        if not tcti:
            return None
        check_reach(tcti, DEFAULT_AK)
        if (handle := find_ak(tcti, key.public)) is None:
            raise Unavailable("tpm-unreachable", f"The TPM at {tcti} has no such key at a persistent handle.")
        self._named, self._tcti = True, tcti
        return Reach(tcti, handle)

    def _derive(self, tcti: str, key: AttestationKey) -> Reach | None:
        check_reach(tcti, DEFAULT_AK)
        try:
            handle = find_ak(tcti, key.public)
        except Unavailable:
            if self._named:
                raise
            return None
        return None if handle is None else Reach(tcti, handle)


def _write_public(public: bytes) -> None:
    """Write ``id_tpm.pub``, unless it is there.  Raises ``file-exists`` when it holds another key, ``file-unreadable``."""
    try:
        with PUBLIC_KEY.open("xb") as file, writing(PUBLIC_KEY):
            file.write(public)
            file.flush()
    except FileExistsError:
        if read_file(PUBLIC_KEY, _MAX_LINE) != public:
            sentence = f"File {PUBLIC_KEY} holds another key; move it away."
            raise Conflict("file-exists", sentence) from None
    except OSError as error:
        sentence = f"File {PUBLIC_KEY} cannot be made: {error.strerror}."
        raise NotFound("file-unreadable", sentence) from None


def _fail(said: str, problem: TangAttestError) -> None:
    """One line about a failed choice on stdout, and the hint on stderr."""
    sentence = output.decapitalize(problem.sentence.rstrip("."))
    click.echo(f"FAILURE: {output.printable(f'{said}: {sentence} ({problem.code})')}")
    output.hint(output.decapitalize(problem.action.rstrip(".")))


def _ask(question: str, default: str = "") -> str:
    """One line, without the spaces around it.  Raises :class:`_InputEnded`."""
    click.echo(f"{question}{f' [{default}]' if default else ''}: ", nl=False)
    line = b"" if sys.stdin is None else sys.stdin.buffer.readline(_MAX_LINE)
    if not line:
        raise _InputEnded
    if not sys.stdin.isatty():
        click.echo()  # a line that is typed at a terminal ends itself
    return line.decode(errors="replace").strip() or default


def _verify() -> None:
    name = _ask("instance")

    async def once(installation: Installation) -> Round | None:
        try:
            return await rounds_of(installation).once(name, None, PATIENCE_S)
        except NotFound as missing:
            not_registered(name, missing)
            return None

    try:
        tell(name, run(once))
    except TangAttestError as problem:
        _fail(f"instance {name} not verified", problem)


def _watch() -> None:
    name = _ask("instance")
    asked = _ask("rounds", "3"), _ask("seconds between rounds", "10")
    count, delay = _number(asked[0], "rounds"), _number(asked[1], "seconds between rounds")
    if count < 1 or count != int(count):
        raise _WrongAnswer(f"rounds is a whole number from 1 to {_MAX_ROUNDS}")
    try:
        run(
            lambda state: watch_rounds(
                rounds_of(state), name, int(count), delay, None, PATIENCE_S, say_round, _say_end
            )
        )
    except TangAttestError as problem:
        _fail(f"instance {name} not verified", problem)


def _number(answer: str, question: str) -> float:
    try:
        number = float(answer)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _MAX_ROUNDS:
        raise _WrongAnswer(f"{question} is a number from 0 to {_MAX_ROUNDS}")
    return number


def _say_end(name: str, verified: int, count: int) -> None:
    word = "SUCCESS" if verified == count else "FAILURE"
    click.echo(f"{word}: instance {name} verified in {verified} of {count} rounds")


def _remove() -> None:
    name = _ask("instance")
    try:
        device = run(lambda state: state.store.devices.get_device(name))
        if device.kids and _ask(f"destroy the exchange keys of {name}, for good?", "no") not in ("yes", "y"):
            click.echo("nothing was removed")
            return
        run(lambda state: state.devices.remove(name))
        click.echo(f"SUCCESS: Instance {name} removed")
    except NotFound:
        click.echo(f"FAILURE: instance {output.printable(name)} not registered")
    except TangAttestError as problem:
        _fail(f"instance {name} not removed", problem)

"""``tang-attest notify``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import settings
from tang_attest.errors import Malformed, NotFound, TangAttestError

if TYPE_CHECKING:
    from tang_attest.service.notifications.deliver import Receiver


@click.group()
def notify() -> None:
    """Notifications: the receivers, and a test of them."""


@notify.command("list")
@output.json_option
def list_receivers(as_json: bool) -> None:
    """List the receivers of the setting notify, without their secrets."""
    found: list[dict[str, Any]] = [
        {"name": name, "kind": each.kind, "events": list(each.events), "names": each.names}
        for name, each in settings().notify.items()
    ]
    if as_json:
        output.print_json(found)
        return
    output.table(
        ("name", "kind", "names", "events"),
        [(each["name"], each["kind"], each["names"], ", ".join(each["events"])) for each in found],
        empty="the setting notify names no receiver",
        prose=("events",),
    )


@notify.command("test")
@click.option(
    "--only", "chosen", metavar="NAME", multiple=True, help="Only this receiver; repeat it for more."
)
@output.json_option
@click.pass_context
def test(ctx: click.Context, chosen: tuple[str, ...], as_json: bool) -> None:
    """Send a test to each receiver, and say if it was delivered.

    Exit with 0 when each receiver took it, and with 1 otherwise.

    \b
    tang-attest notify test
    tang-attest notify test --only phone
    """
    from tang_attest.server.compose import SystemClock
    from tang_attest.server.notify.receivers import console_address, receivers, server_name
    from tang_attest.service.notifications.message import test_message

    current = settings()
    known: Mapping[str, Receiver] = receivers(current)
    if not known:
        raise Malformed("setting-invalid", "The setting notify names no receiver.")
    for name in chosen:
        if name not in known:
            raise NotFound("not-found", f"The setting notify names no receiver '{name}'.")
    message = test_message(SystemClock().now(), server_name(), console_address(current))
    wanted = {name: receiver for name, receiver in known.items() if not chosen or name in chosen}
    problems = asyncio.run(_send(wanted, message))
    if as_json:
        output.print_json(
            [
                {
                    "receiver": name,
                    "delivered": problem is None,
                    "problem": None if problem is None else problem.sentence,
                }
                for name, problem in problems.items()
            ]
        )
    else:
        for name, problem in problems.items():
            word = (
                "delivered"
                if problem is None
                else f"not delivered: {output.decapitalize(problem.sentence.rstrip('.'))} ({problem.code})"
            )
            output.say(f"{name}: {word}")
        failed = [name for name, problem in problems.items() if problem is not None]
        if failed:
            output.hint(
                f"correct the receiver in the setting notify, then run 'tang-attest notify test --only {failed[0]}'"
            )
    ctx.exit(1 if any(problems.values()) else 0)


async def _send(
    wanted: Mapping[str, Receiver], message: Mapping[str, object]
) -> dict[str, TangAttestError | None]:
    from tang_attest.service.notifications.deliver import attempt

    results = await asyncio.gather(*(attempt(receiver, message) for receiver in wanted.values()))
    return dict(zip(wanted, results, strict=True))

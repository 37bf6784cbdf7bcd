"""``tang-attest operator``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run, settings
from tang_attest.ports.operators import OperatorRole

if TYPE_CHECKING:
    from tang_attest.server.compose import Installation
    from tang_attest.service.operators.accounts import NewLink, OperatorEntry

_role_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--role",
    type=click.Choice([role.value for role in OperatorRole]),
    required=True,
    help="Rights in the console; each has those of the ones before it.",
)


@click.group()
def operator() -> None:
    """Operators of the console, who sign in with passkeys."""


@operator.command()
@click.argument("name")
@_role_option
@output.json_option
def add(name: str, role: str, as_json: bool) -> None:
    """Add an operator and print the link that registers their passkey.

    The link is good once, for 15 minutes, and is shown this once.  NAME is the actor in the audit record, and is
    never used again.

    \b
    viewer    see machines, policies, observations, the audit record
    approver  approve and dismiss boots, allow unlocks, suspend and resume machines
    admin     remove machines, create tokens, change policies

    \b
    tang-attest operator add alice --role approver
    """
    _link(name, lambda state: state.operators.add(name, OperatorRole(role)), as_json)


@operator.command("list")
@output.wide_option
@output.json_option
def list_operators(wide: bool, as_json: bool) -> None:
    """List operators, their passkeys and their sessions."""

    async def load(installation: Installation) -> list[OperatorEntry]:
        return list(await installation.operators.list_operators())

    found = run(load)
    if as_json:
        output.print_json([_as_json(each) for each in found])
        return
    output.table(
        ("name", "role", "passkeys", "sessions", "created", "by", "link until"),
        [
            (o.name, o.role.value, o.passkeys, o.sessions, o.created_at, o.created_by, o.link_expires_at)
            for o in found
        ],
        empty="no operators",
        extra=("created", "by"),
        wide=wide,
    )


@operator.command()
@click.argument("name")
@output.json_option
def reset(name: str, as_json: bool) -> None:
    """Print a new link, after a passkey was lost.

    The operator's passkeys and links are revoked, and their sessions end at once.
    """
    _link(name, lambda state: state.operators.reset(name), as_json)


@operator.command()
@click.argument("name")
@_role_option
@output.json_option
def role(name: str, role: str, as_json: bool) -> None:
    """Give an operator another role.

    It holds in their open sessions, too.
    """
    run(lambda state: state.operators.set_role(name, OperatorRole(role)))
    output.done(as_json, f"operator {name} is {role} now", {"name": name, "role": role})


@operator.command("sign-out")
@click.argument("name")
@output.json_option
def sign_out(name: str, as_json: bool) -> None:
    """End the sessions of an operator.

    Their passkey can sign in again.
    """
    ended = run(lambda state: state.operators.sign_out(name))
    sessions = "1 session of" if ended == 1 else f"{ended} sessions of"
    output.done(as_json, f"{sessions} operator {name} ended", {"name": name, "sessions": ended})


@operator.command()
@click.argument("name")
@output.json_option
def remove(name: str, as_json: bool) -> None:
    """Remove an operator for good.

    Their passkeys are revoked, and their sessions end.  The records of their acts can still be verified.
    """
    run(lambda state: state.operators.remove(name))
    output.done(as_json, f"operator {name} is removed", {"name": name})


def _link(name: str, make: Callable[[Installation], Awaitable[NewLink]], as_json: bool) -> None:
    """Print the link that *make* makes; a link that cannot be printed is not made."""
    from tang_attest.server.console.services import console_address

    address = console_address(settings())
    made = run(make)
    link = address.link(made.token)
    if as_json:
        output.print_json({"name": name, "link": link, "expires_at": made.expires_at})
        return
    click.echo(link)
    output.say(f"good once, until {output.local(made.expires_at)}; {name} opens it and registers a passkey")


def _as_json(each: OperatorEntry) -> dict[str, object]:
    return {
        "name": each.name,
        "role": each.role.value,
        "passkeys": each.passkeys,
        "sessions": each.sessions,
        "created_at": each.created_at,
        "created_by": each.created_by,
        "link_expires_at": each.link_expires_at,
    }

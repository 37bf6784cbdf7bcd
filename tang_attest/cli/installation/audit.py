"""``tang-attest audit``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.progress import shown
from tang_attest.cli.types import Head
from tang_attest.errors import Refused
from tang_attest.ports.audit import AuditEntry
from tang_attest.server.checkup import check_record
from tang_attest.server.compose import Installation
from tang_attest.service.audit.check import AuditCheck


def _list_options(command: Any) -> Any:
    """The options of ``audit list``, which ``audit`` alone has too."""
    limit = click.option(
        "--limit",
        type=click.IntRange(1, 100_000),
        default=50,
        show_default=True,
        help="How many, newest first.",
    )
    device = click.option("--device", help="Only of this device.")
    return device(limit(output.wide_option(output.json_option(command))))


@click.group(invoke_without_command=True)
@_list_options
@click.pass_context
def audit(ctx: click.Context, device: str | None, limit: int, wide: bool, as_json: bool) -> None:
    """The audit record: decisions and changes.

    Without a command, list them.

    \b
    tang-attest audit --device pi-b
    tang-attest audit verify
    """
    if ctx.invoked_subcommand is None:
        _list(device, limit, wide, as_json)
    elif any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ctx.params):
        raise click.UsageError(f"options of 'audit {ctx.invoked_subcommand}' come after it", ctx)


@audit.command("list")
@_list_options
def list_entries(device: str | None, limit: int, wide: bool, as_json: bool) -> None:
    """List decisions and changes, newest first.

    Each entry says who, when, about which device, and why.
    """
    _list(device, limit, wide, as_json)


def _list(device: str | None, limit: int, wide: bool, as_json: bool) -> None:
    async def load(installation: Installation) -> list[tuple[int, AuditEntry]]:
        return list(await installation.store.audit.list_audit(device, limit))

    rows = run(load)
    if as_json:
        output.print_json([_as_json(number, entry) for number, entry in rows])
        return
    output.table(
        ("no", "when", "who", "event", "verdict", "code", "machine", "from", "pcrs"),
        [(n, e.at, e.actor, e.event, e.verdict, e.code, e.device, e.address, _pcrs(e)) for n, e in rows],
        empty="nothing is recorded" if device is None else f"nothing is recorded of {device}",
        extra=("no", "from", "pcrs"),
        wide=wide,
    )


def _pcrs(entry: AuditEntry) -> str | None:
    pcrs = entry.details.get("pcrs")
    return ", ".join(map(str, pcrs)) if isinstance(pcrs, list) else None


def _as_json(number: int, entry: AuditEntry) -> dict[str, object]:
    return {
        "no": number,
        "at": entry.at,
        "event": entry.event,
        "actor": entry.actor,
        "verdict": entry.verdict,
        "code": entry.code,
        "device": entry.device,
        "kid": entry.kid,
        "address": entry.address,
        "request_id": entry.request_id,
        "details": dict(entry.details),
    }


@audit.command()
@click.option(
    "--expect",
    type=Head(),
    metavar="SEQ:HASH",
    help="A head that was noted before: it has to be in the chain. The server's log has one a minute.",
)
@output.json_option
def verify(expect: tuple[int, bytes] | None, as_json: bool) -> None:
    """Verify that no row was changed since it was sealed.

    A row that was added, removed or moved is found, too.  The same holds for the rows that decide: devices,
    policies, states, tokens, keys.  Each has a seal of its own, and the record says how new each has to be.

    A running server seals new rows each second.  When all is well, the head of the chain is printed,
    SEQ:HASH: keep it elsewhere, and give it to --expect later.  Only that finds a record that was cut at its
    end, or made anew with the key-encryption key.  The exit code is 1 when anything is wrong.

    \b
    tang-attest audit verify
    tang-attest audit verify --expect 812:5f0c...
    """

    async def work(installation: Installation) -> AuditCheck:
        async with shown("checking") as progress:
            return await check_record(installation, progress, expect)

    check = run(work)
    if as_json:
        output.print_json(_check_as_json(check))
    if check.reasons:
        if check.bad > len(check.reasons):
            output.say(f"{check.bad} findings; the first {len(check.reasons)} are named")
        raise Refused.because(*check.reasons)
    if not as_json:
        output.say(_verdict(check))
        if check.head is not None:
            click.echo(check.head.head)


def _verdict(check: AuditCheck) -> str:
    waiting = f"{check.unsealed} newer rows are not sealed yet"
    if check.first is None or check.head is None:
        return f"nothing is sealed; {waiting}"
    since = output.local(check.first.sealed_at)
    return f"{check.rows} rows under {check.seals} seals are as they were, the first sealed on {since}; {waiting}"


def _check_as_json(check: AuditCheck) -> dict[str, object]:
    return {
        "head": asdict(check.head) if check.head is not None else None,
        "first": asdict(check.first) if check.first is not None else None,
        "seals": check.seals,
        "rows": check.rows,
        "unsealed": check.unsealed,
        "unsealed_since": check.oldest,
        "findings": check.bad,
        "named": [reason.as_json() for reason in check.reasons],
    }

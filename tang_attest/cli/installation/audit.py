"""``tang-attest audit``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tang_attest.cli import output
from tang_attest.cli.invocation import at_terminal, run, settings
from tang_attest.cli.progress import shown
from tang_attest.cli.types import MOMENT, Head, Number
from tang_attest.errors import Reason, Refused
from tang_attest.ports.audit import Archive, AuditEntry, AuditSearch
from tang_attest.service.audit.table import COLUMNS

if TYPE_CHECKING:
    from tang_attest.server.audit.archiving import Archived
    from tang_attest.server.compose import Installation
    from tang_attest.service.audit.check import AuditCheck


def _list_options(command: Any) -> Any:
    """The options of ``audit list``, which ``audit`` alone has too."""
    options = (
        click.option(
            "--since", type=MOMENT, help="Only entries of this time or later; a duration is before now."
        ),
        click.option("--until", type=MOMENT, help="Only entries of before this time."),
        click.option("--device", help="Only of this device, under every name that it had."),
        click.option(
            "--event", "events", multiple=True, help="Only this event, or its first word; repeat it for more."
        ),
        click.option("--code", "codes", multiple=True, help="Only with this code; repeat it for more."),
        click.option(
            "--who",
            "actors",
            multiple=True,
            help="Only of this actor, such as operator:alice or alice; repeat it for more.",
        ),
        click.option(
            "--before",
            type=Number(),
            metavar="NO",
            help="Only entries before this number: the next page.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(1, 100_000),
            default=50,
            show_default=True,
            help="How many, newest first.",
        ),
        click.option("--csv", "as_csv", is_flag=True, help="CSV on stdout (RFC 4180), with times in UTC."),
        output.wide_option,
        output.json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


# click before 8.5 does not say that the command may be left out.
@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND] [ARGS]...")
@_list_options
@click.pass_context
def audit(ctx: click.Context, /, **options: Any) -> None:
    """The audit record: decisions and changes.

    Without a command, list them.

    \b
    tang-attest audit --device pi-b
    tang-attest audit verify
    """
    if ctx.invoked_subcommand is None:
        _list(**options)
    elif any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ctx.params):
        raise click.UsageError(f"options of 'audit {ctx.invoked_subcommand}' come after it", ctx)


@audit.command("list")
@_list_options
def list_entries(**options: Any) -> None:
    """List decisions and changes, newest first.

    Each entry says who, when, about which device, and why.  An entry has to meet every option; an option that is
    repeated is met by any of its values.  A time is ISO 8601, such as 2026-11-27T10:20:00+01:00, with the zone of
    this machine if it names none; or a duration before now, such as 2d.

    In CSV, a value that a spreadsheet would take for a formula has ' in front.

    \b
    tang-attest audit list --since 2d --code pcr-mismatch
    tang-attest audit list --who alice --event token --event 'device remove'
    tang-attest audit list --since 2026-11-01 --until 2026-12-01 --limit 100000 --csv > november.csv
    """
    _list(**options)


def _list(
    *,
    since: datetime | None,
    until: datetime | None,
    device: str | None,
    events: tuple[str, ...],
    codes: tuple[str, ...],
    actors: tuple[str, ...],
    before: int | None,
    limit: int,
    as_csv: bool,
    wide: bool,
    as_json: bool,
) -> None:
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since is not before --until")
    search = AuditSearch(since=since, until=until, codes=codes, events=events, actors=actors)

    async def load(installation: Installation) -> tuple[list[tuple[int, AuditEntry]], Archive | None]:
        found = list(await installation.store.audit.list_audit(device, limit + 1, before, search))
        archives = await installation.store.audit.list_archives()
        return found, archives[-1] if archives else None

    found, archived = run(load)
    rows = found[:limit]
    if as_json:
        output.print_json([_as_json(number, entry) for number, entry in rows])
    elif as_csv:
        output.print_csv(COLUMNS, [tuple(_as_json(number, entry).values()) for number, entry in rows])
    else:
        searched = (search, before) != (AuditSearch(), None)
        output.table(
            ("no", "when", "who", "event", "verdict", "code", "machine", "from", "pcrs"),
            [(n, e.at, e.actor, e.event, e.verdict, e.code, e.device, e.address, _pcrs(e)) for n, e in rows],
            empty=_nothing(device, searched=searched),
            extra=("no", "from", "pcrs"),
            wide=wide,
        )
    if len(found) <= limit and archived is not None:
        output.hint(
            f"entries up to {archived.head.last_id} are in archives, the newest of them {archived.file}"
        )
    if len(found) > limit:
        output.hint(f"older ones follow with --before {rows[-1][0]}")


def _nothing(device: str | None, *, searched: bool) -> str:
    if searched:
        return "no entry meets that"
    return "nothing is recorded" if device is None else f"nothing is recorded of {device}"


def _pcrs(entry: AuditEntry) -> str | None:
    pcrs = entry.details.get("pcrs")
    return ", ".join(map(str, pcrs)) if isinstance(pcrs, list) else None


def _as_json(number: int, entry: AuditEntry) -> dict[str, object]:
    return {"no": number, **entry.members()}


@audit.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--before", type=MOMENT, required=True, help="Move what was sealed before this time, such as 90d."
)
@output.json_option
def archive(file: Path, before: datetime, as_json: bool) -> None:
    """Move old sealed entries to FILE.

    So the record need not grow for ever.  FILE is new, compressed, of mode 0600, and holds the seals too: 'audit verify --archive FILE' checks it, with the
    record or alone.  It is on the disk and was read again before an entry is deleted.  The chain goes on after it.
    After an interruption, run the same command again.

    Keep FILE, and the kek of its time: both are needed to check it.

    \b
    tang-attest audit archive --before 90d /backup/audit-$(date +%F).gz
    """
    from tang_attest.server.audit import archiving

    async def work() -> Archived:
        async with shown("archiving") as progress:
            return await archiving.archive(settings(), file, before, at_terminal(), progress)

    done = asyncio.run(work())
    result = {"file": str(file), "resumed": done.resumed, "archive": _archive_as_json(done.archive)}
    if done.archive is None:
        output.done(as_json, f"nothing was sealed before {output.local(before)}; {file} was not made", result)
        return
    made = done.archive
    output.done(
        as_json,
        f"{made.rows} entries under {made.head.seq - made.first_seq + 1} seals, up to number {made.head.last_id},"
        f" are in {file}, and no longer in the database",
        result,
    )
    output.hint("keep it with the kek of now; the head of the record goes on from it")


def _archive_as_json(made: Archive | None) -> dict[str, object] | None:
    if made is None:
        return None
    return {
        "file": made.file,
        "sha256": made.sha256,
        "first_seal": made.first_seq,
        "head": made.head.head,
        "first": made.first_id,
        "last": made.head.last_id,
        "rows": made.rows,
        "archived_at": made.archived_at,
        "archived_by": made.archived_by,
    }


@audit.command()
@click.option(
    "--archive",
    "archives",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Check this archive too, and that the record goes on after it; repeat it for more.",
)
@click.option(
    "--kek",
    "keks",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A key-encryption key of before, for archives of its time; repeat it for more.",
)
@click.option("--offline", is_flag=True, help="Check the archives alone: no database is opened.")
@click.option(
    "--expect",
    type=Head(),
    metavar="SEQ:HASH",
    help="A head that was noted before: it has to be in the chain. The server's log has one a minute.",
)
@output.json_option
def verify(
    archives: tuple[Path, ...],
    keks: tuple[Path, ...],
    offline: bool,
    expect: tuple[int, bytes] | None,
    as_json: bool,
) -> None:
    """Verify that no row was changed since it was sealed.

    A row that was added, removed or moved is found, too.  Signatures of console operators are checked with
    their passkeys: one that is forged, altered or used again is named.  The same holds for the rows that decide: devices,
    policies, states, tokens, keys.  Each has a seal of its own, and the record says how new each has to be.

    A running server seals new rows each second.  When all is well, the head of the chain is printed,
    SEQ:HASH: keep it elsewhere, and give it to --expect later.  Only that finds a record that was cut at its
    end, or made anew with the key-encryption key.  The exit code is 1 when anything is wrong.

    \b
    tang-attest audit verify
    tang-attest audit verify --expect 812:5f0c...
    tang-attest audit verify --archive audit-2026.gz --kek kek.old-2026-12-01
    """
    from tang_attest.server.checkup import check_record

    if offline and not archives:
        raise click.UsageError("--offline needs --archive FILE")
    if offline:
        _verify_alone(archives, keks, expect, as_json)
        return

    async def work(installation: Installation) -> AuditCheck:
        async with shown("checking") as progress:
            return await check_record(installation, progress, expect, archives, keks)

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
    before = f"; those up to number {check.archived.last_id} are archived" if check.archived else ""
    signed = f"; {check.signed} are signed by operators of the console" if check.signed else ""
    return f"{check.rows} rows under {check.seals} seals are as they were, the first sealed on {since}{before}; {waiting}{signed}"


def _verify_alone(
    archives: tuple[Path, ...], keks: tuple[Path, ...], expect: tuple[int, bytes] | None, as_json: bool
) -> None:
    """Check archives without the record that they are from."""
    from tang_attest.server.audit import archiving

    found, reasons = archiving.check_archives(
        settings().state, archives, keks, lambda _done, _total: None, expect
    )
    if expect is not None and not archiving.met(found, expect):
        reasons.append(Reason("audit-cut", f"Seal {expect[0]} with that hash is in none of the archives."))
    if as_json:
        stretches = [
            {
                "previous": each.previous or None,
                "head": each.head.head,
                "seals": each.seals,
                "rows": each.rows,
            }
            for each in found
        ]
        output.print_json({"archives": stretches, "named": [reason.as_json() for reason in reasons]})
    if reasons:
        raise Refused.because(*reasons)
    if not as_json:
        rows, seals = sum(each.rows for each in found), sum(each.seals for each in found)
        output.say(f"{rows} rows under {seals} seals are as they were, in {len(found)} archives")
        click.echo(found[-1].head.head)


def _check_as_json(check: AuditCheck) -> dict[str, object]:
    return {
        "archives": [_archive_as_json(each) for each in check.archives],
        "head": asdict(check.head) if check.head is not None else None,
        "first": asdict(check.first) if check.first is not None else None,
        "seals": check.seals,
        "rows": check.rows,
        "unsealed": check.unsealed,
        "unsealed_since": check.oldest,
        "signed": check.signed,
        "findings": check.bad,
        "named": [reason.as_json() for reason in check.reasons],
    }

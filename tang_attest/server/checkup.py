"""The examination of an installation, for ``doctor`` and ``audit verify``; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tang_attest.config import Settings
from tang_attest.doctor.addresses import look_at_addresses
from tang_attest.doctor.finding import Finding, Severity, failure, problem, well
from tang_attest.doctor.host import look_at_host
from tang_attest.doctor.ownership import look_at_owners
from tang_attest.doctor.registry import look_at_database, look_at_records, look_at_rows
from tang_attest.doctor.server_tpm import look_at_server_tpm
from tang_attest.errors import ACTIONS, Reason, TangAttestError, Unavailable
from tang_attest.keys.secret import ServerSecret, load_secret
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.protocol.audit_chain import KEY_LABEL as AUDIT_LABEL
from tang_attest.server.audit.archiving import check_archives, compare, met
from tang_attest.server.audit.signatures import signature_check
from tang_attest.server.certificates import certificate_ends
from tang_attest.server.compose import Installation, World, composed, opened
from tang_attest.server.notify.receivers import check_receivers
from tang_attest.server.serve import addresses, check_settings
from tang_attest.service.audit.check import AuditCheck, check_audit
from tang_attest.service.machines.grading import graded
from tang_attest.service.machines.overview import Notice, in_order, whole_overview
from tang_attest.store import KEY_LABEL, check_rows, open_store
from tang_attest.store.database.authentic import SEALED


async def examine(settings: Settings, world: World, file: Path | None = None) -> list[Finding]:
    """Return the findings about the host, the database, its rows, and the server's TPM.

    *file* is that of the settings.
    """
    findings = [
        *look_at_host(settings, world.clock.now()),
        *look_at_owners(settings, file),
        *_look_at_receivers(settings),
        *await look_at_database(settings.database_url),
    ]
    try:
        secret = load_secret(settings.state)
    except TangAttestError:
        return findings  # it was said already, and without it nothing opens
    if findings[-1].level is Severity.OK:
        findings += await _look_inside(settings, secret, world)
    return findings


def _look_at_receivers(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for each receiver of notifications that could not get a message; nothing is sent."""
    problems = list(check_receivers(settings))
    yield from (failure("notifications", problem) for problem in problems)
    if settings.notify and not problems:
        names = ", ".join(settings.notify)
        yield well("notifications", f"{names}: nothing is missing; 'tang-attest notify test' sends a test")


async def _look_inside(settings: Settings, secret: ServerSecret, world: World) -> list[Finding]:
    store = await open_store(settings.database_url, secret.derive(KEY_LABEL))
    try:
        async with composed(store, secret, settings, world) as installation:
            return [
                *await look_at_rows(settings.database_url, secret.derive(KEY_LABEL)),
                *await _look_at_records(installation),
                await look_at_server_tpm(store, installation.private_keys),
            ]
    finally:
        await store.close()


async def _look_at_records(installation: Installation) -> list[Finding]:
    now = installation.world.clock.now()
    store = installation.store
    try:
        found = await look_at_records(store, installation.private_keys, now, graded)
    except TangAttestError as error:
        return [failure("records", error)]
    met = {name for name, count in store.tampered().items() if count}
    if met - set(SEALED):  # those of sealed tables have a finding already
        found += [problem("rows", each, ACTIONS["registry-tampered"]) for each in store.foreign_rows()]
    return found


@dataclass(frozen=True, slots=True)
class StartCheck:
    """Problems that a start would have; thumbprints of the signing keys, and *notes* on what already runs."""

    problems: Sequence[TangAttestError]
    thumbprints: Sequence[str]
    notes: Sequence[str]


async def check_start(settings: Settings, world: World) -> StartCheck:
    """Open all that ``serve`` opens, bind its addresses, and serve nothing."""
    problems = list(check_settings(settings))
    thumbprints: list[str] = []
    try:
        async with opened(settings, world) as installation:
            thumbprints = await _check_keys(installation)
    except TangAttestError as error:
        # A drop-in tangd needs no installation of ours.
        if settings.tang_dir is None or error.code != "state-missing":
            problems.append(error)
    own = [*thumbprints, *_thumbprints_of_directory(settings.tang_dir)]
    taken, notes = look_at_addresses(settings, addresses(settings), own)
    return StartCheck([*taken, *problems], thumbprints, notes)


def _thumbprints_of_directory(path: Path | None) -> Sequence[str]:
    """Return the thumbprints of a Tang directory; an empty one gets its keys at the start, and not now."""
    if path is None or not any(path.glob("*.jwk")):
        return ()
    try:
        return TangDirectory(path).current().thumbprints
    except TangAttestError:
        return ()


async def _check_keys(installation: Installation) -> list[str]:
    for key in await installation.store.keys.server_keys():
        if key.use == "sign":
            installation.private_keys.open_signer(key)
        else:
            installation.private_keys.open_exchange(key)
    thumbprints = list((await installation.served_keys().usable()).thumbprints)
    if not thumbprints and installation.settings.tang_dir is None:
        raise Unavailable("state-missing", "There is no signing key.")
    return thumbprints


async def attention(installation: Installation) -> tuple[int, list[Notice]]:
    """Return the number of machines, and the notices of the screen ``status``."""
    now = installation.world.clock.now()
    machines, notices = await whole_overview(installation.store, now)
    return machines, in_order([*notices, *certificate_ends(installation.settings, now)])


async def check_record(
    installation: Installation,
    progress: Callable[[int, int], None],
    expected: tuple[int, bytes] | None,
    archives: Sequence[Path] = (),
    keks: Sequence[Path] = (),
) -> AuditCheck:
    """Check the audit record against its seals and *expected* (see :func:`check_audit`), and every row's own
    seal; and the files *archives*, before which it goes on (see :func:`check_archives`).
    """
    store, secret = installation.store, installation.secret
    state = installation.settings.state
    make = await signature_check(store)
    archived = make()
    stretches, findings = (
        check_archives(state, archives, keks, progress, expected, signatures=archived)
        if archives
        else ([], [])
    )
    if expected is not None and met(stretches, expected):
        expected = None
    check = await check_audit(
        store.audit,
        secret.derive(AUDIT_LABEL),
        installation.world.clock,
        progress,
        expected,
        signatures=lambda: make(archived, [each.head.head for each in stretches]),
    )
    for reason in (*findings, *compare(stretches, check.archives)):
        check.add(reason)
    rows = await check_rows(installation.settings.database_url, secret.derive(KEY_LABEL))
    for found in rows.findings:
        check.add(Reason("registry-tampered", found.sentence, (("table", found.table), ("row", found.key))))
    return check

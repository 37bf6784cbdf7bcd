"""``tang-attest serve``."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog

from tang_attest import log
from tang_attest.cli import output
from tang_attest.cli.state import Installation, SystemClock, SystemRandomness, opened
from tang_attest.config import Settings, load_settings
from tang_attest.daemon.files import OpenFiles, allow_open_files
from tang_attest.daemon.notify import Notifier
from tang_attest.daemon.sockets import bind, inherited, port_of
from tang_attest.daemon.supervisor import Supervisor, Work, WorkerSlot
from tang_attest.errors import Malformed, NotFound, TangAttestError
from tang_attest.keys.secret import load_secret
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.server.chores import again_and_again
from tang_attest.server.observing import (
    bind_metrics,
    count_only,
    kept_refusals,
    make_limiter,
    observe,
    show_metrics,
)
from tang_attest.server.sealing import sealing
from tang_attest.server.watching import watch
from tang_attest.service.admin.administration import Administration
from tang_attest.service.audit.refusals import Refusals
from tang_attest.service.enrollment.enroll import Enroll
from tang_attest.service.policies.announce import Announce
from tang_attest.service.rounds.agents import Agents
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.tang.recent_keys import RecentKeys
from tang_attest.service.tang.server_keys import DirectoryFirst, ServerKeys
from tang_attest.service.unlock.unlock import Unlock
from tang_attest.service.upkeep.forgetting import Forgetting
from tang_attest.store.database.engine import parse_url
from tang_attest.web import runner
from tang_attest.web.admin.routes import AdminRoutes
from tang_attest.web.app import Site, make_app
from tang_attest.web.attest_routes import AttestRoutes
from tang_attest.web.gate.tls import server_context

#: Seconds between two sweeps of nonces that expired long ago.
_PRUNE_EVERY = 300

#: Seconds between two looks whether files can be opened.
_LOOK_EVERY = 1

#: Open files that are no connections of machines.
_OTHER_FILES = 128

_log = structlog.get_logger("serve")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _option(name: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """A flag for the setting of the same name; its help is the setting's description."""
    setting = name.removeprefix("--").replace("-", "_")
    field = Settings.model_fields[setting]
    text = field.description or ""
    if field.default not in (None, False, ""):
        text += f"  [default: {field.default}]"
    return click.option(
        name, setting, default=None, help=text, envvar=f"TANG_ATTEST_{setting.upper()}", **attributes
    )


_path = click.Path(path_type=Path)


@click.command()
@click.option(
    "--config",
    type=_path,
    envvar="TANG_ATTEST_CONFIG",
    help="TOML file with these settings (docs/settings.md); flags win.",
)
@_option("--database")
@_option("--host")
@_option("--port", type=int)
@_option("--workers", type=int)
@_option("--port-file", type=_path)
@_option("--server-tpm")
@_option("--owner-auth-file", type=_path)
@_option("--endpoint")
@_option("--tls-certificate", type=_path)
@_option("--tls-key", type=_path)
@_option("--tls-client-ca", type=_path)
@_option("--plain-tang", is_flag=True)
@_option("--tang-dir", type=_path)
@_option("--admin-api", is_flag=True)
@_option("--hook-dir", type=_path)
@_option("--webhook-secret", type=_path)
@_option("--challenge-ttl", type=int)
@_option("--enroll-ttl", type=int)
@_option("--metrics-listen")
@_option("--address-rate", type=int)
@_option("--device-rate", type=int)
@_option("--address-connections", type=int)
@_option("--max-connections", type=int)
@_option("--max-requests", type=int)
@_option("--limit-exempt")
@_option("--log-format")
@_option("--log-level")
@click.pass_context
def serve(ctx: click.Context, /, config: Path | None, **flags: Any) -> None:
    """Answer machines.

    Without --plain-tang no exchange key answers anybody without evidence.  With --plain-tang --tang-dir DIR this is
    a drop-in tangd over DIR; a state made by 'tang-attest init' is then optional, and served beside it.

    \b
    tang-attest serve --port 7500
    tang-attest serve --plain-tang --tang-dir /var/db/tang --port 80
    """
    given_state = ctx.find_root().get_parameter_source("state") is not click.core.ParameterSource.DEFAULT
    if given_state or config is None:
        flags["state"] = ctx.obj
    for name in ("database", "server_tpm", "owner_auth_file"):
        if flags[name] is None:
            flags[name] = ctx.find_root().params[name]
    settings = load_settings(config, flags)
    log.configure(settings.log_format, settings.log_level)
    sockets = inherited(os.environ)
    shares = [sockets] * settings.workers if sockets else bind(settings.host, settings.port, settings.workers)
    metrics = bind_metrics(settings)

    def prepare() -> Work:
        current = load_settings(config, flags)
        log.configure(current.log_format, current.log_level)
        _warn_of_fixed(settings, current)
        _make_room(current)
        _check_before_work(current)
        tls = _tls(current)
        return lambda place: _answer(current, shares[place.index], metrics[place.index], tls, place)

    port = port_of(shares[0][0])

    def close() -> None:
        for listener in itertools.chain(*shares, *metrics):
            listener.close()

    supervisor = Supervisor(
        settings.workers, prepare, lambda: _started(settings, port, metrics), close, Notifier()
    )
    try:
        code = supervisor.run()
    finally:
        close()
    if code == 0:
        _log.info("stopped")
    ctx.exit(code)


def _make_room(settings: Settings) -> None:
    """Each worker takes so many connections; what else it opens (database, log, sockets) is few."""
    wanted = settings.max_connections + _OTHER_FILES
    if (allowed := allow_open_files(wanted)) < wanted:
        _log.warning("few-open-files", wanted=wanted, allowed=allowed)


def _warn_of_fixed(first: Settings, current: Settings) -> None:
    """Sockets and processes are those of the start: a reload does not change them."""
    for name in ("host", "port", "port_file", "workers", "metrics_listen"):
        if getattr(first, name) != getattr(current, name):
            _log.warning("setting-needs-restart", setting=name)


def _started(settings: Settings, port: int, metrics: Sequence[Sequence[socket.socket]]) -> None:
    if settings.port_file is not None:
        _write_port(settings.port_file, port)
    _log.info(
        "listening",
        host=settings.host,
        port=port,
        workers=settings.workers,
        https=settings.tls_certificate is not None,
        client_certificates=settings.tls_client_ca is not None,
        plain_tang=settings.plain_tang,
        metrics=[port_of(listeners[0]) for listeners in metrics if listeners],
    )


def _check_before_work(settings: Settings) -> None:
    """What can be told wrong here is told once, and a reload with it changes nothing."""
    parse_url(settings.database_url)
    if settings.tang_dir is None:
        load_secret(settings.state)  # to hear whether it can be; each worker loads its own
    if settings.tang_dir is not None and not settings.tang_dir.is_dir():
        raise Malformed("setting-invalid", f"Setting tang_dir: {settings.tang_dir} is not a directory.")


def _answer(
    settings: Settings,
    sockets: Sequence[socket.socket],
    metrics: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
    place: WorkerSlot,
) -> int:
    """A worker's life; its exit code."""
    import uvloop

    # What is there now stays: no collection has to look at it again, and workers go on sharing its memory.
    gc.freeze()
    try:
        uvloop.run(_serve(settings, sockets, metrics, tls, place))
    except TangAttestError as error:
        output.error(error)
        return 1
    return 0


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return server_context(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


async def _serve(
    settings: Settings,
    sockets: Sequence[socket.socket],
    metrics: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
    place: WorkerSlot,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_reader(place.life, stop.set)  # the supervisor was killed
    polls = Polls()
    release = asyncio.create_task(_release(stop, polls))
    files = asyncio.create_task(again_and_again("files", _LOOK_EVERY, OpenFiles().look))
    async with _site(settings, polls) as site, show_metrics(site, metrics):
        await runner.run(make_app(site), sockets, tls, place.ready, stop, site.limiter)
    files.cancel()
    release.cancel()


async def _release(stop: asyncio.Event, polls: Polls) -> None:
    """Requests of agents are held for most of a minute: they are not waited for."""
    await stop.wait()
    polls.close()


@asynccontextmanager
async def _site(settings: Settings, polls: Polls) -> AsyncIterator[Site]:
    """What *settings* say is served, with the state open for as long."""
    directory = TangDirectory(settings.tang_dir) if settings.tang_dir is not None else None
    limiter = make_limiter(settings)
    async with AsyncExitStack() as stack:
        executor = _exchanging(settings, stack)
        try:
            state = await stack.enter_async_context(opened(settings))
        except NotFound as error:
            # A drop-in tangd needs no state of ours.
            if directory is None or error.code != "state-missing":
                raise
            counted = count_only(settings, limiter)
            yield Site(None, directory, directory, executor, settings.endpoint, None, limiter, None, counted)
            return
        forgetting = Forgetting(state.store, SystemClock())
        sweep = asyncio.create_task(again_and_again("sweep", _PRUNE_EVERY, forgetting.sweep))
        stack.callback(sweep.cancel)
        remembering = asyncio.create_task(_remember(state))
        stack.callback(remembering.cancel)
        await stack.enter_async_context(sealing(state))  # before what writes at its end
        own = ServerKeys(state.store, state.sealed, SystemClock(), "server", open_keys=settings.plain_tang)
        keys = RecentKeys(DirectoryFirst(directory, own) if directory is not None else own)
        plain = keys if settings.plain_tang else None
        admin = _admin_routes(settings, state) if settings.admin_api else None
        agents = watch(settings, state, polls, stack)
        refusals = await stack.enter_async_context(kept_refusals(state.store, limiter))
        attest = _attest_routes(settings, state, agents, own, executor, refusals)
        health, metrics = observe(settings, state.store, own, SystemClock(), limiter, polls, refusals)
        yield Site(attest, keys, plain, executor, settings.endpoint, admin, limiter, health, metrics)


async def _remember(state: Installation) -> None:
    """Learn from the audit record how new rows have to be: what this process has not seen it cannot know."""
    try:
        await state.store.remember_versions()
    except TangAttestError as error:
        _log.warning("versions", code=error.code, sentence=error.sentence)


def _exchanging(settings: Settings, stack: AsyncExitStack) -> Executor | None:
    """Where exchanges are computed.

    OpenSSL lets go of the interpreter while it multiplies, so threads of a single worker use the other processors.
    Several workers use them anyway; there a thread costs a fifth of the unlocks (measured), for half a millisecond.
    """
    if settings.workers > 1:
        return None
    return stack.enter_context(ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="exchange"))


def _attest_routes(
    settings: Settings,
    state: Installation,
    agents: Agents,
    keys: ServerKeys,
    executor: Executor | None,
    refusals: Refusals,
) -> AttestRoutes:
    clock, random = SystemClock(), SystemRandomness()
    nonce_key = state.secret.derive("nonce")
    return AttestRoutes(
        Unlock(
            state.store, state.sealed, clock, random, nonce_key, settings.challenge_ttl, executor, refusals
        ),
        Enroll(
            state.store,
            state.sealed,
            state.sessions,
            clock,
            random,
            nonce_key,
            settings.enroll_ttl,
            refusals=refusals,
        ),
        Announce(state.store, clock, random, nonce_key, settings.challenge_ttl, refusals),
        agents,
        keys,
    )


def _admin_routes(settings: Settings, state: Installation) -> AdminRoutes:
    return AdminRoutes(
        state.admin_tokens, Administration(state.store, SystemClock(), SystemRandomness()), settings.endpoint
    )


def _write_port(path: Path, port: int) -> None:
    """Write atomically: whoever waits for the file reads a whole number."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(f"{port}\n")
        Path(file.name).replace(path)
    except OSError as error:
        raise Malformed("setting-invalid", f"Setting port_file: {path}: {error.strerror}.") from None

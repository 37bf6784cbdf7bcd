"""``tang-attest serve``."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from tang_attest import log
from tang_attest.cli.state import State, SystemClock, SystemRandomness, opened
from tang_attest.config import Settings, load_settings
from tang_attest.errors import Malformed, NotFound, TangAttestError
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.service.enroll import Enroll
from tang_attest.service.server_keys import ServerKeys
from tang_attest.service.unlock import Unlock
from tang_attest.web.app import MAX_LINE, Site, make_app
from tang_attest.web.attest_routes import AttestRoutes

#: Seconds between two sweeps of nonces that expired.
_PRUNE_EVERY = 300

#: Seconds that a request under way has to end once the server was told to.
_PATIENCE_S = 5

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
@_option("--port-file", type=_path)
@_option("--endpoint")
@_option("--tls-certificate", type=_path)
@_option("--tls-key", type=_path)
@_option("--plain-tang", is_flag=True)
@_option("--tang-dir", type=_path)
@_option("--challenge-ttl", type=int)
@_option("--enroll-ttl", type=int)
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
    settings = load_settings(config, flags)
    log.configure(settings.log_format, settings.log_level)
    tls = _tls(settings)
    import uvloop

    uvloop.run(_serve(settings, tls))


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    _check_pem("tls_certificate", settings.tls_certificate, x509.load_pem_x509_certificates)
    _check_pem("tls_key", settings.tls_key, lambda pem: serialization.load_pem_private_key(pem, None))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except ssl.SSLError as error:
        # Each of the two is good for itself.
        what = "it is not the key of tls_certificate" if error.reason == "KEY_VALUES_MISMATCH" else str(error)
        raise Malformed("setting-invalid", f"Setting tls_key: {what}.") from None
    return context


def _check_pem(setting: str, path: Path, load: Callable[[bytes], object]) -> None:
    """Raise ``setting-invalid`` naming *setting* unless *load* reads the file.

    OpenSSL alone would not say which of the two files is wrong, and would ask a terminal for a passphrase.
    """
    try:
        load(path.read_bytes())
    except OSError as error:
        raise Malformed("setting-invalid", f"Setting {setting}: {path}: {error.strerror}.") from None
    except TypeError:
        raise Malformed("setting-invalid", f"Setting {setting}: {path} needs a passphrase.") from None
    except (ValueError, UnsupportedAlgorithm):
        what = setting.removeprefix("tls_")
        raise Malformed("setting-invalid", f"Setting {setting}: {path} is not a PEM {what}.") from None


async def _serve(settings: Settings, tls: ssl.SSLContext | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with _site(settings) as site:
        # A slow client is cut: the body of an honest request is there at once.
        app, under_way = make_app(site), _UnderWay()
        app.middlewares.append(under_way.count)
        runner = web.AppRunner(
            app,
            access_log=None,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            keepalive_timeout=30,
            shutdown_timeout=_PATIENCE_S,
        )
        await runner.setup()
        try:
            listener = web.TCPSite(runner, settings.host, settings.port, ssl_context=tls, backlog=1024)
            try:
                await listener.start()
            except OSError as error:
                where = f"{settings.host} port {settings.port}"
                raise Malformed(
                    "setting-invalid", f"Settings host and port: cannot listen on {where}: {error.strerror}."
                ) from None
            port = runner.addresses[0][1]
            if settings.port_file is not None:
                _write_port(settings.port_file, port)
            _log.info(
                "listening",
                host=settings.host,
                port=port,
                https=tls is not None,
                plain_tang=settings.plain_tang,
                attested=site.attest is not None,
            )
            await stop.wait()
            await listener.stop()
            await under_way.wait(_PATIENCE_S)
        finally:
            await runner.cleanup()
    _log.info("stopped")


class _UnderWay:
    """The requests that are being read or answered.

    aiohttp lets handlers end, but throws away what arrives meanwhile: a request whose body is on its way would fail.
    """

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @property
    def count(self) -> Middleware:
        """A middleware that counts."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._count += 1
            self._none.clear()
            try:
                return await handler(request)
            finally:
                self._count -= 1
                if not self._count:
                    self._none.set()

        return middleware

    async def wait(self, seconds: float) -> None:
        """Until there is none, or *seconds* have passed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)


@asynccontextmanager
async def _site(settings: Settings) -> AsyncIterator[Site]:
    """What *settings* say is served, with the state open for as long."""
    if settings.tang_dir is not None and not settings.tang_dir.is_dir():
        raise Malformed("setting-invalid", f"Setting tang_dir: {settings.tang_dir} is not a directory.")
    directory = TangDirectory(settings.tang_dir) if settings.tang_dir is not None else None
    async with AsyncExitStack() as stack:
        # OpenSSL lets go of the interpreter while it multiplies: exchanges use the other processors.
        executor = stack.enter_context(ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="exchange"))
        try:
            state = await stack.enter_async_context(opened(settings))
        except NotFound as error:
            # A drop-in tangd needs no state of ours.
            if directory is None or error.code != "state-missing":
                raise
            yield Site(None, directory, directory, executor, settings.endpoint)
            return
        sweep = asyncio.create_task(_sweep(state))
        stack.callback(sweep.cancel)
        own = ServerKeys(state.store, state.sealed, SystemClock(), "server", open_keys=settings.plain_tang)
        keys = directory or own
        plain = keys if settings.plain_tang else None
        yield Site(_attest_routes(settings, state, own, executor), keys, plain, executor, settings.endpoint)


def _attest_routes(settings: Settings, state: State, keys: ServerKeys, executor: Executor) -> AttestRoutes:
    clock, random = SystemClock(), SystemRandomness()
    nonce_key = state.secret.derive("nonce")
    return AttestRoutes(
        Unlock(state.store, state.sealed, clock, random, nonce_key, settings.challenge_ttl, executor),
        Enroll(state.store, state.sealed, state.sessions, clock, random, nonce_key, settings.enroll_ttl),
        keys,
    )


async def _sweep(state: State) -> None:
    """Forget expired nonces now and then; a failure is logged and tried again."""
    while True:
        await asyncio.sleep(_PRUNE_EVERY)
        try:
            await state.store.prune(SystemClock().now())
        except TangAttestError as error:
            _log.warning("sweep", code=error.code, sentence=error.sentence)


def _write_port(path: Path, port: int) -> None:
    """Write atomically: whoever waits for the file reads a whole number."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(f"{port}\n")
        Path(file.name).replace(path)
    except OSError as error:
        raise Malformed("setting-invalid", f"Setting port_file: {path}: {error.strerror}.") from None

"""A server from start to end: sockets, worker processes, and reloads."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from tang_attest import log
from tang_attest.config import Settings
from tang_attest.daemon.files import allow_open_files
from tang_attest.daemon.last_word import LastWord
from tang_attest.daemon.notify import Notifier
from tang_attest.daemon.room import fitting_workers
from tang_attest.daemon.sockets import bind, inherited, port_of
from tang_attest.daemon.supervisor import Supervisor, Work, WorkerSlot
from tang_attest.doctor.addresses import Address, Listener
from tang_attest.errors import Malformed, TangAttestError
from tang_attest.keys.secret import load_secret
from tang_attest.protocol.exchange import multiplies_once
from tang_attest.protocol.values.points import CURVES
from tang_attest.server.compose import World, password_in_file
from tang_attest.server.worker import ENDING, Listeners, run_worker
from tang_attest.store.database.engine import parse_url
from tang_attest.web.gate.tls import server_context, spki_pin

#: Open files beside the connections of machines: database, log, sockets.
_OTHER_FILES: Final = 128

_log = structlog.get_logger("serve")


def serve(load: Callable[[], Settings], world: World, report: Callable[[TangAttestError], None]) -> int:
    """Answer machines until a signal; return the exit code.

    *load* returns the settings now, and again at each reload; a failing reload keeps the old ones.  *report*
    tells the operator the error that ends a worker.
    """
    settings = load()
    log.configure(settings.log_format, settings.log_level)
    workers = count_workers(settings)
    machines, metrics = _bind(settings, workers), _bind_metrics(settings, workers)
    console = _bind_console(settings, workers)

    last_word = LastWord(report, ENDING)

    def prepare() -> Work:
        current = load()
        log.configure(current.log_format, current.log_level)
        _warn_of_fixed(settings, current)
        _make_room(current)
        _check_before_work(current)
        _try_multiplication()
        if current.admin_api:
            import tang_attest.web.admin.routes
        if settings.console_listen is not None:
            import tang_attest.server.console.pages
            import tang_attest.web.console.app  # noqa: F401 - the same
        tls, console_tls = _tls(current), _console_tls(current)

        def work(place: WorkerSlot) -> int:
            listeners = Listeners(
                machines=machines[place.index],
                metrics=metrics[place.index],
                console=console[place.index],
                tls=tls,
                console_tls=console_tls,
            )
            return last_word.run(place, partial(run_worker, current, world, listeners))

        return work

    def close() -> None:
        for listener in itertools.chain(*machines, *metrics, *console):
            listener.close()

    def started() -> None:
        last_word.serving()
        _started(settings, machines, metrics, console)

    try:
        code = Supervisor(workers, prepare, started, close, Notifier()).run()
    finally:
        close()
        last_word.close()
    if code == 0:
        _log.info("stopped")
    return code


def count_workers(settings: Settings) -> int:
    """Return the number of worker processes: that of *settings*, or as many as fit on this machine."""
    if settings.workers is not None:
        return settings.workers
    if settings.tpm_is_exclusive:
        return 1
    fitting = fitting_workers()
    metrics = settings.metrics_address(0)
    # Each worker has a port of its own for them.
    return fitting if metrics is None else min(fitting, 65536 - metrics[1])


def _bind(settings: Settings, workers: int) -> Sequence[Sequence[socket.socket]]:
    """Return the sockets for machines, by worker: those of systemd for all of them, or a share each."""
    sockets = inherited(os.environ)
    return [sockets] * workers if sockets else bind(settings.host, settings.port, workers)


def _bind_metrics(settings: Settings, workers: int) -> list[list[socket.socket]]:
    """Return the sockets for metrics, by worker; none when metrics are off."""
    addresses = [settings.metrics_address(worker) for worker in range(workers)]
    return [
        [] if address is None else bind(*address, 1, "Setting metrics_listen")[0] for address in addresses
    ]


def _bind_console(settings: Settings, workers: int) -> list[list[socket.socket]]:
    """Return the sockets for the console, by worker: each may answer, as sessions are in the database."""
    if settings.console_address is None:
        return [[]] * workers
    return bind(*settings.console_address, workers, "Setting console_listen")


def _make_room(settings: Settings) -> None:
    """Allow each worker its connections, and a few files more."""
    wanted = settings.max_connections + _OTHER_FILES
    if (allowed := allow_open_files(wanted)) < wanted:
        _log.warning("few-open-files", wanted=wanted, allowed=allowed)


def _warn_of_fixed(first: Settings, current: Settings) -> None:
    """Warn of settings that a reload does not change: sockets and processes stay as they were started."""
    for name in ("host", "port", "port_file", "workers", "metrics_listen", "console_listen"):
        if getattr(first, name) != getattr(current, name):
            _log.warning("setting-needs-restart", setting=name)


def _try_multiplication() -> None:
    """Find out, once for all workers, on which curves one multiplication is enough for an exchange."""
    if slow := [curve for curve in CURVES if not multiplies_once(curve)]:
        _log.warning("two-multiplications", curves=slow)


def _check_before_work(settings: Settings) -> None:
    """Report configuration errors before workers start; a failing reload keeps the old settings."""
    parse_url(settings.database_url)
    if settings.tang_dir is None:
        load_secret(settings.state)  # to hear whether it can be; each worker loads its own
    _check_directory("tang_dir", settings.tang_dir)


def addresses(settings: Settings) -> list[Address]:
    """Return the addresses on which a start listens."""
    found = [Address(Listener.MACHINES, settings.host, settings.port, "Settings host and port")]
    for worker in range(count_workers(settings)):
        if (metrics := settings.metrics_address(worker)) is not None:
            found.append(Address(Listener.METRICS, *metrics, "Setting metrics_listen"))
    if settings.console_address is not None:
        found.append(Address(Listener.CONSOLE, *settings.console_address, "Setting console_listen"))
    return found


def check_settings(settings: Settings) -> Iterator[TangAttestError]:
    """Yield a problem for each file of the settings that a start, or the first notification, would need."""
    checks: list[Callable[[], object]] = [
        partial(_check_directory, "tang_dir", settings.tang_dir),
        partial(_check_directory, "hook_dir", settings.hook_dir),
        partial(password_in_file, settings),
    ]
    if settings.port_file is not None:
        checks.append(partial(_check_directory, "port_file", settings.port_file.absolute().parent))
    if settings.webhook_secret is not None:
        checks.append(partial(_check_webhook_secret, settings.webhook_secret))
    if settings.tls_certificate is not None and settings.tls_key is not None:
        certificate, key, authorities = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        checks.append(partial(server_context, certificate, key, authorities))
    if settings.console_certificate is not None:
        checks.append(partial(_console_context, settings))
    for check in checks:
        try:
            check()
        except TangAttestError as error:
            yield error
    if settings.notify:
        from tang_attest.server.notify.receivers import check_receivers  # slow to load

        yield from check_receivers(settings)


def _check_directory(setting: str, path: Path | None) -> None:
    if path is not None and not path.is_dir():
        raise Malformed("setting-invalid", f"Setting {setting}: {path} is not a directory.")


def _check_webhook_secret(path: Path) -> None:
    from tang_attest.web.webhook import read_secret  # slow to load

    read_secret(path)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    context = server_context(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    _log.info("tls", certificate=str(settings.tls_certificate), spki=spki_pin(settings.tls_certificate))
    return context


def _console_context(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS of the console; ``None`` behind a proxy.  Raises ``setting-invalid``."""
    if settings.console_certificate is None or settings.console_key is None:
        return None
    names = ("console_certificate", "console_key")
    return server_context(settings.console_certificate, settings.console_key, names=names)


def _console_tls(settings: Settings) -> ssl.SSLContext | None:
    context = _console_context(settings)
    if context is not None:
        _log.info("console-tls", certificate=str(settings.console_certificate))
    return context


def _started(
    settings: Settings,
    machines: Sequence[Sequence[socket.socket]],
    metrics: Sequence[Sequence[socket.socket]],
    console: Sequence[Sequence[socket.socket]],
) -> None:
    port = port_of(machines[0][0])
    if settings.port_file is not None:
        _write_port(settings.port_file, port)
    _log.info(
        "listening",
        host=settings.host,
        port=port,
        workers=len(machines),
        https=settings.tls_certificate is not None,
        client_certificates=settings.tls_client_ca is not None,
        plain_tang=settings.plain_tang,
        metrics=[port_of(listeners[0]) for listeners in metrics if listeners],
        console=next((port_of(listeners[0]) for listeners in console if listeners), None),
    )


def _write_port(path: Path, port: int) -> None:
    """Write atomically: a program that waits for the file reads a whole number."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(f"{port}\n")
        Path(file.name).replace(path)
    except OSError as error:
        raise Malformed("setting-invalid", f"Setting port_file: {path}: {error.strerror}.") from None

"""``tang-attest tangd``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from tang_attest import log
from tang_attest.config import load_settings
from tang_attest.daemon.inetd import connection, stderr_is_the_connection
from tang_attest.errors import Malformed
from tang_attest.server.tang import tang_site
from tang_attest.web import runner
from tang_attest.web.app import make_app
from tang_attest.web.gate.limits import Limiter


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-e", "--endpoint", default="", metavar="PATH", help="Path before every route, such as /tang.")
def tangd(directory: Path, endpoint: str) -> None:
    """Answer one connection, as Tang's own tangd does.

    It is on standard input and output: for inetd, socat, and systemd sockets with Accept=yes, such as
    tangd@.service. The keys are those of DIR, and answer without evidence.  Each connection starts a process,
    which takes half a second: where many machines boot at once, use 'tang-attest serve --plain-tang
    --tang-dir DIR'.

    \b
    socat TCP-LISTEN:80,fork,reuseaddr EXEC:'tang-attest tangd /var/lib/tang'
    """
    log.configure("console", "critical" if stderr_is_the_connection() else "info")
    settings = load_settings(None, {"plain_tang": True, "tang_dir": directory, "endpoint": endpoint})
    if not directory.is_dir():
        raise Malformed("setting-invalid", f"DIR: {directory} is not a directory.")
    site = tang_site(settings, directory, Limiter())
    with connection(os.environ) as one:
        asyncio.run(runner.answer_one(make_app(site), one, site.limiter))

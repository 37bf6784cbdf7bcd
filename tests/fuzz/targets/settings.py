"""The configuration file, and settings in the environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from tang_attest.cli.installation.serve import serve
from tang_attest.config import Settings, load_settings, settings_in
from tests.fuzz.target import Parser, Target

_FILE = Path(tempfile.mkdtemp(prefix="tang-attest-fuzz-")) / "tang-attest.toml"
_ROOT = click.Context(click.Group("tang-attest"), info_name="tang-attest")


def file(data: bytes) -> None:
    """A file: settings that can be used as they are, or an error that names what is wrong."""
    _FILE.write_bytes(data)
    _use(load_settings(_FILE, {}))


def environment(data: bytes) -> None:
    """Lines of ``NAME=value``, each as the variable TANG_ATTEST_NAME."""
    before = dict(os.environ)
    try:
        for line in data.split(b"\n")[:8]:
            name, _, value = line.partition(b"=")
            if b"\0" not in line:
                os.environb[b"TANG_ATTEST_" + name] = value
        named, given = os.environ.get("TANG_ATTEST_CONFIG"), settings_in(os.environ)
        context = serve.make_context("serve", [], parent=_ROOT)
    finally:
        os.environ.clear()
        os.environ.update(before)
    flags = {name: value for name, value in context.params.items() if value is not None}
    _use(load_settings(_FILE if named == str(_FILE) else None, {**given, **flags}))


def _use(settings: Settings) -> None:
    assert Settings.model_validate(settings.model_dump()) == settings
    _ = (settings.database_url, settings.exempt_networks)
    if (address := settings.metrics_address((settings.workers or 1) - 1)) is not None:
        assert address[0]
        assert 0 <= address[1] <= 65535


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Every kind of setting."""
    values = {
        "state": "/var/lib/tang-attest",
        "port": 7500,
        "workers": 2,
        "endpoint": "/tang",
        "plain_tang": True,
        "metrics_listen": "127.0.0.1:9750",
        "limit_exempt": "192.0.2.0/24, ::1/128",
        "log_format": "json",
    }
    toml = "".join(f"{name} = {value!r}\n".replace("True", "true") for name, value in values.items())
    yield file, toml.encode()
    yield file, b"[table]\nkey = 1979-05-27T07:32:00Z\nlist = [1.5, 0x1, {a = 'b'}]\n"
    yield environment, "\n".join(f"{name.upper()}={value}" for name, value in values.items()).encode()


TARGET = Target([file, environment], seeds, max_length=2048, raises=(click.UsageError,))

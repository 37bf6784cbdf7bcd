"""Templates to pages: plain Jinja2, with everything escaped and every name defined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Final

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tang_attest.web.console.text import finalized, neutral

STATIC: Final[Mapping[str, str]] = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
#: Lines of a document on a page.
_MOST_LINES: Final = 200
_UNITS: Final = ((timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "min"))


@cache
def static(name: str) -> bytes:
    """Return the file *name* of :data:`STATIC`."""
    return files("tang_attest.web.console").joinpath("static", name).read_bytes()


@cache
def static_address(name: str) -> str:
    """Return the address of the file *name*, which changes with its content, so that browsers may keep it."""
    return f"/static/{name}?v={hashlib.sha256(static(name)).hexdigest()[:12]}"


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("tang_attest.web.console"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": moment,
        "data": data,
        "whole": whole,
        "lines": lines,
        "span": spell,
    }
    environment.globals |= {"static": static_address}
    return environment


def render(template: str, values: Mapping[str, object]) -> str:
    """Return the page of *template* with *values*."""
    return _templates().get_template(template).render(values)


def page(
    template: str,
    values: Mapping[str, object],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return the response with the page of *template*."""
    return web.Response(
        status=status, text=render(template, values), content_type="text/html", headers=headers
    )


def spell(span: timedelta) -> str:
    """Return *span* in one unit: ``9 s``, ``3 min``, ``5 h``, ``12 d``."""
    for unit, name in _UNITS:
        if span >= unit:
            return f"{span // unit} {name}"
    return f"{max(0, int(span.total_seconds()))} s"


def moment(at: datetime | None, now: datetime) -> Markup:
    """Return *at* as an element: relative to *now* for the eye, exact for pointers and programs."""
    if at is None:
        return Markup("never")
    exact = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    text = f"{spell(now - at)} ago" if at <= now else f"in {spell(at - now)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at.isoformat(), exact, text)


def data(value: object) -> Markup:
    """Return *value* as JSON for an attribute, whole."""
    return Markup(escape(json.dumps(value, separators=(",", ":"))))  # noqa: S704 - it is escaped


def whole(text: str) -> Markup:
    """Return *text* neutral and escaped, however long it is: an operator sees all that they sign."""
    return Markup(escape(neutral(text, None)))  # noqa: S704 - it is escaped


def lines(text: str) -> Markup:
    """Return the first lines of *text*, each neutral, bounded and escaped."""
    found = text.split("\n")
    shown = [Markup(escape(neutral(line))) for line in found[:_MOST_LINES]]  # noqa: S704 - it is escaped
    return Markup("\n").join([*shown, *([Markup("…")] if len(found) > _MOST_LINES else [])])

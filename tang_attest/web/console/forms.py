"""Forms that browsers send: bounded, decoded, and read by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

from tang_attest.errors import Malformed
from tang_attest.web.gate.bodies import read_body

#: Bytes of a form: a credential has about 1 KiB, an approval of 200 machines about 20 KiB.
MAX_FORM: Final = 64 * 1024
_MAX_FIELDS: Final = 1000
_TYPE: Final = "application/x-www-form-urlencoded"
_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~-]+(?:/[A-Za-z0-9._~-]+)*)?(?:\?[A-Za-z0-9._~=&%:+-]*)?")


@dataclass(frozen=True, slots=True)
class SentForm:
    """The fields of a form, each with its values."""

    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of *name*."""
        return tuple(self.fields.get(name, ()))

    def text(self, name: str, default: str = "") -> str:
        """Return the first value of *name*, without spaces around it."""
        return next(iter(self.fields.get(name, ())), default).strip()

    def number(self, name: str, least: int, most: int) -> int:
        """Return the number in *name*.  Raises ``form-malformed``."""
        text = self.text(name)
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise malformed(f"The field '{name}' takes a number from {least} to {most}.")
        return int(text)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return the one of *choices* in *name*.  Raises ``form-malformed``."""
        if (text := self.text(name)) not in choices:
            raise malformed(f"The field '{name}' has none of its choices.")
        return text


async def read_form(request: web.Request) -> SentForm:
    """Return the form in the body of *request*.

    Raises ``form-malformed`` for another media type or what is no UTF-8, and as :func:`read_body`.
    """
    body = await read_body(request, MAX_FORM)
    if request.content_type != _TYPE:
        raise malformed("The request has no form.")
    return parse_form(body)


def parse_form(body: bytes) -> SentForm:
    """Return the form in *body*, bytes of a browser.  Raises ``form-malformed``."""
    fields: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:  # no ASCII, no UTF-8 in its escapes, or too many fields
        raise malformed("The form cannot be read.") from None
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return SentForm(fields)


def malformed(sentence: str) -> Malformed:
    """Return the error about a form that no page of the console sends."""
    return Malformed("form-malformed", sentence)


def local_path(text: str, default: str = "/") -> str:
    """Return *text* if it is a path of the console itself, and else *default*: a link leads nowhere else."""
    return text if len(text) <= 500 and _PATH.fullmatch(text) and not text.startswith("//") else default

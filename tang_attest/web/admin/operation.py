"""One operation of the admin API, as a value: the server routes by it, and the OpenAPI document shows it.

:func:`perform` checks for every operation: address, scope, parameters, body, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

from aiohttp import web
from pydantic import BaseModel

from tang_attest.errors import Malformed, NotFound
from tang_attest.ports.admin import Scope
from tang_attest.service.admin.administration import Administration
from tang_attest.service.admin.tokens import AdminClient
from tang_attest.web.admin.wire import Nothing
from tang_attest.web.gate.bodies import MAX_BODY, SMALL_BODY, read_body
from tang_attest.web.problems import MethodNotAllowed
from tang_attest.web.wire import ADMIN_BOUNDS, Body, parse_json, validate

JSON: Final = "application/json"
TEXT: Final = "text/plain"
CSV: Final = "text/csv"

_PARAMETER: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is understood: the models of its operation, filled."""

    asker: AdminClient
    path: Any
    query: Any
    body: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """A status of the operation's ``answers``, and its model, or the text of a CSV file."""

    status: int
    view: BaseModel | str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """``path`` is below ``/admin/v1``; ``text`` lets a text body stand in for ``body``; ``answers`` has every
    success; ``str`` is a CSV file.
    """

    name: str
    method: str
    path: str
    scope: Scope
    summary: str
    handler: Callable[[Administration, Call], Awaitable[Answer]]
    answers: Mapping[int, type[BaseModel] | type[str]]
    parameters: type[Body] = Nothing
    query: type[Body] = Nothing
    body: type[Body] | None = None
    text: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Return the pattern of the raw address below ``/admin/v1``: a percent-encoded slash is part of a
        parameter.
        """
        return re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", self.path))

    @property
    def media_types(self) -> tuple[str, ...]:
        """Return the media types that a body may have."""
        return ((JSON,) if self.body else ()) + ((TEXT,) if self.text else ())


def find(operations: Sequence[Operation], method: str, path: str) -> tuple[Operation, dict[str, str]]:
    """Return the operation of a request to *path* below ``/admin/v1``, and its raw parameters.

    Raises ``not-found``, ``method-not-allowed``.  HEAD is GET, whose body the server leaves out.
    """
    found = {
        operation.method: (operation, match.groupdict())
        for operation in operations
        if (match := operation.pattern.fullmatch(path))
    }
    if not found:
        raise NotFound("not-found", "There is nothing at this address.")
    wanted = "GET" if method == "HEAD" else method
    if wanted not in found:
        raise MethodNotAllowed(method, [*sorted(found), *(["HEAD"] if "GET" in found else [])])
    return found[wanted]


async def perform(
    operation: Operation,
    administration: Administration,
    asker: AdminClient,
    raw: Mapping[str, str],
    query: str,
    request: web.BaseRequest,
) -> Answer:
    """Answer *request*, which is for *operation*.

    Raises ``scope-missing``, ``request-malformed``, ``media-type-unsupported``, and what the use case raises.
    """
    asker.grant.require(operation.scope)
    parameters = validate(operation.parameters, {name: _decode(value) for name, value in raw.items()})
    call = Call(asker, parameters, validate(operation.query, _query(query)), await _body(operation, request))
    return await operation.handler(administration, call)


def _decode(raw: str) -> str:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise Malformed("request-malformed", "The address is not percent-encoded UTF-8.") from None


def _query(raw: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, strict_parsing=bool(raw), errors="strict")
    except ValueError:
        raise Malformed("request-malformed", "The query cannot be read.") from None
    if len(dict(pairs)) != len(pairs):
        raise Malformed("request-malformed", "The query gives a parameter twice.")
    return dict(pairs)


async def _body(operation: Operation, request: web.BaseRequest) -> Body | bytes | None:
    data = await read_body(request, MAX_BODY if operation.media_types else SMALL_BODY)
    if operation.body is None:
        if data:
            raise Malformed("request-malformed", "This operation takes no body.")
        return None
    if request.content_type not in operation.media_types:
        known = " or ".join(operation.media_types)
        raise Malformed("media-type-unsupported", f"The body has to be {known}.")
    return data if request.content_type == TEXT else validate(operation.body, parse_json(data, ADMIN_BOUNDS))

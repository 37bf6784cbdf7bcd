"""A client of the admin API that holds the server to its own OpenAPI document, whatever a test asks."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from openapi_schema_validator import OAS31Validator
from yarl import URL

from tang_attest.ports.admin import Scope
from tang_attest.protocol.values.pcr import Selection
from tang_attest.web.admin.routes import document
from tests.server import SELECTION, Answer, Server

EVERY_SCOPE = tuple(Scope)

_DOCUMENT = document()
_PATHS = {
    re.compile(re.sub(r"\{\w+\}", "[^/]+", path)): operations
    for path, operations in _DOCUMENT["paths"].items()  # type: ignore[attr-defined]
}


class Admin:
    """The holder of one token."""

    def __init__(self, server: Server, token: str | None) -> None:
        self.server, self.token = server, token

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        """A request to *path* below ``/admin/v1``; the answer is one that the document has."""
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        target = URL(f"{self.server.endpoint}/admin/v1{path}", encoded=True)
        answer = await self.server.request(method, target, headers=headers, **options)  # type: ignore[arg-type]
        _check_documented(method, path.partition("?")[0], answer)
        return answer

    async def get(self, path: str) -> Answer:
        """A GET."""
        return await self.request("GET", path)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        """A POST, perhaps of a JSON value."""
        return await self.request("POST", path, **({} if body is None else {"json": body}), **options)

    async def stage(self, label: str, values: dict[int, bytes], policy: str = "web", **others: Any) -> Answer:
        """Stage *values*."""
        body = {"label": label, "values": {str(pcr): value.hex() for pcr, value in values.items()}}
        return await self.post(f"/policies/{policy}/states", body | others)

    async def move(self, label: str, deed: str, policy: str = "web") -> Answer:
        """``approve``, ``retire`` or ``restore`` a state."""
        return await self.post(f"/policies/{policy}/states/{quote(label, safe='')}/{deed}")


async def holder(
    server: Server,
    *scopes: Scope,
    name: str = "ci",
    policies: tuple[str, ...] | None = None,
    valid_for: timedelta = timedelta(days=90),
) -> Admin:
    """Client with a new token; without *scopes* it has all."""
    text, _ = await server.admin_tokens.create(name, scopes or EVERY_SCOPE, policies, valid_for)
    return Admin(server, text)


async def make_policy(server: Server, name: str = "web") -> None:
    """An empty policy."""
    await server.reference_values.create_policy(name, Selection.parse(SELECTION), 15)


def values(word: str) -> dict[int, bytes]:
    """Some values over :data:`SELECTION`."""
    return {pcr: (word.encode() * 32)[:31] + bytes([pcr]) for pcr in Selection.parse(SELECTION).pcrs}


def pcrread(chosen: dict[int, bytes]) -> bytes:
    """As ``tpm2 pcrread`` prints them."""
    lines = [f"    {pcr:<2}: 0x{value.hex().upper()}" for pcr, value in chosen.items()]
    return "\n".join(["  sha256:", *lines, ""]).encode()


def _check_documented(method: str, path: str, answer: Answer) -> None:
    found = [known for pattern, known in _PATHS.items() if pattern.fullmatch(path)]
    operation = found[0].get(method.lower()) if found else None
    if operation is None:
        assert answer.status in (200, 401, 404, 405), answer
        return
    response = operation["responses"].get(str(answer.status))
    assert response is not None, f"{method} {path}: {answer.status} is not documented"
    _, _, name = response.get("$ref", "").rpartition("/")
    response = _DOCUMENT["components"]["responses"][name] if name else response  # type: ignore[index]
    (media_type,) = response["content"]
    assert answer.headers["Content-Type"].startswith(media_type), answer
    schema = {**response["content"][media_type]["schema"], "components": _DOCUMENT["components"]}
    body = answer.body.decode() if media_type == "text/csv" else answer.body
    OAS31Validator(schema).validate(body)

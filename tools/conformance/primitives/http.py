"""A small HTTP client: one request, one answer, nothing followed and nothing decoded."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

#: Attempts of a request that is answered with 429; the limits of a server are no part of the protocol.
_ATTEMPTS: Final = 6
_MAX_PAUSE: Final = 30


@dataclass(frozen=True)
class Answer:
    """A response: status, headers by lower-case name, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON.  Raises ValueError."""
        return json.loads(self.body)

    @property
    def content_type(self) -> str:
        """The media type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip()

    @property
    def code(self) -> str:
        """The code of a problem, or an empty text."""
        if self.content_type != "application/problem+json":
            return ""
        return str(self.json.get("code", ""))

    @property
    def named(self) -> str:
        """Status and code, for a sentence."""
        return f"{self.status} {self.code}".strip()


class Http:
    """A client of one server at *url*; *ca* is a file of CAs for https."""

    def __init__(self, url: str, ca: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or parts.hostname is None:
            raise ValueError(f"'{url}' is no http or https URL")
        self.host, self.port, self.prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer; after 429 ask again when the server says so.  Raises OSError."""
        for _ in range(_ATTEMPTS - 1):
            answer = self._once(method, path, body, headers or {})
            if answer.status != 429:
                return answer
            time.sleep(min(int(answer.headers.get("retry-after", "1")), _MAX_PAUSE))
        return self._once(method, path, body, headers or {})

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = self._connection()
        try:
            kind = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, self.prefix + path, body, {**kind, **headers})
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer ({type(error).__name__})") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=70, context=self._tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=70)

"""Requests to a server that may be this installation's own: an answer is looked at, its identity is not verified."""

from __future__ import annotations

import http.client
import ssl
from typing import Final

#: The address at which a server that listens everywhere is asked.
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here
#: Seconds.
_PATIENCE_S: Final = 5
#: Bytes of an answer that are read; an advertisement and the metrics of a worker have fewer.
_LONGEST: Final = 1 << 18


def ask(host: str, port: int, target: str, *, tls: bool, demands_clients: bool = False) -> tuple[int, bytes]:
    """Return the status and the body of a GET.

    *demands_clients*: the server may demand a certificate of its clients, and this one has none; the refusal then
    comes as :class:`ssl.SSLError` with an alert.  Raises OSError and HTTPException.  NOT checked: the certificate.
    """
    host = _ANYWHERE.get(host, host)
    connection: http.client.HTTPConnection
    if not tls:
        connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    else:
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - the standard library's own name for it
        if demands_clients:
            context.maximum_version = ssl.TLSVersion.TLSv1_2  # the refusal comes before our request
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read(_LONGEST)
    finally:
        connection.close()

"""Certificates of the system, which only a connection with TLS reads."""

from __future__ import annotations

import ssl

import pytest

from tang_attest.web import trust


@pytest.mark.parametrize(
    ("url", "purposes"),
    [
        ("https://ops.example/hook", [ssl.Purpose.SERVER_AUTH]),
        ("HTTPS://ops.example/hook", [ssl.Purpose.SERVER_AUTH]),
        ("http://127.0.0.1:9/hook", []),
        ("http://[::1", []),
    ],
)
async def test_certificates_are_read_for_tls_alone(
    url: str, purposes: list[ssl.Purpose], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message over plain HTTP, or to an address that is none, reads no file of certificates."""
    read: list[ssl.Purpose] = []
    original = trust.context_for

    def witness(purpose: ssl.Purpose) -> ssl.SSLContext:
        read.append(purpose)
        return original(purpose)

    monkeypatch.setattr(trust, "context_for", witness)
    connector = await trust.connector_for(url)
    await connector.close()
    assert read == purposes

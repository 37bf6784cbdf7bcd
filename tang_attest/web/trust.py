"""Verification of TLS certificates, alike with every version of Python."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

import aiohttp

#: The flags of a context before Python 3.13, whose default contexts add VERIFY_X509_STRICT and VERIFY_X509_PARTIAL_CHAIN.
#: The first refuses operators' own CAs without key identifiers; the second takes each certificate of a file for a root.
_FLAGS: Final = ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST


def context_for(purpose: ssl.Purpose) -> ssl.SSLContext:
    """Return a context of *purpose* with TLS 1.2 or newer: chains end at a self-signed certificate, and RFC 5280 is not
    enforced beyond OpenSSL's own checks.

    For ``SERVER_AUTH`` it has the certificates of the system and checks names; for ``CLIENT_AUTH`` it verifies nobody yet.
    """
    context = ssl.create_default_context(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags = _FLAGS
    return context


async def connector_for(url: str) -> aiohttp.TCPConnector:
    """Return a connector for a session that asks *url* alone; certificates are read for https alone.

    Reading those of the system takes longer than a loop may wait.
    """
    try:
        encrypted = urlsplit(url).scheme == "https"
    except ValueError:  # the request says so
        encrypted = False
    if not encrypted:
        return aiohttp.TCPConnector()
    return aiohttp.TCPConnector(ssl=await asyncio.to_thread(context_for, ssl.Purpose.SERVER_AUTH))

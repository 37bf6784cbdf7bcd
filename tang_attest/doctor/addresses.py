"""The addresses on which a start would listen: each is bound and let go, as the service's user would.

An address that is taken is asked: the running service, which a restart ends, is no problem.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from tang_attest.config import Settings
from tang_attest.daemon.sockets import try_address
from tang_attest.daemon.unit import may_bind_any_port
from tang_attest.doctor.asking import ask
from tang_attest.doctor.ownership import service_user
from tang_attest.errors import TangAttestError
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import unb64u


class Listener(Enum):
    """Part of the server that listens."""

    MACHINES = "machines"
    METRICS = "metrics"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of the settings *named*."""

    listener: Listener
    host: str
    port: int
    named: str

    def __str__(self) -> str:
        return f"{self.host} port {self.port}"


class _Holder(Enum):
    """The program that listens on an address already."""

    OURS = "ours"
    SILENT = "silent"  # it may be ours, and wants a certificate first
    OTHER = "other"


def look_at_addresses(
    settings: Settings, addresses: Collection[Address], own: Collection[str]
) -> tuple[list[TangAttestError], list[str]]:
    """Return the problems, and sentences about addresses that the running service has.

    *own* are the thumbprints of the signing keys that this installation advertises.
    """
    problems: list[TangAttestError] = []
    notes: list[str] = []
    wrong: set[str] = set()
    for address in addresses:
        if address.named in wrong:
            continue  # of the metrics of several workers, one port is enough
        try:
            with _as_service(settings):
                try_address(address.host, address.port, address.named)
        except TangAttestError as error:
            if error.code == "port-privileged" and may_bind_any_port():
                continue
            holder = _holder(settings, address, own) if error.code == "address-taken" else _Holder.OTHER
            if holder is _Holder.OTHER:
                problems.append(error)
                wrong.add(address.named)
            elif holder is _Holder.OURS:
                notes.append(
                    f"{address} is held by a server of this installation: restart it to use these settings"
                )
            else:
                notes.append(
                    f"{address} is held by a server that asks for a client certificate; if it is another one than "
                    "tang-attest's, the start fails"
                )
    return problems, notes


@contextlib.contextmanager
def _as_service(settings: Settings) -> Iterator[None]:
    """Be the service's user for the block: root may bind every port, and the service may not."""
    user = service_user(settings.state)
    if os.geteuid() != 0 or user is None or user.uid == 0:
        yield
        return
    os.seteuid(user.uid)  # gives root's capabilities up
    try:
        yield
    finally:
        os.seteuid(0)


def _holder(settings: Settings, address: Address, own: Collection[str]) -> _Holder:
    silent, demanded = False, settings.tls_client_ca is not None
    # The running service may have been started with other settings.
    for tls in (False,) if address.listener is Listener.METRICS else (True, False):
        for target in _targets(settings, address.listener):
            try:
                _, body = ask(address.host, address.port, target, tls=tls, demands_clients=demanded)
            except ssl.SSLError as error:
                silent = silent or "ALERT" in str(error.reason)
                break
            except (OSError, http.client.HTTPException):
                break
            if _is_ours(address.listener, body, own):
                return _Holder.OURS
    return _Holder.SILENT if silent else _Holder.OTHER


def _targets(settings: Settings, listener: Listener) -> Collection[str]:
    if listener is Listener.MACHINES:
        return dict.fromkeys((f"{settings.endpoint}/adv", "/adv"))
    return ("/metrics",) if listener is Listener.METRICS else ("/sign-in",)


def _is_ours(listener: Listener, body: bytes, own: Collection[str]) -> bool:
    if listener is Listener.MACHINES:
        return not set(own).isdisjoint(_advertised(body))
    return (b"tang_attest_build_info" if listener is Listener.METRICS else b"tang-attest") in body


def _advertised(body: bytes) -> set[str]:
    """Return the thumbprints of the signing keys in an advertisement.  NOT checked: its signature."""
    try:
        keys = json.loads(unb64u(json.loads(body)["payload"]))["keys"]
        return {thumbprint(key) for key in keys if "verify" in key["key_ops"]}
    except (TangAttestError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()

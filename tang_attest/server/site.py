"""The composition of a site: routes, limits, health and metrics over an opened installation."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tang_attest.config import Settings
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.server.compose import Attestation, Installation
from tang_attest.server.tang import counted
from tang_attest.service.audit.refusals import Refusals
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.rounds.sweep import Watching
from tang_attest.service.tang.plain import KeySetProvider
from tang_attest.service.tang.recent_keys import RecentKeys
from tang_attest.service.tang.server_keys import DirectoryFirst, ServerKeys
from tang_attest.service.unlock.unlock import Unlock
from tang_attest.service.upkeep.readiness import Readiness
from tang_attest.web.app import Site
from tang_attest.web.attest_routes import AttestRoutes
from tang_attest.web.gate.limits import Limiter, RequestLimits
from tang_attest.web.monitoring.health import Health

if TYPE_CHECKING:
    from tang_attest.web.admin.routes import AdminRoutes
    from tang_attest.web.monitoring.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One worker's site, and the use cases behind it that its periodic work needs too."""

    installation: Installation
    site: Site
    attestation: Attestation
    keys: ServerKeys
    polls: Polls
    refusals: Refusals
    watching: Watching


def make_limiter(settings: Settings) -> Limiter:
    """Return the limits of *settings*, for one worker."""
    return Limiter(
        RequestLimits(
            address_rate=settings.address_rate,
            device_rate=settings.device_rate,
            connections=settings.max_connections,
            address_connections=settings.address_connections,
            requests=settings.max_requests,
            exempt=settings.exempt_networks,
        )
    )


def compose_site(installation: Installation, *, polls: Polls, limiter: Limiter) -> Served:
    """Compose what *installation* and its settings serve.

    Requests of agents wait in *polls*.
    """
    settings, store, clock = installation.settings, installation.store, installation.world.clock
    refusals = Refusals(store.audit, clock)
    attestation = installation.attestation(polls, refusals=refusals)
    keys = installation.served_keys()
    advertised = _advertised(installation, keys)
    readiness = Readiness(store, keys.usable)
    site = Site(
        attest=_attest_routes(attestation, keys),
        advertised=advertised,
        plain=advertised if settings.plain_tang else None,
        endpoint=settings.endpoint,
        admin=_admin_routes(installation) if settings.admin_api else None,
        limiter=limiter,
        health=Health(readiness),
        metrics=_metrics(installation, readiness, limiter, (polls, refusals, attestation.unlock)),
    )
    return Served(
        installation=installation,
        site=site,
        attestation=attestation,
        keys=keys,
        polls=polls,
        refusals=refusals,
        watching=Watching(store, attestation.verify, polls, clock),
    )


def _advertised(installation: Installation, keys: ServerKeys) -> KeySetProvider:
    directory = installation.settings.tang_dir
    provider = keys if directory is None else DirectoryFirst(TangDirectory(directory), keys)
    return RecentKeys(provider, installation.world.keys_last_s)


def _attest_routes(attestation: Attestation, keys: ServerKeys) -> AttestRoutes:
    return AttestRoutes(
        unlock=attestation.unlock,
        enroll=attestation.enroll,
        announcements=attestation.announce,
        agents=attestation.agents,
        keys=keys,
    )


def _admin_routes(installation: Installation) -> AdminRoutes:
    from tang_attest.web.admin.routes import AdminRoutes  # slow to load

    return AdminRoutes(
        installation.admin_tokens, installation.administration(), installation.settings.endpoint
    )


def _metrics(
    installation: Installation,
    readiness: Readiness,
    limiter: Limiter,
    counting: tuple[Polls, Refusals, Unlock],
) -> Metrics | None:
    polls, refusals, unlock = counting
    if installation.settings.metrics_listen is None:
        return None
    from tang_attest.web.monitoring.metrics import Sources  # slow to load

    store, clock = installation.store, installation.world.clock

    def seen() -> Awaitable[Mapping[str, int]]:
        return store.devices.seen(clock.now())

    sources = Sources(
        queues=store.queues,
        seen=seen,
        ready=readiness.check,
        held=lambda: polls.count,
        left_out=lambda: refusals.left_out,
        tampered=store.tampered,
        signed=lambda: unlock.signed_permits,
    )
    return counted(installation.settings, limiter, sources)

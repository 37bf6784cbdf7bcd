"""The composition of a mere tangd; it imports little, because `tangd` starts a process for each connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tang_attest.config import Settings
from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.web.app import Site
from tang_attest.web.gate.limits import Limiter

if TYPE_CHECKING:
    from tang_attest.web.monitoring.metrics import Metrics, Sources


def tang_site(settings: Settings, directory: Path, limiter: Limiter) -> Site:
    """Compose a mere tangd over *directory*: no evidence, no state of ours."""
    keys = TangDirectory(directory)
    return Site(
        attest=None,
        advertised=keys,
        plain=keys,
        endpoint=settings.endpoint,
        limiter=limiter,
        metrics=counted(settings, limiter, None),
    )


def counted(settings: Settings, limiter: Limiter, sources: Sources | None) -> Metrics | None:
    """Return the metrics of a worker, or ``None`` when nothing reads them."""
    if settings.metrics_listen is None:
        return None
    from tang_attest.web.monitoring.metrics import Metrics

    return Metrics(limiter, sources)

"""The metrics of a worker, in the format of Prometheus.

Rules of this module:

* Metrics identify no device: no ``kid``, no address, no name becomes a label.
* Labels are words of this program, so no client can make new series.
* One worker process, one registry: each worker is scraped on its own port, and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from tang_attest import __version__
from tang_attest.errors import TangAttestError
from tang_attest.ports.store import QueueFigures
from tang_attest.protocol.signed_values.keys import StatementForm
from tang_attest.web.gate.limits import NAMES, Limiter

#: Seconds: from a challenge (a millisecond) to a client that gave up.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
#: Routes on which evidence or a token is appraised; other answers count as no verdict.
_JUDGED: Final = frozenset({"unlock", "enroll", "announce", "agent-evidence"})
_VERDICT_STATUSES: Final = frozenset({200, 201, 403})


disable_created_metrics()  # type: ignore[no-untyped-call]  # a further series for each, which is not used


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of numbers that are read only for a scrape.

    ``queues`` are the store's, by name.  ``seen`` is the number of devices by the time since they were last
    seen.  ``ready`` raises the error that keeps the server from opening a disk.  ``held`` counts held
    requests of agents, ``left_out`` the refusals that the audit record has only as a number, and ``tampered``
    the reads of rows that were not the server's own, by table; ``signed`` counts permits with signed values, by form.
    """

    queues: Callable[[], Mapping[str, QueueFigures]]
    seen: Callable[[], Awaitable[Mapping[str, int]]]
    ready: Callable[[], Awaitable[None]]
    held: Callable[[], int]
    left_out: Callable[[], int]
    _: KW_ONLY
    tampered: Callable[[], Mapping[str, int]]
    signed: Callable[[], Mapping[str, int]]


class Metrics:
    """The numbers of this process."""

    #: The format of :meth:`text`.
    content_type: Final = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, limiter: Limiter, sources: Sources | None) -> None:
        self._limiter, self._sources = limiter, sources
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Pulled(limiter, sources))
        Gauge(
            "tang_attest_build_info", "The version that runs.", ["version"], registry=self._registry
        ).labels(__version__).set(1)
        self._requests = Counter(
            "tang_attest_requests",
            "Requests that were answered.",
            ["route", "status", "code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tang_attest_request_seconds",
            "Time from a request's head to its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._verdicts = Counter(
            "tang_attest_verdicts",
            "Decisions over evidence and tokens.",
            ["purpose", "code"],
            registry=self._registry,
        )
        self._ready = Gauge(
            "tang_attest_ready", "1 when the database and the keys can be used.", registry=self._registry
        )
        self._devices = Gauge(
            "tang_attest_devices",
            "Devices by when their evidence was last seen: in the last hour, day, week, before, or never.",
            ["seen"],
            registry=self._registry,
        )

    def answered(self, route: str, status: int, code: str, seconds: float) -> None:
        """Count an answered request.  A request without evidence on the unlock route has a route of its
        own.
        """
        if code == "evidence-required":
            route = "challenge"
        self._requests.labels(route, status, code).inc()
        self._seconds.labels(route).observe(seconds)
        if route in _JUDGED and status in _VERDICT_STATUSES:
            self._verdicts.labels("verify" if route == "agent-evidence" else route, code).inc()

    async def text(self) -> bytes:
        """Return every metric in Prometheus's text format."""
        while self._limiter.unhandled:
            (status, code), count = self._limiter.unhandled.popitem()
            self._requests.labels("none", status, code).inc(count)
        if self._sources is not None:
            await self._look(self._sources)
        return generate_latest(self._registry)

    async def _look(self, sources: Sources) -> None:
        try:
            await sources.ready()
            for seen, count in (await sources.seen()).items():
                self._devices.labels(seen).set(count)
        except TangAttestError:
            self._ready.set(0)
            self._devices.clear()  # better no number than an old one
        else:
            self._ready.set(1)


class _Pulled(Collector):
    """Metrics that other parts count, read at each scrape."""

    def __init__(self, limiter: Limiter, sources: Sources | None) -> None:
        self._limiter, self._sources = limiter, sources

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "tang_attest_connections", "Open connections.", value=self._limiter.connections
        )
        yield GaugeMetricFamily(
            "tang_attest_requests_in_progress",
            "Requests that are worked on, without those of agents that are held.",
            value=self._limiter.working,
        )
        limited = CounterMetricFamily(
            "tang_attest_limited", "Requests and connections that a limit turned away.", labels=["limit"]
        )
        for limit in NAMES:  # a series that begins at 0 is one that can be seen to grow
            limited.add_metric([limit], self._limiter.refused[limit])
        yield limited
        if self._sources is not None:
            yield from self._of_sources(self._sources)

    def _of_sources(self, sources: Sources) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "tang_attest_agents_held", "Requests of agents that wait.", value=sources.held()
        )
        yield CounterMetricFamily(
            "tang_attest_refusals_left_out",
            "Refusals of unauthenticated clients that the audit record has only as a number.",
            value=sources.left_out(),
        )
        tampered = CounterMetricFamily(
            "tang_attest_registry_tampered",
            "Rows of the database that were read and are not what this server wrote.",
            labels=["table"],
        )
        for table, count in sources.tampered().items():
            tampered.add_metric([table], count)
        yield tampered
        signed = CounterMetricFamily(
            "tang_attest_signed_permits",
            "Unlocks that signed values permitted, by the form of the signature.",
            labels=["form"],
        )
        for form in StatementForm:
            signed.add_metric([form.value], sources.signed().get(form, 0))
        yield signed
        counters = [
            CounterMetricFamily(f"tang_attest_store_{name}", what, labels=["queue"])
            for name, what in (
                ("batches", "Transactions that carried what several callers wanted."),
                ("items", "What they carried; divided by the batches, the size of a batch."),
                ("failures", "Items that the database failed for, or that had no room."),
            )
        ]
        waiting = GaugeMetricFamily(
            "tang_attest_store_waiting", "Items that wait for the database.", labels=["queue"]
        )
        for queue, figures in sources.queues().items():
            for family, value in zip(
                counters, (figures.batches, figures.items, figures.failures), strict=True
            ):
                family.add_metric([queue], value)
            waiting.add_metric([queue], figures.waiting)
        yield from (*counters, waiting)

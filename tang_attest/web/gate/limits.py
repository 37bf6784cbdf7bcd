"""Limits: on the requests of one address, on requests about one device, and on the work at a time.

Rules of this module:

* Clients cost a fixed amount of memory: a number for each of the addresses that asked last.
* A client that knows a device's ``kid`` must not be able to lock its machine out.  So that limit is one for
  the key *and* the address.
* Each worker process counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from tang_attest.errors import Unavailable
from tang_attest.web.gate.holdings import Held, Holdings

Network = IPv4Network | IPv6Network

#: Names of the limits, as the metrics have them.
NAMES: Final = (
    "address",
    "device",
    "connections",
    "address-connections",
    "requests",
    "bodies",
    "slow",
    "unread",
)
#: Keys that a set of buckets remembers: about 10 MB when it is full.
BUCKETS: Final = 65_536
_TOO_OFTEN: Final = "This address asks too often."
#: Seconds of its rate that a bucket holds.
ADDRESS_BURST_S: Final = 10
DEVICE_BURST_S: Final = 30
#: The IPv6 prefix of one customer (RFC 6177): its addresses are one address here.
_IPV6_PREFIX: Final = 64


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of each worker.

    Rates are in requests per second, 0 is no limit; ``exempt`` networks have no limit of their own.

    The defaults let 1,000 machines behind one address boot at the same moment: each makes a connection and
    two requests at once, and a quarter of them may try again every few seconds.
    """

    address_rate: float = 400
    device_rate: float = 2
    connections: int = 4096
    address_connections: int = 2048
    #: Requests that are worked on at a time: a few batches of the database.
    requests: int = 1024
    _: KW_ONLY
    #: Received bytes of request bodies that are being read, in all; one address may have half of them.
    bodies: int = 128 * 1024 * 1024
    #: Seconds in which a body has to be here, a request's head (and the next request), a TLS handshake, and
    #: in which the client has to have read the answer.
    body_s: float = 10
    idle_s: float = 20
    handshake_s: float = 10
    write_s: float = 10
    exempt: tuple[Network, ...] = ()


class TokenBuckets:
    """A token bucket for each key, of the *size* keys that were used last.

    It is kept as one number, the time at which the bucket is full again (GCRA, ITU-T I.371), under a hash of
    the key that nobody outside of the process can foresee.  So a long key takes no more memory than a short
    one.
    """

    def __init__(
        self, rate: float, burst_s: float, size: int = BUCKETS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cost, self._burst_s, self._size, self._clock = (1 / rate if rate else 0), burst_s, size, clock
        self._full_at: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, *key: str) -> float:
        """Take a token of *key*; return 0, or the seconds until there is one."""
        if not self._cost:
            return 0
        now, known = self._clock(), hash(key)
        full_at = max(self._full_at.get(known, now), now) + self._cost
        wait = full_at - now - self._burst_s
        if wait > 0:
            return wait
        self._full_at[known] = full_at
        self._full_at.move_to_end(known)
        if len(self._full_at) > self._size:
            self._full_at.popitem(last=False)
        return 0

    def wait(self, *key: str) -> float:
        """Return the result that :meth:`take` would have, and take nothing."""
        if not self._cost:
            return 0
        now = self._clock()
        return max(0.0, self._full_at.get(hash(key), now) - now + self._cost - self._burst_s)


class Limiter:
    """Counts requests, connections and bodies, and refuses those over a limit; ``refused`` counts by the
    limit's name.
    """

    def __init__(
        self, limits: RequestLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or RequestLimits()
        self.refused: Counter[str] = Counter()
        #: Answers to requests that no handler saw, by status and code; the metrics take them.
        self.unhandled: Counter[tuple[int, str]] = Counter()
        self.working = 0
        self._held = Holdings(clock)
        #: The network that an address counts as; ``None`` for an exempt one.
        self._network = lru_cache(4096)(partial(_network, exempt=self.limits.exempt))
        self._addresses = TokenBuckets(self.limits.address_rate, ADDRESS_BURST_S, clock=clock)
        self._devices = TokenBuckets(self.limits.device_rate, DEVICE_BURST_S, clock=clock)
        #: Bytes of bodies that are being read, in all and by address.
        self.bodies = 0
        self.bodies_of: Counter[str] = Counter()

    def admit(self, address: str | None) -> None:
        """Count a request from *address*.  Raises ``too-many-requests``."""
        if (network := self._limited(address)) is not None:
            self._check("address", self._addresses.take(network), _TOO_OFTEN)

    def admit_about(self, kid: str, address: str | None) -> None:
        """Count a request about the device's key *kid*.  Raises ``too-many-requests``."""
        if (network := self._limited(address)) is not None:
            wait = self._devices.take(kid, network)
            self._check("device", wait, "This address asks too often about this device.")

    def work(self) -> AbstractContextManager[None]:
        """Return the context in which a request is worked on and counted.  Entering it raises ``unavailable``
        when too many are worked on.
        """
        return _Working(self)

    @contextmanager
    def body(self, address: str | None) -> Iterator[Incoming]:
        """Count a body while the block reads it: its received bytes, not those that its head declares."""
        incoming = Incoming(self, self._limited(address))
        try:
            yield incoming
        finally:
            incoming.forget()

    @property
    def connections(self) -> int:
        """Return the number of open connections."""
        return len(self._held)

    def connect(self, address: str | None, cut: Callable[[], None] | None = None) -> Held:
        """Count a new connection; *cut* ends it.  When there are too many, one that waits for its client is
        ended.

        Raises ``too-many-requests`` for an address that asks too often, so that a flood is not even read, and
        ``unavailable`` for one that holds too many, or when none waits; the connection is then not counted.
        """
        network = self._limited(address)
        if network is not None:
            self._check("address", self._addresses.wait(network), _TOO_OFTEN)
            if self._held.of(network) >= self.limits.address_connections:
                self.refused["address-connections"] += 1
                raise Unavailable("unavailable", "This address has too many connections.", retry_after=1)
        if len(self._held) >= self.limits.connections:
            self.refused["connections"] += 1
            if not self._held.make_room():
                raise Unavailable("unavailable", "The server has too many connections.", retry_after=1)
        return self._held.add(network, address, cut)

    def disconnect(self, held: Held) -> None:
        """Count a connection no more."""
        self._held.remove(held)

    def make_room(self) -> None:
        """End a connection that waits for its client, because a descriptor is needed."""
        self._held.make_room()

    def end_overdue(self) -> None:
        """End connections whose clients have let them wait for too long."""
        if ended := self._held.end_overdue():
            self.refused["unread"] += ended

    def _limited(self, address: str | None) -> str | None:
        """Return the network that *address* counts as; ``None`` for a Unix socket and an exempt network."""
        return self._network(address) if address else None  # a Unix socket's peer is ''

    def _check(self, limit: str, wait: float, sentence: str) -> None:
        if wait:
            self.refused[limit] += 1
            raise Unavailable("too-many-requests", sentence, retry_after=math.ceil(wait))


class _Working(AbstractContextManager[None]):
    """A request that is worked on."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def __enter__(self) -> None:
        limiter = self._limiter
        if limiter.working >= limiter.limits.requests:
            limiter.refused["requests"] += 1
            raise Unavailable("unavailable", "The server works on too many requests.", retry_after=1)
        limiter.working += 1

    def __exit__(self, *_: object) -> None:
        self._limiter.working -= 1


class Incoming:
    """A body that is being read."""

    __slots__ = ("_limiter", "_network", "_size")

    def __init__(self, limiter: Limiter, network: str | None) -> None:
        self._limiter, self._network, self._size = limiter, network, 0

    def add(self, size: int) -> None:
        """Count *count* more bytes.  Raises ``unavailable`` when all bodies together have too many."""
        limiter, network = self._limiter, self._network
        mine = limiter.bodies_of[network] if network is not None else 0
        most = limiter.limits.bodies
        if limiter.bodies + size > most or mine + size > most // 2:
            limiter.refused["bodies"] += 1
            raise Unavailable("unavailable", "The server reads too many requests.", retry_after=1)
        self._size += size
        limiter.bodies += size
        _add(limiter.bodies_of, network, size)

    def forget(self) -> None:
        """Count the body no more."""
        self._limiter.bodies -= self._size
        _add(self._limiter.bodies_of, self._network, -self._size)


def _add(counter: Counter[str], network: str | None, number: int) -> None:
    """Change an address's count; an address without bytes is forgotten."""
    if network is not None:
        counter[network] += number
        if not counter[network]:
            del counter[network]


def _network(address: str, exempt: tuple[Network, ...]) -> str | None:
    host: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(host, IPv6Address):
        host = host.ipv4_mapped or host
    if any(host in network for network in exempt):
        return None
    return str(ip_network((host, _IPV6_PREFIX), strict=False)) if host.version == 6 else str(host)

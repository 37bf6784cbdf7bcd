"""The other end of a network cable: python -m tests.boot.network.router INTERFACE PREFIX sends IPv6 router
advertisements (RFC 4861, section 4.2) for a /64 once a second, until it is ended."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
import time
from typing import Final

_ROUTER_ADVERTISEMENT: Final = 134
_PREFIX_INFORMATION: Final = 3
_ON_LINK_AND_AUTONOMOUS: Final = 0xC0


def advertisement(prefix: str) -> bytes:
    """One advertisement; the kernel fills in the checksum."""
    network = ipaddress.IPv6Network(prefix)
    head = struct.pack(">BBHBBHII", _ROUTER_ADVERTISEMENT, 0, 0, 64, 0, 1800, 0, 0)
    option = struct.pack(
        ">BBBBIII", _PREFIX_INFORMATION, 4, network.prefixlen, _ON_LINK_AND_AUTONOMOUS, 86400, 14400, 0
    )
    return head + option + network.network_address.packed


def main() -> None:
    interface, prefix = sys.argv[1:]
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        while True:
            try:
                sender.sendto(advertisement(prefix), ("ff02::1", 0, 0, index))
            except OSError as error:  # its own address is still tentative
                print(error, file=sys.stderr)
            time.sleep(1)


if __name__ == "__main__":
    main()

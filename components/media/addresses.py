"""Which network addresses a stranger's URL may lead to."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# All unicast addresses given out so far; what is outside (loopback, link-local, unique-local, site-local,
# IPv4-compatible, discard-only …) is not the public internet.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# The well-known prefix behind which a NAT64 gateway reaches IPv4: the last 32 bits are the real destination.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether the address is one anybody on the internet could reach.

    IPv6 forms that carry an IPv4 address (mapped, NAT64, 6to4) are judged by the address they carry: a packet to
    ``::ffff:169.254.169.254`` arrives at the cloud's metadata service as surely as one to ``169.254.169.254``.
    """
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if carried is not None:
            return is_public(carried)
        if address not in _GLOBAL_UNICAST:
            return False
    # Python counts some multicast groups as global; no picture is served from one.
    return address.is_global and not address.is_multicast

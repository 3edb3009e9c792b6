"""The address ranges that no callback may reach, as one explicit table.

`ipaddress.is_global` is no substitute: it calls 64:ff9b::/96 holding a private IPv4 address,
`::127.0.0.1`, `fec0::/10` and multicast addresses global.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

__all__ = ["DeniedRange", "denied_range"]


@dataclass(frozen=True, slots=True)
class DeniedRange:
    """One refused range: why, and whether `allow_private` opens it."""

    network: IPv4Network | IPv6Network
    reason: str
    private: bool = False


def _denied(network: str, reason: str, *, private: bool = False) -> DeniedRange:
    return DeniedRange(ip_network(network), reason, private)


# The first match decides, so that a metadata service inside a private range stays refused when
# private ranges are opened.
_IPV4 = (
    _denied("168.63.129.16/32", "the platform service of Azure"),
    _denied("10.0.0.0/8", "private", private=True),
    _denied("172.16.0.0/12", "private", private=True),
    _denied("192.168.0.0/16", "private", private=True),
    _denied("127.0.0.0/8", "loopback", private=True),
    _denied("169.254.0.0/16", "link-local, where clouds keep their metadata service"),
    _denied("0.0.0.0/8", "this network"),
    _denied("100.64.0.0/10", "shared address space of carriers"),
    _denied("192.0.0.0/24", "reserved for protocols"),
    _denied("192.0.2.0/24", "documentation"),
    _denied("198.51.100.0/24", "documentation"),
    _denied("203.0.113.0/24", "documentation"),
    _denied("192.88.99.0/24", "6to4 relay"),
    _denied("198.18.0.0/15", "benchmarking"),
    _denied("224.0.0.0/4", "multicast"),
    _denied("240.0.0.0/4", "reserved"),
)

_IPV6 = (
    _denied("fd00:ec2::/32", "the metadata service of AWS"),
    _denied("fd20:ce::254/128", "the metadata service of Google Cloud"),
    _denied("fd00:42::42/128", "the metadata service of Scaleway"),
    _denied("::1/128", "loopback", private=True),
    _denied("fc00::/7", "private", private=True),
    _denied("::/96", "unspecified or an embedded IPv4 address"),
    _denied("::ffff:0:0:0/96", "a translated IPv4 address"),
    _denied("64:ff9b::/96", "a NAT64 address"),
    _denied("64:ff9b:1::/48", "a NAT64 address"),
    _denied("100::/64", "discarded"),
    _denied("2001:db8::/32", "documentation"),
    _denied("2001::/32", "a Teredo address"),
    _denied("2001::/23", "reserved for protocols"),
    _denied("2002::/16", "a 6to4 address"),
    _denied("3fff::/20", "documentation"),
    _denied("fe80::/10", "link-local"),
    _denied("fec0::/10", "site-local"),
    _denied("ff00::/8", "multicast"),
    # Global unicast is 2000::/3. Whatever else is assigned one day is refused until somebody looks.
    _denied("::/3", "not a global unicast address"),
    _denied("4000::/2", "not a global unicast address"),
    _denied("8000::/1", "not a global unicast address"),
)


def denied_range(address: IPv4Address | IPv6Address) -> DeniedRange | None:
    """Find the range of the table that holds the address, or None.

    An IPv4 address mapped into IPv6 (`::ffff:a.b.c.d`) is judged as the IPv4 address that would be
    dialled.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    table = _IPV4 if isinstance(address, IPv4Address) else _IPV6
    # Compared as numbers: a zone id (`fe80::1%eth0`) must not keep an address out of its range.
    number = int(address)
    for entry in table:
        network = entry.network
        if int(network.network_address) <= number <= int(network.broadcast_address):
            return entry
    return None

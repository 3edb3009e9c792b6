"""Which URLs and addresses a callback may call: the pure half of the egress guard.

`check_callback_url` judges the text of a URL without asking the network, when an operation starts
and again when it is dialled. `refused_address` judges an address when a connection is made.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from callbacks.deny_table import denied_range
from callbacks.errors import UrlRefused
from nexus_spec import CALLBACK_URL_BYTES

__all__ = [
    "AllowRule",
    "Destination",
    "EgressPolicy",
    "Webhook",
    "check_callback_url",
    "read_destination",
    "refused_address",
]

# Judged on the raw text: `urlsplit` silently deletes CR, LF and TAB.
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?]*)([/?].*)?", re.IGNORECASE)
_PRINTABLE = re.compile(r"[!-~]*")
_NAME_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_IPV4_NUMBER = re.compile(r"0x([0-9a-f]+)|(0[0-7]*)|([1-9][0-9]*)")
_ENDS_IN_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_UNPRIVILEGED_PORT = 1024
_HOST_NAME_BYTES = 253


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a callback goes: lower-case scheme, normalised host (no brackets) and port.

    A host that was written as an IP address in any form is its canonical form here.
    """

    scheme: str
    host: str
    port: int

    @cached_property
    def name(self) -> str:
        """The key of the destination's breaker and concurrency: `scheme://host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @cached_property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The IP address, where the host is one and needs no resolver."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One kind of destination that callbacks may call.

    Args:
        host: a host name or IP address, `*.example.com` for every name below a domain, or `*`.
        port: the only port, which may then be any; None for every port of the default policy.
        insecure: also over `http`; otherwise `https` only.
        private: also where the host is, or resolves to, a loopback, RFC 1918 or unique local
            address.

    Raises:
        ValueError: the host is neither of these, or the port is not one.
    """

    host: str
    port: int | None = None
    insecure: bool = False
    private: bool = False

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"{self.port} is not a port")
        if self.host == "*":
            return
        wildcard = "*." if self.host.startswith("*.") else ""
        try:
            bare = self.host.removeprefix(wildcard)
            bare = _normalised_host(f"[{bare}]" if ":" in bare and bare[0] != "[" else bare)
        except UrlRefused as error:
            raise ValueError(f"allow rule for {self.host!r}: {error}") from error
        if wildcard and _is_address(bare):
            raise ValueError(f"allow rule for {self.host!r}: there are no names below an address")
        object.__setattr__(self, "host", wildcard + bare)

    def matches(self, destination: Destination) -> bool:
        """Whether the rule is about this destination's host, port and scheme."""
        if self.port not in {None, destination.port}:
            return False
        if destination.scheme == "http" and not self.insecure:
            return False
        if self.host.startswith("*"):
            return destination.host.endswith(self.host[1:])
        return destination.host == self.host


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What callbacks may call.

    Args:
        allow_private: open loopback, RFC 1918 and unique local (fc00::/7) addresses to every
            callback. Everything else in the deny table, link-local and metadata addresses among
            it, stays refused.
        allow: when not empty, only destinations that one of these rules matches may be called.
    """

    allow_private: bool = False
    allow: tuple[AllowRule, ...] = ()

    def opens_private(self, destination: Destination) -> bool:
        """Whether private addresses are open to callbacks to this destination."""
        return self.allow_private or any(
            rule.private for rule in self.allow if rule.matches(destination)
        )


class Webhook:
    """A URL that the operator configured, and the policy under which it alone may be called.

    Raises:
        UrlRefused: malformed, or one of the addresses that nobody may call.
    """

    def __init__(self, url: str) -> None:
        """Take the URL; its host may be, or resolve to, a private address, over http too."""
        self.url = url
        scheme, authority = _scheme_and_authority(url)
        host, port = _host_and_port(authority, _DEFAULT_PORTS[scheme])
        rule = AllowRule(host.strip("[]"), port, insecure=True, private=True)
        self.policy = EgressPolicy(allow=(rule,))
        self.destination = check_callback_url(url, self.policy)


def check_callback_url(raw: str, policy: EgressPolicy) -> Destination:
    """Return where a callback URL leads, if its text is sound and the policy lets it be called.

    Asks no resolver: a host name's addresses are judged when they are dialled. An IP address, in
    any form that `inet_aton` reads (decimal, octal, hexadecimal, short) or in IPv6, is judged here.

    Raises:
        UrlRefused: malformed, longer than 1000 bytes, or refused by the policy; the message says
            which, without repeating the URL.

    Spec: SPEC.md#start-operation
    """
    scheme, authority = _scheme_and_authority(raw)
    return _judged(scheme, authority, policy)


def read_destination(raw: str) -> Destination:
    """Return where a URL leads, whatever a policy may say of it: to name a destination.

    Raises:
        UrlRefused: malformed, or longer than 1000 bytes.
    """
    scheme, authority = _scheme_and_authority(raw)
    host, port = _host_and_port(authority, _DEFAULT_PORTS[scheme])
    return Destination(scheme=scheme, host=_normalised_host(host), port=port)


@lru_cache(maxsize=4096)  # callers have many URLs, and few hosts in them
def _judged(scheme: str, authority: str, policy: EgressPolicy) -> Destination:
    host, port = _host_and_port(authority, _DEFAULT_PORTS[scheme])
    destination = Destination(scheme=scheme, host=_normalised_host(host), port=port)
    if policy.allow:
        rules = [rule for rule in policy.allow if rule.matches(destination)]
        if not rules:
            raise UrlRefused(f"callback URL: {destination.name} is not an allowed destination")
        named_port = any(rule.port == destination.port for rule in rules)
    else:
        named_port = False
    if not (named_port or _is_usual_port(destination.port)):
        raise UrlRefused(
            f"callback URL: port {destination.port} is not allowed; "
            f"use 80, 443 or one from {_FIRST_UNPRIVILEGED_PORT} on"
        )
    if (address := destination.address) is not None:
        private = policy.opens_private(destination)
        if (reason := refused_address(address, policy, private=private)) is not None:
            raise UrlRefused(f"callback URL: address {reason}")
    return destination


def refused_address(
    address: str | IPv4Address | IPv6Address, policy: EgressPolicy, *, private: bool = False
) -> str | None:
    """Say why an address may not be dialled, or None if it may.

    Args:
        address: an address as a resolver gave it; what is no address is refused.
        policy: `allow_private` opens loopback, RFC 1918 and unique local addresses.
        private: open those for this one call, because a rule for the destination says so.
    """
    try:
        address = ip_address(address)
    except ValueError:
        return f"{str(address)[:50]!r} is not an IP address"
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        # It names an interface of this machine, and would have to be looked up once more.
        return f"{address} may not be called: it has a zone"
    entry = denied_range(address)
    if entry is None or (entry.private and (private or policy.allow_private)):
        return None
    return f"{address} may not be called: {entry.reason}"


def _is_address(host: str) -> bool:
    return ":" in host or _ENDS_IN_NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _is_usual_port(port: int) -> bool:
    return port in {80, 443} or port >= _FIRST_UNPRIVILEGED_PORT


def _scheme_and_authority(raw: str) -> tuple[str, str]:
    if len(raw) > CALLBACK_URL_BYTES:
        raise UrlRefused(f"callback URL: longer than {CALLBACK_URL_BYTES} bytes")
    if _PRINTABLE.fullmatch(raw) is None:
        raise UrlRefused(
            "callback URL: must be printable ASCII without spaces; percent-encode the rest"
        )
    if "\\" in raw:
        raise UrlRefused("callback URL: must not hold a backslash")
    if "#" in raw:
        raise UrlRefused("callback URL: must not have a fragment")
    match = _URL.fullmatch(raw)
    if match is None or match[1].lower() not in _DEFAULT_PORTS:
        raise UrlRefused("callback URL: must begin with http:// or https://")
    scheme, authority = match[1].lower(), match[2]
    if "@" in authority:
        raise UrlRefused("callback URL: must not hold a user name or password")
    return scheme, authority


def _host_and_port(authority: str, default_port: int) -> tuple[str, int]:
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        host += bracket
    else:
        host, colon, digits = authority.partition(":")
        rest = colon + digits
    if not rest:
        return host, default_port
    digits = rest[1:]
    if rest[0] != ":" or not digits.isdecimal() or len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise UrlRefused("callback URL: the port must be a number from 1 to 65535")
    return host, int(digits)


def _normalised_host(host: str) -> str:
    """Return a host name in lower case without its final dot, or the canonical IP address."""
    if host.startswith("["):
        return _ipv6(host)
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    # The rule of browsers: a host whose last label is a number is an IPv4 address or nothing.
    if _ENDS_IN_NUMBER.fullmatch(labels[-1]):
        return str(_ipv4(labels))
    if not host or len(host) > _HOST_NAME_BYTES or not all(map(_NAME_LABEL.fullmatch, labels)):
        raise UrlRefused("callback URL: the host is neither a host name nor an IP address")
    for label in labels:
        if label.startswith("xn--"):
            _check_international_label(label)
    return host


def _ipv6(host: str) -> str:
    try:
        # A zone id (`%eth0`) names an interface of this machine.
        if "%" in host or not host.endswith("]"):
            raise ValueError(host)
        address = IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise UrlRefused("callback URL: the host is not an IPv6 address") from None
    # The form that is dialled, so that one receiver is one destination.
    return str(address.ipv4_mapped or address)


def _ipv4(parts: list[str]) -> IPv4Address:
    """Read an address as `inet_aton` does: one to four numbers, the last one filling the rest."""
    numbers: list[int] = []
    for part in parts:
        match = _IPV4_NUMBER.fullmatch(part)
        if match is None:
            raise UrlRefused("callback URL: the host is not an IPv4 address")
        if match[1]:
            numbers.append(int(match[1], 16))
        else:
            numbers.append(int(part, 8 if match[2] else 10))
    *leading, last = numbers
    if len(numbers) > 4 or any(n > 255 for n in leading) or last >= 256 ** (5 - len(numbers)):
        raise UrlRefused("callback URL: the host is not an IPv4 address")
    for position, number in enumerate(leading):
        last += number << (8 * (3 - position))
    return IPv4Address(last)


def _check_international_label(label: str) -> None:
    """Refuse a label that some resolver or proxy on the way might read as another one.

    `xn--...` that decodes to plain ASCII, or to fullwidth digits and dots, becomes another host
    once it is decoded and normalised; so may one with invisible characters.
    """
    try:
        decoded = label.removeprefix("xn--").encode().decode("punycode")
    except UnicodeError:
        decoded = ""
    normalised = unicodedata.normalize("NFKC", decoded).lower()
    sound = decoded.isprintable() and not decoded.isascii() and "\u3002" not in decoded
    if not sound or normalised != decoded:
        raise UrlRefused(f"callback URL: {label!r} is not a valid international host label")

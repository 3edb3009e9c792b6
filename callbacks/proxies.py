"""Through which proxy a callback goes, where an operator wants the environment's proxies used."""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from yarl import URL

from callbacks.egress import Destination

__all__ = ["Proxies", "Proxy", "read_proxies"]

_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. Its credentials are kept apart from its URL, which is fit for logs and errors."""

    url: URL
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What the proxy, and nobody else, has to be sent."""
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of callbacks; without any, everything goes direct.

    Args:
        http: for `http` URLs.
        https: for `https` URLs, through a tunnel (CONNECT).
        direct: what goes direct all the same.
    """

    http: Proxy | None = None
    https: Proxy | None = None
    direct: "tuple[_Exemption, ...]" = ()

    def proxy_for(self, destination: Destination) -> Proxy | None:
        """Return the proxy that a callback to this destination goes through, None for none."""
        proxy = self.https if destination.scheme == "https" else self.http
        if proxy is None or any(exemption.covers(destination) for exemption in self.direct):
            return None
        return proxy

    @property
    def urls(self) -> list[str]:
        """The proxies in use, without credentials, for people to read."""
        return sorted({str(proxy.url) for proxy in (self.http, self.https) if proxy is not None})


@dataclass(frozen=True, slots=True)
class _Exemption:
    """One entry of NO_PROXY: a network, a domain with all its names, or neither: every host."""

    domain: str | None = None
    network: IPv4Network | IPv6Network | None = None
    port: int | None = None

    def covers(self, destination: Destination) -> bool:
        if self.port not in {None, destination.port}:
            return False
        if self.network is not None:
            address = destination.address
            return address is not None and address in self.network
        if self.domain is None:
            return True
        return f".{destination.host}".endswith(f".{self.domain}")


def read_proxies(environment: Mapping[str, str]) -> Proxies:
    """Read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY as other programs do.

    The names in lower case come first. A proxy is `http://` (which may be left out) or `https://`,
    and may hold a user name and password. NO_PROXY lists hosts, which stand for their subdomains as
    well, addresses, networks (`10.0.0.0/8`) and `*`; hosts and addresses may have a port.

    Raises:
        ValueError: a proxy cannot be used; the message names the variable and never its value.
    """

    def value(name: str) -> str:
        return environment.get(name.lower(), environment.get(name, "")).strip()

    def proxy(name: str) -> Proxy | None:
        for variable in (name, "ALL_PROXY"):
            if text := value(variable):
                return _proxy(variable, text)
        return None

    entries = value("NO_PROXY").lower().replace(",", " ").split()
    return Proxies(
        http=proxy("HTTP_PROXY"),
        https=proxy("HTTPS_PROXY"),
        direct=tuple(map(_exemption, entries)),
    )


def _proxy(variable: str, text: str) -> Proxy:
    # Errors of the parser quote what they could not read, the password among it.
    try:
        url = URL(text if "://" in text else f"http://{text}")
        host, port = url.host, url.port
    except ValueError:
        raise ValueError(f"{variable} is not the URL of a proxy") from None
    if url.scheme not in {"http", "https"}:
        raise ValueError(f"{variable}: a proxy is reached over http or https")
    if not host or not port:
        raise ValueError(f"{variable} is not the URL of a proxy")
    authorization = None
    if url.user is not None or url.password is not None:
        credentials = f"{url.user or ''}:{url.password or ''}"
        authorization = f"Basic {b64encode(credentials.encode()).decode()}"
    return Proxy(URL.build(scheme=url.scheme, host=host, port=port), authorization)


def _exemption(entry: str) -> _Exemption:
    if entry == "*":
        return _Exemption()
    try:
        return _Exemption(network=ip_network(entry, strict=False))
    except ValueError:
        pass  # not a bare address or network
    match = _HOST_AND_PORT.fullmatch(entry)
    if match is None:
        return _Exemption(domain=entry)  # no host is called so
    host, port = match[1], None if match[2] is None else int(match[2])
    try:
        return _Exemption(network=ip_network(host.strip("[]")), port=port)
    except ValueError:
        return _Exemption(domain=host.lstrip("*").strip("."), port=port)

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callbacks.deny_table import _IPV4
from callbacks.egress import (
    AllowRule,
    Destination,
    EgressPolicy,
    check_callback_url,
    refused_address,
)
from callbacks.errors import UrlRefused

PUBLIC = EgressPolicy()
PRIVATE = EgressPolicy(allow_private=True)

ACCEPTED = [
    ("http://example.com", "http://example.com:80"),
    ("https://example.com/", "https://example.com:443"),
    ("HTTPS://EXAMPLE.com/Path?Q=1", "https://example.com:443"),
    ("https://example.com./cb", "https://example.com:443"),
    ("https://example.com:8443/cb", "https://example.com:8443"),
    ("http://example.com:65535/", "http://example.com:65535"),
    ("http://example.com:1024/", "http://example.com:1024"),
    ("http://example.com:443/", "http://example.com:443"),
    ("http://example.com?x=1", "http://example.com:80"),
    ("http://example.com/?u=http://a@b/", "http://example.com:80"),
    ("http://example.com/a%0d%0ab", "http://example.com:80"),
    ("http://my_host.internal:8080/", "http://my_host.internal:8080"),
    ("http://localhost:8080/", "http://localhost:8080"),
    ("http://a-1.b/", "http://a-1.b:80"),
    ("http://3com.example/", "http://3com.example:80"),
    ("http://1.2.3.4.example/", "http://1.2.3.4.example:80"),
    ("http://xn--bcher-kva.example/", "http://xn--bcher-kva.example:80"),
    ("http://xn--strae-oqa.example/", "http://xn--strae-oqa.example:80"),
    ("http://8.8.8.8/", "http://8.8.8.8:80"),
    ("http://8.8.8.8./", "http://8.8.8.8:80"),
    ("http://134744072/", "http://8.8.8.8:80"),
    ("http://0x08080808:8080/", "http://8.8.8.8:8080"),
    ("http://010.8.8.8/", "http://8.8.8.8:80"),
    ("http://8.8.2056/", "http://8.8.8.8:80"),
    ("http://[2606:4700:4700::1111]/", "http://[2606:4700:4700::1111]:80"),
    ("http://[2606:4700:4700:0:0:0:0:1111]:8080/", "http://[2606:4700:4700::1111]:8080"),
    ("http://[::ffff:8.8.8.8]/", "http://8.8.8.8:80"),
]


@pytest.mark.parametrize(("url", "name"), ACCEPTED)
def test_accepts(url: str, name: str) -> None:
    assert check_callback_url(url, PUBLIC).name == name


OPENED = ["127.0.0.1", "127.8.9.1", "::1", "10.1.2.3", "172.31.255.255", "192.168.0.1", "fd12::1"]
OPENED += ["::ffff:10.0.0.1"]

STAYS_REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "100.64.0.1",
    "100.127.255.255",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.251",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::2",
    "::127.0.0.1",
    "::10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:20::1",
    "2001:1ff::1",
    "2001:db8::1",
    "2002:a00::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
    "fe80::1",
    "fe80::1%eth0",
    "::1%lo",
    "2606:4700::1111%eth0",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:42::42",
    "nonsense",
    "",
    "1.2.3.4.5",
]

PUBLIC_ADDRESSES = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.17",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "192.0.1.1",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "::ffff:8.8.8.8",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2a00:1450::1",
]


@pytest.mark.parametrize("address", OPENED)
def test_allow_private_opens(address: str) -> None:
    assert refused_address(address, PUBLIC) is not None
    assert refused_address(address, PRIVATE) is None
    assert refused_address(address, PUBLIC, private=True) is None
    assert refused_address(ipaddress.ip_address(address), PRIVATE) is None


@pytest.mark.parametrize("address", STAYS_REFUSED)
def test_stays_refused_when_private_addresses_are_open(address: str) -> None:
    assert refused_address(address, PUBLIC) is not None
    assert refused_address(address, PRIVATE) is not None
    assert refused_address(address, PRIVATE, private=True) is not None


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_public_addresses_pass(address: str) -> None:
    assert refused_address(address, PUBLIC) is None


@given(st.ip_addresses())
def test_what_the_standard_library_knows_to_be_local_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert refused_address(address, PUBLIC) is not None


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_gets_the_same_verdict(
    address: ipaddress.IPv4Address,
) -> None:
    a, b, c, d = address.packed
    number = int(address)
    spellings = [
        str(address),
        f"{address}.",
        f"{number}",
        f"{number:#x}",
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{c * 256 + d}",
        f"{a:#x}.0{b:o}.{c}.{d:#X}",
        f"[::ffff:{address}]",
    ]
    for spelling in spellings:
        if refused_address(address, PUBLIC) is None:
            assert check_callback_url(f"http://{spelling}/", PUBLIC).host == str(address)
        else:
            with pytest.raises(UrlRefused, match="may not be called"):
                check_callback_url(f"http://{spelling}/", PUBLIC)


DENIED_IPV4 = [str(entry.network) for entry in _IPV4]
EMBEDDING = ["::", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::", "fe80::5efe:0:0"]


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """An address that is denied, in some way that a resolver or a URL parser would read."""
    network = draw(st.sampled_from(DENIED_IPV4))
    address = draw(st.ip_addresses(network=network))
    number = int(address)
    kind = draw(st.sampled_from(["numbers", "mapped", "embedded", "6to4"]))
    if kind == "mapped":
        low = f"{number >> 16:x}:{number & 0xFFFF:x}"
        tail = draw(st.sampled_from([str(address), low, low.upper()]))
        zeros = draw(st.sampled_from(["::", "0:0:0:0:0:", "0000:0::0:", "::0:"]))
        return f"[{zeros}{draw(st.sampled_from(['ffff', 'FFFF', 'fFfF']))}:{tail}]"
    if kind == "embedded":
        prefix = int(ipaddress.IPv6Address(draw(st.sampled_from(EMBEDDING))))
        return f"[{ipaddress.IPv6Address(prefix + number)}]"
    if kind == "6to4":
        rest = draw(st.integers(0, 2**80 - 1))
        return f"[{ipaddress.IPv6Address((0x2002 << 112) + (number << 80) + rest)}]"
    parts = draw(st.integers(1, 4))
    numbers = [number >> 8 * (3 - position) & 0xFF for position in range(parts - 1)]
    numbers.append(number & (256 ** (5 - parts) - 1))
    forms = st.sampled_from(["{}", "0x{:x}", "0X{:X}", "0x000{:x}", "0{:o}", "0000{:o}"])
    written = [draw(forms).format(n) for n in numbers]
    return ".".join(written) + draw(st.sampled_from(["", "."]))


@given(
    st.sampled_from(["http", "https", "HTTP"]),
    spellings(),
    st.sampled_from(["", ":80", ":443", ":8080", ":08080"]),
    st.sampled_from(["", "/", "?x", "/@example.com"]),
)
def test_no_spelling_makes_a_denied_address_acceptable(
    scheme: str, spelling: str, port: str, rest: str
) -> None:
    with pytest.raises(UrlRefused, match="may not be called"):
        check_callback_url(f"{scheme}://{spelling}{port}{rest}", PUBLIC)


URL_PIECES = st.lists(
    st.sampled_from(["http://", "https:", "//", "/", "?", "#", "@", ":", "[", "]", "%", "\\", "."])
    | st.sampled_from(["127.0.0.1", "::1", "0x7f", "example", "com", "xn--", "80", "443"])
    | st.sampled_from([" ", "\n", "é", "\uff11", "\u3002"])
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@given(URL_PIECES)
def test_total_for_any_text(raw: str) -> None:
    try:
        destination = check_callback_url(raw, PUBLIC)
    except UrlRefused:
        return
    assert destination.scheme in {"http", "https"}
    assert destination.host == destination.host.lower()
    # The normal form is its own normal form, or two spellings would be two destinations.
    assert check_callback_url(destination.name, PUBLIC) == destination


def test_the_message_does_not_repeat_the_url() -> None:
    with pytest.raises(UrlRefused) as caught:
        check_callback_url("http://user:secret@example.com/?key=secret", PUBLIC)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "url", "allowed"),
    [
        ((AllowRule("hooks.example"),), "https://hooks.example/", True),
        ((AllowRule("Hooks.Example."),), "https://HOOKS.example./", True),
        ((AllowRule("hooks.example"),), "http://hooks.example/", False),
        ((AllowRule("hooks.example", insecure=True),), "http://hooks.example/", True),
        ((AllowRule("hooks.example"),), "https://other.example/", False),
        ((AllowRule("hooks.example"),), "https://x.hooks.example/", False),
        ((AllowRule("*.example"),), "https://a.b.example/", True),
        ((AllowRule("*.example"),), "https://example/", False),
        ((AllowRule("*.example"),), "https://badexample/", False),
        ((AllowRule("*"),), "https://anything.example:8443/", True),
        ((AllowRule("*"),), "https://anything.example:25/", False),
        ((AllowRule("*", port=25),), "https://anything.example:25/", True),
        ((AllowRule("*", port=25),), "https://anything.example/", False),
        ((AllowRule("a.example", port=81), AllowRule("*")), "https://b.example:81/", False),
        ((AllowRule("a.example", port=81), AllowRule("*")), "https://b.example/", True),
        ((AllowRule("*"),), "https://10.0.0.1/", False),
        ((AllowRule("10.0.0.1"),), "https://10.0.0.1/", False),
        ((AllowRule("10.0.0.1", private=True),), "https://10.0.0.1/", True),
        ((AllowRule("10.0.0.1", private=True),), "https://0xa000001/", True),
        ((AllowRule("10.0.0.1", private=True), AllowRule("*")), "https://10.0.0.2/", False),
        ((AllowRule("::1", private=True),), "https://[0::1]/", True),
        ((AllowRule("[::1]", private=True),), "https://[::1]/", True),
        ((AllowRule("*", private=True),), "https://169.254.169.254/", False),
    ],
)
def test_allow_rules(rules: tuple[AllowRule, ...], url: str, allowed: bool) -> None:
    policy = EgressPolicy(allow=rules)
    if allowed:
        check_callback_url(url, policy)
    else:
        with pytest.raises(UrlRefused):
            check_callback_url(url, policy)


@pytest.mark.parametrize(
    "host",
    ["", "*.", "a*b", "*.*.example", "a b", "http://a", "1.2.3.4.5", "*.0.0.1", "*.[::1]", "*.::1"],
)
def test_an_allow_rule_with_a_malformed_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="allow rule"):
        AllowRule(host)


def test_an_allow_rule_with_an_impossible_port_is_refused() -> None:
    with pytest.raises(ValueError, match="not a port"):
        AllowRule("a", port=0)


def test_a_destination_knows_whether_it_is_an_address() -> None:
    named = Destination(scheme="https", host="example.com", port=443)
    literal = Destination(scheme="https", host="2606:4700::1", port=443)
    assert named.address is None
    assert literal.address == ipaddress.ip_address("2606:4700::1")

"""What an attacker, or a careless caller, may give as a callback URL, and what has to come of it.

One row is one URL, what the resolver says about its host, the policy, and the outcome: refused from
its text alone, refused when its addresses are known, or dialled to exactly one address with exactly
one `Host` and server name. `test_egress_vectors.py` drives every row through the real sender.
"""

from dataclasses import dataclass

from callbacks.egress import AllowRule, EgressPolicy

__all__ = ["VECTORS", "Dialled", "RefusedAtDial", "RefusedAtStart", "Vector"]

PUBLIC = EgressPolicy()
PRIVATE = EgressPolicy(allow_private=True)


@dataclass(frozen=True)
class RefusedAtStart:
    """Refused without asking a resolver, for a reason that says this."""

    says: str


@dataclass(frozen=True)
class RefusedAtDial:
    """Refused for an address, before any socket is connected, for a reason that says this."""

    says: str


@dataclass(frozen=True)
class Dialled:
    """One connection, to this address, for this `Host` (as written, port aside) and server name."""

    address: str
    host: str
    server_name: str | None = None


@dataclass(frozen=True)
class Vector:
    """One row; `{port}` and `{tls}` in the URL are the ports of the listeners of the test."""

    url: str
    outcome: RefusedAtStart | RefusedAtDial | Dialled
    # What the resolver answers at each look-up in turn, to the last one ever after.
    answers: tuple[tuple[str, ...], ...] = ()
    policy: EgressPolicy = PUBLIC


def at_start(url: str, says: str, policy: EgressPolicy = PUBLIC) -> Vector:
    return Vector(url, RefusedAtStart(says), policy=policy)


def at_dial(
    addresses: str, says: str, policy: EgressPolicy = PUBLIC, url: str = "http://hook.example/"
) -> Vector:
    return Vector(url, RefusedAtDial(says), (tuple(addresses.split(";")),), policy)


def dialled(
    url: str,
    host: str,
    *,
    address: str = "127.0.0.1",
    server_name: str | None = None,
    answers: tuple[tuple[str, ...], ...] = (("127.0.0.1",),),
    policy: EgressPolicy = PRIVATE,
) -> Vector:
    return Vector(url, Dialled(address, host, server_name), answers, policy)


def _punycode(label: str) -> str:
    return f"xn--{label.encode('punycode').decode()}"


INSIDE = EgressPolicy(
    allow=(
        AllowRule("inside.example", insecure=True, private=True),
        AllowRule("*.pool.example", private=True),
        AllowRule("hook.example", insecure=True),
        AllowRule("odd.example", port=25),
    )
)
EVERYTHING_INSIDE = EgressPolicy(allow=(AllowRule("*", insecure=True, private=True),))

VECTORS = [
    # --- no URL, or none that can be called ---
    at_start("", "http://"),
    at_start("example.com/cb", "http://"),
    at_start("//example.com/cb", "http://"),
    at_start("ftp://example.com/", "http://"),
    at_start("file:///etc/passwd", "http://"),
    at_start("gopher://127.0.0.1:6379/_FLUSHALL", "http://"),
    at_start("unix:///var/run/docker.sock", "http://"),
    at_start("http+unix://%2Fvar%2Frun%2Fdocker.sock/", "http://"),
    at_start("http:/example.com", "http://"),
    at_start("http:example.com", "http://"),
    at_start("javascript://example.com/%0aalert(1)", "http://"),
    at_start("http://" + "a" * 1000, "longer than 1000"),
    # --- characters that readers delete, fold or split at ---
    at_start("http://example.com/a b", "printable"),
    at_start(" http://example.com/", "printable"),
    at_start("http://example.com/\r\nX: y", "printable"),
    at_start("http://exam\r\nple.com/", "printable"),
    at_start("ht\ttp://example.com/", "printable"),
    at_start("http://example.com\n", "printable"),
    at_start("http://example.com/\x00", "printable"),
    at_start("http://example.com/\x7f", "printable"),
    at_start("http://example.com\\@127.0.0.1/", "backslash"),
    at_start("http:\\\\127.0.0.1\\", "backslash"),
    at_start("http://example.com/#x", "fragment"),
    at_start("http://example.com#@127.0.0.1/", "fragment"),
    at_start("http://127.0.0.1#.example.com/", "fragment"),
    # --- user names ---
    at_start("http://user@example.com/", "user name"),
    at_start("http://user:pass@example.com/", "user name"),
    at_start("http://@example.com/", "user name"),
    at_start("http://:@example.com/", "user name"),
    at_start("http://a@b@example.com/", "user name"),
    at_start("http://example.com:80@127.0.0.1/", "user name"),
    at_start("http://example.com%2f@127.0.0.1/", "user name"),
    # --- hosts that are neither name nor address ---
    at_start("http:///cb", "neither"),
    at_start("http://:80/", "neither"),
    at_start("http://?@127.0.0.1/", "neither"),
    at_start("http://./", "neither"),
    at_start("http://example..com/", "neither"),
    at_start("http://.example.com/", "neither"),
    at_start("http://example.com../", "neither"),
    at_start("http://-a.example/", "neither"),
    at_start("http://a-.example/", "neither"),
    at_start("http://exa%6dple.com/", "neither"),
    at_start("http://%31%32%37.0.0.1.example/", "neither"),
    at_start("http://127.0.0.1%00.example/", "neither"),
    at_start("http://127.0.0.1,example.com/", "neither"),
    at_start("http://127.0.0.1;.example/", "neither"),
    at_start("http://" + "a" * 64 + ".example/", "neither"),
    at_start("http://" + "a." * 127 + "aa/", "neither"),
    at_start("http://%31%32%37.0.0.1/", "not an IPv4"),
    at_start("http://1.2.3.4.5/", "not an IPv4"),
    at_start("http://256.1.1.1/", "not an IPv4"),
    at_start("http://1.2.65536/", "not an IPv4"),
    at_start("http://4294967296/", "not an IPv4"),
    at_start("http://08.1.1.1/", "not an IPv4"),
    at_start("http://example.0x7f/", "not an IPv4"),
    at_start("http://127.0.0.0x/", "not an IPv4"),
    at_start("http://1..1/", "not an IPv4"),
    at_start("http://[::1/", "not an IPv6"),
    at_start("http://[]/", "not an IPv6"),
    at_start("http://[1.2.3.4]/", "not an IPv6"),
    at_start("http://[v1.fe80::a]/", "not an IPv6"),
    at_start("http://[fe80::1%25eth0]/", "not an IPv6"),
    at_start("http://[fe80::1%eth0]/", "not an IPv6"),
    at_start("http://[::ffff:0x7f.0.0.1]/", "not an IPv6"),
    at_start("http://::1/", "port"),
    at_start("http://[::1]x/", "port"),
    # --- international names, raw and encoded ---
    at_start("http://bücher.example/", "printable"),
    at_start("http://\uff11\uff12\uff17.0.0.1/", "printable"),  # fullwidth digits
    at_start("http://127\u30020\u30020\u30021/", "printable"),  # ideographic full stops
    at_start("http://\u2460\u2461\u2466.0.0.1/", "printable"),  # circled digits
    at_start("http://loc\u00adalhost/", "printable"),  # a soft hyphen
    at_start("http://\u2100.example/", "printable"),  # a/c
    at_start("http://xn--a.example/", "international"),
    at_start("http://xn--99999999.example/", "international"),
    at_start("http://xn--127-.example/", "neither"),
    at_start("http://xn--localhost-.example/", "neither"),
    at_start(f"http://{_punycode(chr(0xFF11) + chr(0xFF12))}.example/", "international"),
    at_start(f"http://{_punycode('a' + chr(0x3002) + 'b')}.example/", "international"),
    at_start(f"http://{_punycode('Ünder')}.example/", "international"),
    at_start(f"http://{_punycode('ad' + chr(0x200D) + 'min')}.example/", "international"),
    # --- ports ---
    at_start("http://example.com:/", "port"),
    at_start("http://example.com:0/", "port"),
    at_start("http://example.com:65536/", "port"),
    at_start("http://example.com:65616/", "port"),  # 80, where 16 bits are kept
    at_start("http://example.com:99999999999999999999/", "port"),
    at_start("http://example.com:-80/", "port"),
    at_start("http://example.com:+80/", "port"),
    at_start("http://example.com:8a/", "port"),
    at_start("http://example.com:0x50/", "port"),
    at_start("http://example.com:80:80/", "port"),
    at_start("http://example.com:22/", "port 22 is not allowed"),
    at_start("http://example.com:25/", "port 25 is not allowed"),
    at_start("http://example.com:00025/", "port 25 is not allowed"),
    at_start("https://example.com:1023/", "port 1023 is not allowed"),
    # --- addresses, in every way of writing them ---
    at_start("http://127.0.0.1/", "loopback"),
    at_start("https://127.0.0.1/", "loopback"),
    at_start("http://127.0.0.1:08080/", "loopback"),
    at_start("http://127.1/", "loopback"),
    at_start("http://127.0.0.1./", "loopback"),
    at_start("http://127.255.255.254/", "loopback"),
    at_start("http://2130706433/", "loopback"),
    at_start("http://2130706433./", "loopback"),
    at_start("http://0x7f000001/", "loopback"),
    at_start("http://0X7F.1/", "loopback"),
    at_start("http://0177.0.0.01/", "loopback"),
    at_start("http://017700000001/", "loopback"),
    at_start("http://0000000000177.0.0.1/", "loopback"),
    at_start("http://0x0000007f.0.0x1/", "loopback"),
    at_start("http://0/", "this network"),
    at_start("http://0.0.0.0:8080/", "this network"),
    at_start("http://10.0.0.1/", "private"),
    at_start("http://10.1/", "private"),
    at_start("http://172.16.0.1/", "private"),
    at_start("http://192.168.1.1/", "private"),
    at_start("http://2852039166/", "link-local"),
    at_start("http://169.254.169.254/latest/meta-data/", "link-local"),
    at_start("http://0xa9fea9fe/", "link-local"),
    at_start("http://0251.0376.0251.0376/", "link-local"),
    at_start("http://169.254.43518/", "link-local"),
    at_start("http://100.100.100.200/", "carriers"),
    at_start("http://168.63.129.16/", "Azure"),
    at_start("http://255.255.255.255/", "reserved"),
    at_start("http://224.0.0.1/", "multicast"),
    at_start("http://[::1]/", "loopback"),
    at_start("http://[0:0:0:0:0:0:0:1]/", "loopback"),
    at_start("http://[::]/", "unspecified"),
    at_start("http://[::127.0.0.1]/", "embedded"),
    at_start("http://[::ffff:127.0.0.1]/", "loopback"),
    at_start("http://[::ffff:7f00:1]/", "loopback"),
    at_start("http://[0:0:0:0:0:FFFF:7F00:0001]/", "loopback"),
    at_start("http://[::ffff:a9fe:a9fe]/", "link-local"),
    at_start("http://[64:ff9b::a9fe:a9fe]/", "NAT64"),
    at_start("http://[64:ff9b::169.254.169.254]/", "NAT64"),
    at_start("http://[2002:7f00:1::]/", "6to4"),
    at_start("http://[2001::1]/", "Teredo"),
    at_start("http://[fe80::1]/", "link-local"),
    at_start("http://[fec0::1]/", "site-local"),
    at_start("http://[fd00:ec2::254]/", "AWS"),
    at_start("http://[fc00::1]/", "private"),
    # --- the policy, where the text is enough ---
    at_start("http://169.254.169.254/", "link-local", PRIVATE),
    at_start("http://[fd00:ec2::254]/", "AWS", PRIVATE),
    at_start("http://169.254.169.254/", "link-local", EVERYTHING_INSIDE),
    at_start("https://other.example/", "not an allowed destination", INSIDE),
    at_start("https://inside.example.evil.example/", "not an allowed destination", INSIDE),
    at_start("https://evilinside.example/", "not an allowed destination", INSIDE),
    at_start("https://pool.example/", "not an allowed destination", INSIDE),
    at_start("http://a.pool.example/", "not an allowed destination", INSIDE),
    at_start("https://odd.example/", "not an allowed destination", INSIDE),
    at_start("https://hook.example:25/", "port 25 is not allowed", INSIDE),
    at_start("https://10.0.0.1/", "not an allowed destination", INSIDE),
    # --- names that lead to a denied address ---
    at_dial("127.0.0.1", "loopback"),
    at_dial("127.0.0.1", "loopback", url="http://localhost/"),
    at_dial("127.0.0.1", "loopback", url="http://LOCALHOST./"),
    at_dial("127.0.0.1", "loopback", url="http://127.0.0.1.nip.example/"),
    at_dial("127.0.0.1", "loopback", url="https://xn--bcher-kva.example/"),
    at_dial("169.254.169.254", "link-local", url="http://metadata.google.internal/"),
    at_dial("127.53.53.53", "loopback"),
    at_dial("::1", "loopback"),
    at_dial("10.0.0.1", "private"),
    at_dial("172.31.255.255", "private"),
    at_dial("192.168.1.1", "private"),
    at_dial("169.254.170.2", "link-local"),
    at_dial("100.100.100.200", "carriers"),
    at_dial("168.63.129.16", "Azure"),
    at_dial("192.0.0.192", "protocols"),
    at_dial("0.0.0.0", "this network"),
    at_dial("255.255.255.255", "reserved"),
    at_dial("224.0.0.1", "multicast"),
    at_dial("198.18.0.1", "benchmarking"),
    at_dial("203.0.113.1", "documentation"),
    at_dial("192.88.99.1", "6to4"),
    at_dial("::", "unspecified"),
    at_dial("::ffff:127.0.0.1", "loopback"),
    at_dial("::ffff:169.254.169.254", "link-local"),
    at_dial("::7f00:1", "embedded"),
    at_dial("::ffff:0:7f00:1", "translated"),
    at_dial("64:ff9b::7f00:1", "NAT64"),
    at_dial("64:ff9b:1::a00:1", "NAT64"),
    at_dial("2002:a9fe:a9fe::1", "6to4"),
    at_dial("2001:0:4136:e378:8000:63bf:3fff:fdd2", "Teredo"),
    at_dial("fe80::1", "link-local"),
    at_dial("fec0::1", "site-local"),
    at_dial("fd00::1", "private"),
    at_dial("ff02::1", "multicast"),
    at_dial("2001:db8::1", "documentation"),
    at_dial("100::1", "discarded"),
    at_dial("4000::1", "not a global unicast"),
    # --- one denied address among good ones ---
    at_dial("8.8.8.8;127.0.0.1", "loopback"),
    at_dial("127.0.0.1;8.8.8.8", "loopback"),
    at_dial("2606:4700::1111;8.8.8.8;::1", "loopback"),
    at_dial("127.0.0.1;169.254.169.254", "link-local", PRIVATE),
    # --- answers that are no addresses ---
    at_dial("localhost", "not an IP address"),
    at_dial("", "not an IP address"),
    at_dial("127.1", "not an IP address"),
    at_dial("2130706433", "not an IP address"),
    at_dial("0x7f.0.0.1", "not an IP address"),
    at_dial("0177.0.0.1", "not an IP address"),
    at_dial("127.0.0.1 ", "not an IP address"),
    at_dial("127.0.0.1\x00", "not an IP address"),
    at_dial("\uff11\uff12\uff17.0.0.1", "not an IP address"),
    at_dial("8.8.8.8/32", "not an IP address"),
    at_dial("fe80::1%eth0", "zone"),
    at_dial("2606:4700::1111%lo", "zone"),
    at_dial("::1%lo", "zone", PRIVATE),
    # --- the policy, where the address is needed ---
    at_dial("127.0.0.1", "loopback", INSIDE),
    at_dial("10.0.0.1", "private", INSIDE, "https://hook.example:8443/"),
    at_dial("10.0.0.1", "private", INSIDE, "https://odd.example:25/"),
    at_dial("169.254.169.254", "link-local", INSIDE, "http://inside.example/"),
    at_dial("169.254.169.254", "link-local", PRIVATE),
    at_dial("::ffff:169.254.169.254", "link-local", EVERYTHING_INSIDE),
    # --- what may be called is dialled as judged, under its own name ---
    dialled("http://hook.example:{port}/", "hook.example"),
    dialled("HTTP://hook.example:{port}/", "hook.example"),
    dialled("http://HOOK.Example:{port}/", "HOOK.Example"),
    dialled("http://hook.example.:{port}/", "hook.example"),
    dialled("http://localhost:{port}/", "localhost"),
    dialled("http://my_host.internal:{port}/", "my_host.internal"),
    dialled("http://1.2.3.4.example:{port}/", "1.2.3.4.example"),
    dialled("http://xn--bcher-kva.example:{port}/", "xn--bcher-kva.example"),
    dialled("http://hook.example:{port}?u=http://a@b/", "hook.example"),
    dialled("http://hook.example:{port}/@127.0.0.2/", "hook.example"),
    dialled("http://hook.example:{port}//127.0.0.2/..//", "hook.example"),
    dialled("http://hook.example:{port}/%0d%0aHost:%20evil", "hook.example"),
    dialled("http://127.0.0.1:{port}/", "127.0.0.1"),
    dialled("http://127.1:{port}/", "127.0.0.1"),
    dialled("http://2130706433:{port}/", "127.0.0.1"),
    dialled("http://0x7f.1:{port}/", "127.0.0.1"),
    dialled("http://0177.0.0.01:{port}/", "127.0.0.1"),
    dialled("http://127.0.0.1.:{port}/", "127.0.0.1"),
    dialled("http://[::ffff:127.0.0.1]:{port}/", "127.0.0.1"),
    dialled("http://[::FFFF:7f00:1]:{port}/", "127.0.0.1"),
    dialled("http://[::1]:{port}/", "[::1]", address="::1"),
    dialled("http://[0:0:0::0:1]:{port}/", "[::1]", address="::1"),
    dialled("http://hook.example:{port}/", "hook.example", address="::1", answers=(("::1",),)),
    dialled(
        "http://hook.example:{port}/",
        "hook.example",
        address="::ffff:127.0.0.1",
        answers=(("::ffff:127.0.0.1",),),
    ),
    # A name that changes its mind after it was judged gains nothing.
    dialled(
        "http://hook.example:{port}/",
        "hook.example",
        answers=(("127.0.0.1",), ("169.254.169.254",)),
    ),
    dialled("http://inside.example:{port}/", "inside.example", policy=INSIDE),
    dialled("http://INSIDE.example.:{port}/", "INSIDE.example", policy=INSIDE),
    dialled("https://a.pool.example:{tls}/", "a.pool.example", server_name="a.pool.example"),
    dialled(
        "https://a.pool.example:{tls}/",
        "a.pool.example",
        server_name="a.pool.example",
        policy=INSIDE,
    ),
    dialled("https://A.Pool.Example.:{tls}/", "A.Pool.Example", server_name="A.Pool.Example"),
    dialled(
        "https://a.pool.example:{tls}/",
        "a.pool.example",
        address="::1",
        server_name="a.pool.example",
        answers=(("::1",), ("fe80::1",)),
    ),
    dialled("https://2130706433:{tls}/", "127.0.0.1"),
    dialled("https://[::1]:{tls}/", "[::1]", address="::1"),
]

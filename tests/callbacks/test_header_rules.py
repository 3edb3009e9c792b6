import pytest
from hypothesis import given
from hypothesis import strategies as st

from callbacks.errors import HeaderRefused
from callbacks.header_rules import check_callback_headers, is_sent, sent_value

FORBIDDEN = [
    "Host",
    "host",
    "Content-Type",
    "content-length",
    "Content-Encoding",
    "Content-Anything",
    "Transfer-Encoding",
    "Connection",
    "Keep-Alive",
    "TE",
    "Trailer",
    "Expect",
    "Upgrade",
    "Proxy-Authorization",
    "Proxy-Connection",
    "Nexus-Link",
    "Nexus-Operation-State",
    "nexus-operation-token",
    "Nexus-Operation-",
    "webhook-id",
    "Webhook-Signature",
    "Nexus_Link",
    "transfer_encoding",
    "webhook_signature",
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_caller_may_not_speak_for_the_sender_or_the_completion(name: str) -> None:
    with pytest.raises(HeaderRefused, match="may not be set"):
        check_callback_headers({name: "x"})


@pytest.mark.parametrize(
    "name", ["Token", "authorization", "Temporal-Callback-Token", "x-webhook-id", "cookie", "Tea"]
)
def test_everything_else_is_the_callers(name: str) -> None:
    check_callback_headers({name: 'v1 {"v":1,"d":"CiQw=="}'})


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é", "a\x00", "(a)", 'a"b', "a/b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(HeaderRefused, match="not a valid header name"):
        check_callback_headers({name: "x"})


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\x00", "\x7f", " a", "a ", "a\t", "€"])
def test_bad_values(value: str) -> None:
    with pytest.raises(HeaderRefused, match="not a valid header value"):
        check_callback_headers({"token": value})


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(HeaderRefused, match="neither ASCII nor UTF-8"):
        check_callback_headers({"token": b"caf\xe9".decode("latin-1")})


def test_a_message_never_holds_the_value() -> None:
    for headers in ({"token": "secret\x00"}, {"host": "secret"}, {"t": "secret" * 2000}):
        with pytest.raises(HeaderRefused) as caught:
            check_callback_headers(headers)
        assert "secret" not in str(caught.value)


def test_the_total_is_bounded() -> None:
    check_callback_headers({"a": "x" * 4095, "b": "x" * 4095})
    with pytest.raises(HeaderRefused, match="8193 bytes, 8192"):
        check_callback_headers({"a": "x" * 4095, "b": "x" * 4096})


@given(st.text(max_size=20).map(lambda text: text.encode().decode("latin-1")))
def test_accepted_values_leave_as_the_bytes_that_came(value: str) -> None:
    try:
        sent = sent_value("token", value)
    except HeaderRefused:
        return
    assert sent.encode() == value.encode("latin-1")
    assert "\r" not in sent
    assert "\n" not in sent


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=10)))
def test_total_for_any_headers(headers: dict[str, str]) -> None:
    try:
        check_callback_headers(headers)
    except HeaderRefused:
        return
    assert all(is_sent(name) for name in headers)


def test_the_completions_own_headers_are_sent_and_those_of_the_connection_are_not() -> None:
    assert is_sent("Nexus-Operation-State")
    assert is_sent("Content-Type")
    assert is_sent("webhook-id")
    assert not is_sent("Content-Length")
    assert not is_sent("Proxy-Authorization")

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_spec import (
    Headers,
    callback_headers,
    content_headers,
    is_header_name,
    is_header_value,
)
from nexus_spec.headers import LINK, OPERATION_TOKEN

RAW_PAIRS = st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=6)), max_size=8)
RAW = [
    (b"Content-Type", b"application/json"),
    (b"nexus-link", b"one"),
    (b"NEXUS-LINK", b"two"),
    (b"Nexus-Operation-Token", b"first"),
    (b"nexus-operation-token", b"second"),
    (b"x-name", b"\xe9"),
]


@pytest.mark.parametrize(
    "headers",
    [
        Headers.from_raw(RAW),
        Headers.from_raw(iter(RAW)),
        Headers.from_pairs([(n.decode(), v.decode("latin-1")) for n, v in RAW]),
    ],
    ids=["list", "iterator", "text"],
)
def test_names_match_in_any_case_and_the_first_value_wins(headers: Headers) -> None:
    assert headers[OPERATION_TOKEN] == headers["Nexus-Operation-Token"] == "first"
    assert headers.get("NEXUS-OPERATION-TOKEN") == "first"
    assert headers.get_all("Nexus-Link") == headers.get_all(LINK) == ["one", "two"]
    assert "CONTENT-TYPE" in headers
    assert headers["x-name"] == "é"
    assert list(headers) == ["content-type", "nexus-link", "nexus-operation-token", "x-name"]
    assert len(headers) == 4


def test_absent_headers() -> None:
    headers = Headers()
    assert headers.get("a") is None
    assert headers.get("a", "b") == "b"
    assert headers.get_all("a") == []
    assert "a" not in headers
    assert headers != Headers({"a": ""})
    with pytest.raises(KeyError):
        headers["a"]


def test_empty_value_is_a_value() -> None:
    headers = Headers({"A": "", "a": "later"})
    assert headers.get("A", "default") == headers["a"] == ""
    assert headers.get_all("a") == ["", "later"]


def test_only_ascii_folds() -> None:
    assert "nexus-link" not in Headers({"nexus-lin\u212a": "Kelvin"})
    assert Headers({"k": "v"}).get("\u212a") is None
    assert "\xe9" not in Headers.from_raw([(b"\xc9", b"")])


def test_returned_lists_are_the_callers_own() -> None:
    headers = Headers.from_raw(RAW)
    headers.get_all(LINK).clear()
    assert headers.get_all(LINK) == ["one", "two"]


def test_representation_hides_values() -> None:
    shown = repr(Headers({"authorization": "secret"}))
    assert "authorization" in shown
    assert "secret" not in shown


@given(RAW_PAIRS)
def test_raw_and_text_agree_and_lose_nothing(raw: list[tuple[bytes, bytes]]) -> None:
    headers = Headers.from_raw(raw)
    assert headers == Headers.from_pairs(
        [(n.lower().decode("latin-1"), v.decode("latin-1")) for n, v in raw]
    )
    assert sum(len(headers.get_all(name)) for name in headers) == len(raw)
    assert all(headers.get_all(name)[0] == value for name, value in headers.items())


@pytest.mark.parametrize("name", ["a", "X-Y_z", "!#$%&'*+-.^_`|~09"])
def test_tokens_are_header_names(name: str) -> None:
    assert is_header_name(name)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", "a\n", "\xe9", "\u0661", 'a"', "(a)", "a\0"]
)
def test_everything_else_is_no_header_name(name: str) -> None:
    assert not is_header_name(name)


@pytest.mark.parametrize("value", ["", "a", "a b\tc", '{"v":1,"d":"Ci=="}', "\xe9\x80\xff"])
def test_visible_latin_1_is_a_header_value(value: str) -> None:
    assert is_header_value(value)


@pytest.mark.parametrize(
    "value", [" ", " a", "a ", "\ta", "a\t", "a\n", "a\nb", "a\r", "\0", "\x7f", "\u0100", "\ud800"]
)
def test_everything_else_is_no_header_value(value: str) -> None:
    assert not is_header_value(value)


@given(st.text())
def test_header_values_pass_latin_1_and_stripping_unchanged(value: str) -> None:
    if is_header_value(value):
        assert value.encode("latin-1").strip(b" \t\r\n\0") == value.encode("latin-1")
        assert not set(value) & set("\r\n\0")


def test_callback_headers_lose_their_prefix() -> None:
    headers = Headers.from_pairs(
        [
            ("Nexus-Callback-Token", "x"),
            ("nexus-callback-Temporal-Callback-Token", '{"v":1}'),
            ("nexus-callback-token", "second"),
            ("nexus-callback-", "bare"),
            ("nexus-callbac", "no"),
            ("token", "no"),
        ]
    )
    assert callback_headers(headers) == {
        "token": "x",
        "temporal-callback-token": '{"v":1}',
        "": "bare",
    }


def test_content_headers_describe_the_body_and_not_its_length() -> None:
    headers = Headers.from_raw(
        [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"4"),
            (b"Content-Language", b"en"),
            (b"contents", b"no"),
        ]
    )
    assert content_headers(headers) == {
        "content-type": "application/json",
        "content-language": "en",
    }

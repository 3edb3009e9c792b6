import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus_spec import (
    InvalidWireValue,
    OperationAddress,
    check_name,
    check_token,
    operation_path,
    parse_operation_path,
)

NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200
).filter(lambda name: name not in (".", ".."))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/greet.v1/slow", OperationAddress("greet.v1", "slow", "operation")),
        (b"/a/b/cancel", OperationAddress("a", "b", "cancel")),
        (b"/a/b/%63ancel", OperationAddress("a", "b", "cancel")),
        (b"/a/b/result", OperationAddress("a", "b", "result")),
        (b"/a/b/t0k/cancel", OperationAddress("a", "b", "cancel", "t0k")),
        (b"/a/b/cancel/cancel", OperationAddress("a", "b", "cancel", "cancel")),
        (b"/a/cancel", OperationAddress("a", "cancel", "operation")),
        (b"/pay%2Fv1/b%2fcancel", OperationAddress("pay/v1", "b/cancel", "operation")),
        (b"/a+b/c%2Bd%20e", OperationAddress("a+b", "c+d e", "operation")),
        (b"/a%25b/%3F%23", OperationAddress("a%b", "?#", "operation")),
        ("/grüße/a".encode(), OperationAddress("grüße", "a", "operation")),
        (b"/gr%C3%BC%C3%9Fe/%00", OperationAddress("grüße", "\0", "operation")),
        (b"/./%2E%2E", OperationAddress(".", "..", "operation")),
        (b"/a/b/t%2F%20x/cancel", OperationAddress("a", "b", "cancel", "t/ x")),
    ],
)  # fmt: skip
def test_splits_the_escaped_path_before_unescaping(raw: bytes, expected: OperationAddress) -> None:
    assert parse_operation_path(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        *[b"", b"/", b"a/b", b"/a", b"/a/", b"//b", b"/a/b/", b"/a//cancel", b"/a/b/start"],
        *[b"/a/b/Cancel", b"/a/b/t/result", b"/a/b/c/d/cancel", b"/a/b/cancel/", b"/a/b//cancel"],
        *[b"/a%/b", b"/a%2/b", b"/a%zz/b", b"/a%u0041/b", b"/%ff/b", b"/%ED%A0%80/b", b"/\xff/b"],
        *[b"/a/b?x", b"/a/b#x", b"/a b/c", b"/a\n/b", b"/a/b\n", b"/a/b/t%0A/cancel"],
        *[b"/a/b/%E2%82%AC/cancel", b"/" + b"a" * 1001 + b"/b", b"/a/" + b"%61" * 1001],
        b"/a/b/" + b"t" * 4097 + b"/cancel",
    ],
)
def test_refuses_paths_of_another_shape(raw: bytes) -> None:
    with pytest.raises(InvalidWireValue):
        parse_operation_path(raw)


def test_longest_names_and_tokens_are_read() -> None:
    raw = b"/" + b"%61" * 1000 + b"/" + b"b" * 1000 + b"/" + b"t" * 4096 + b"/cancel"
    assert parse_operation_path(raw) == OperationAddress(
        "a" * 1000, "b" * 1000, "cancel", "t" * 4096
    )


@given(st.binary() | st.text(alphabet="/%aF2.0 c\xe9").map(str.encode))
@example(b"/" * 100_000)
@example(b"/a" * 100_000)
def test_any_bytes_are_an_address_or_refused(raw: bytes) -> None:
    try:
        address = parse_operation_path(raw)
    except InvalidWireValue:
        return
    assert address.service
    assert address.operation


@given(NAMES, NAMES, st.sampled_from(["operation", "cancel", "result"]))
@example("a/b", "cancel", "operation")
@example("+ %2F", "?&#", "cancel")
def test_names_survive_a_round_trip(service: str, operation: str, action: str) -> None:
    path = operation_path(service, operation, action)
    address = parse_operation_path(path.encode("ascii"))
    assert (address.service, address.operation, address.action) == (service, operation, action)


def test_paths_of_unknown_actions_are_not_written() -> None:
    with pytest.raises(ValueError, match="unknown action"):
        operation_path("a", "b", "start")


@pytest.mark.parametrize("name", ["", ".", "..", "a\0", "\ud800", "a" * 1001, "é" * 501])
def test_names_no_caller_could_address_are_refused(name: str) -> None:
    with pytest.raises(InvalidWireValue, match="operation name"):
        check_name(name, "operation")
    with pytest.raises(InvalidWireValue):
        operation_path("a", name)


@pytest.mark.parametrize("name", ["...", "a", "é" * 500, "a/b", " "])
def test_other_names_are_fine(name: str) -> None:
    check_name(name, "service")


@pytest.mark.parametrize("token", ["", " a", "a\n", "a\r\nb: c", "\u20ac", "\ud800", "t" * 4097])
def test_tokens_that_cannot_be_a_header_are_refused(token: str) -> None:
    with pytest.raises(InvalidWireValue, match="operation token"):
        check_token(token)


@pytest.mark.parametrize("token", ["t", "a b/c%", "\xe9", "t" * 4096])
def test_other_tokens_are_fine(token: str) -> None:
    check_token(token)


def test_tokens_stay_out_of_representations() -> None:
    assert "t0k" not in repr(parse_operation_path(b"/a/b/t0k/cancel"))

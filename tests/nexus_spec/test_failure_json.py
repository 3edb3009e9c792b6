import json
import math

import nexusrpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_spec import (
    Failure,
    InvalidWireValue,
    failure_from_json,
    failure_to_bytes,
    failure_to_json,
    parse_failure,
)
from tests.nexus_spec.strategies import JSON_VALUES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
FAILURES = st.recursive(
    st.builds(Failure, message=TEXT, details=JSON_VALUES),
    lambda inner: st.builds(
        Failure,
        message=TEXT,
        stack_trace=st.none() | TEXT,
        metadata=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
        details=JSON_VALUES,
        cause=inner,
        unknown=st.dictionaries(TEXT.map("x-".__add__), JSON_VALUES, max_size=2),
    ),
    max_leaves=3,
)


def nested(causes: int) -> bytes:
    return b'{"cause":' * causes + b"{}" + b"}" * causes


def test_reads_every_field_and_keeps_unknown_keys() -> None:
    failure = parse_failure(
        b'{"message":"m","stackTrace":"s","metadata":{"k":"v"},"details":[1],'
        b'"cause":{"message":"c","z":1},"encodedAttributes":{"a":null}}'
    )
    assert failure == Failure(
        message="m",
        stack_trace="s",
        metadata={"k": "v"},
        details=[1],
        cause=Failure(message="c", unknown={"z": 1}),
        unknown={"encodedAttributes": {"a": None}},
    )


def test_nulls_count_as_absent() -> None:
    data = b'{"message":null,"stackTrace":null,"metadata":null,"details":null,"cause":null}'
    assert parse_failure(data) == parse_failure(b"{}") == Failure(message="")
    assert failure_to_json(Failure(message="")) == {"message": ""}


@given(FAILURES)
def test_survives_a_round_trip(failure: Failure) -> None:
    assert parse_failure(failure_to_bytes(failure)) == failure
    assert failure_from_json(failure_to_json(failure)) == failure


@pytest.mark.parametrize(
    "data",
    [
        *[b"", b"{", b"null", b"[]", b'"m"', b"1", b'{"message":1}', b'{"stackTrace":[]}'],
        *[b'{"metadata":[]}', b'{"metadata":{"a":1}}', b'{"metadata":{"a":null}}'],
        *[b'{"cause":[]}', b'{"cause":"c"}', b'{"cause":{"cause":1}}', b'{"message":"\\ud800"}'],
        *[b'{"details":NaN}', b'{"details":' + b"9" * 5000 + b"}", b"\xff", b'{"message":"\x00"}'],
        *[b'{"details":' + b"[" * 50_000, nested(101), nested(300), nested(100_000)],
    ],
)
def test_refuses_what_is_no_failure(data: bytes) -> None:
    with pytest.raises(InvalidWireValue, match="Failure"):
        parse_failure(data)


def test_a_hundred_causes_are_read_and_written() -> None:
    failure = parse_failure(nested(100))
    assert parse_failure(failure_to_bytes(failure)) == failure


@given(
    st.binary()
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from(["message", "stackTrace", "metadata", "details", "cause"]), JSON_VALUES
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_a_failure_or_refused(data: bytes) -> None:
    try:
        failure = parse_failure(data)
    except InvalidWireValue:
        return
    assert parse_failure(failure_to_bytes(failure)) == failure


def test_writes_the_class_of_nexusrpc_too() -> None:
    failure = nexusrpc.Failure("m", metadata={"a": "b"}, cause=nexusrpc.Failure("c"))
    assert failure_to_json(failure) == {
        "message": "m",
        "metadata": {"a": "b"},
        "cause": {"message": "c"},
    }


def test_chain_tied_into_a_loop_is_cut() -> None:
    failure = Failure(message="m")
    failure.cause = failure
    assert parse_failure(failure_to_bytes(failure)).message == "m"


@pytest.mark.parametrize("value", [object(), "\ud800"])
def test_what_has_no_json_form_is_left_out_and_the_rest_sent(value: object) -> None:
    failure = Failure(
        message="m\ud800",
        stack_trace="s\udfff",
        metadata={"type": "nexus.HandlerError"},
        details={"type": "INTERNAL", "x": value},
        cause=Failure(message="c", details=object(), unknown={"u": object()}),
        unknown={"u": object()},
    )
    assert parse_failure(failure_to_bytes(failure)) == Failure(
        message="m?",
        stack_trace="s?",
        metadata={"type": "nexus.HandlerError"},
        details={"type": "INTERNAL"},
        cause=Failure(message="c"),
    )


def test_infinite_numbers_are_written_as_null() -> None:
    assert failure_to_bytes(Failure(message="", details=[math.inf])) == (
        b'{"message":"","details":[null]}'
    )

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_spec import (
    InvalidWireValue,
    OperationInfo,
    OperationState,
    parse_operation_info,
    parse_operation_state,
)
from tests.nexus_spec.strategies import JSON_VALUES, TOKENS


def test_writes_the_document_of_a_201() -> None:
    info = OperationInfo(token='t"é', state=OperationState.RUNNING)
    assert json.loads(info.to_json()) == {"token": 't"é', "state": "running"}
    assert 't"é' not in repr(info)


@given(TOKENS, st.sampled_from(OperationState))
def test_survives_a_round_trip(token: str, state: OperationState) -> None:
    info = OperationInfo(token=token, state=state)
    assert parse_operation_info(info.to_json()) == info


def test_unknown_keys_are_ignored() -> None:
    info = parse_operation_info(b'{"token":"t","state":"canceled","id":1}')
    assert info == OperationInfo("t", OperationState.CANCELED)


@pytest.mark.parametrize(
    "data",
    [
        *[b"", b"{", b"null", b"[]", b'"t"', b"{}", b'{"token":"t"}', b'{"state":"running"}'],
        *[b'{"token":"","state":"running"}', b'{"token":1,"state":"running"}'],
        *[b'{"token":"t","state":"Running"}', b'{"token":"t","state":null}'],
        *[b'{"token":"t","state":["running"]}', b'{"token":"t\\n","state":"running"}'],
        *[b'{"token":"\\ud800","state":"running"}', b"[" * 100_000, b"\xff\xfe", b"9" * 5000],
    ],
)
def test_refuses_other_documents(data: bytes) -> None:
    with pytest.raises(InvalidWireValue):
        parse_operation_info(data)


@given(
    st.binary()
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"token": JSON_VALUES, "state": JSON_VALUES}).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_any_bytes_are_operation_info_or_refused(data: bytes) -> None:
    try:
        parse_operation_info(data)
    except InvalidWireValue:
        return


@given(JSON_VALUES)
def test_any_value_is_a_state_or_refused(value: object) -> None:
    if isinstance(value, str) and value in list(OperationState):
        assert parse_operation_state(value) == value
        return
    with pytest.raises(InvalidWireValue, match="expected running, succeeded, failed, canceled"):
        parse_operation_state(value)

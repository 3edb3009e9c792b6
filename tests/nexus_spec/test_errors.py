import pytest
from nexusrpc import HandlerError, HandlerErrorType

from nexus_spec import ERROR_KINDS, is_retryable, status_of, type_of_status

TABLE = [
    ("BAD_REQUEST", 400, False),
    ("UNAUTHENTICATED", 401, False),
    ("UNAUTHORIZED", 403, False),
    ("NOT_FOUND", 404, False),
    ("REQUEST_TIMEOUT", 408, True),
    ("CONFLICT", 409, False),
    ("RESOURCE_EXHAUSTED", 429, True),
    ("INTERNAL", 500, True),
    ("NOT_IMPLEMENTED", 501, False),
    ("UNAVAILABLE", 503, True),
    ("UPSTREAM_TIMEOUT", 520, True),
]


@pytest.mark.parametrize(("type_", "status", "retryable"), TABLE)
def test_predefined_errors_are_those_of_the_specification(
    type_: str, status: int, retryable: bool
) -> None:
    assert status_of(type_) == status
    assert status_of(HandlerErrorType[type_]) == status
    assert type_of_status(status) == type_
    assert is_retryable(HandlerError("", type=type_)) is retryable


def test_table_covers_every_type_of_nexusrpc_and_agrees_with_it() -> None:
    assert {*ERROR_KINDS, "UNKNOWN"} == {type_.value for type_ in HandlerErrorType}
    for type_ in HandlerErrorType:
        error = HandlerError("", type=type_)
        assert is_retryable(error) is error.retryable


def test_unknown_types_and_statuses_are_retryable_internal_errors() -> None:
    assert status_of("TEAPOT") == 500
    assert status_of(HandlerErrorType.UNKNOWN) == 500
    assert type_of_status(418) == type_of_status(502) == "UNKNOWN"
    assert is_retryable(HandlerError("", type="TEAPOT"))


@pytest.mark.parametrize("override", [True, False])
@pytest.mark.parametrize("type_", ["BAD_REQUEST", "INTERNAL", "TEAPOT"])
def test_override_beats_the_table(type_: str, override: bool) -> None:
    assert is_retryable(HandlerError("", type=type_, retryable_override=override)) is override

"""The tables themselves."""

from collections import Counter

from tests.conformance import (
    test_access,
    test_addressing,
    test_cancel,
    test_completion,
    test_custom_operations,
    test_http,
    test_idempotency,
    test_result_and_info,
    test_start_request,
    test_start_response,
    test_timeouts,
)

TABLES = [
    test_access.CLAUSES,
    test_addressing.CLAUSES,
    test_cancel.CLAUSES,
    test_completion.CLAUSES,
    test_custom_operations.CLAUSES,
    test_http.CLAUSES,
    test_idempotency.CLAUSES,
    test_result_and_info.CLAUSES,
    test_start_request.CLAUSES,
    test_start_response.CLAUSES,
    test_timeouts.CLAUSES,
]


def test_every_row_has_a_name_of_its_own_and_says_what_it_checks() -> None:
    rows = [row for table in TABLES for row in table]
    assert [id for id, count in Counter(row.id for row in rows).items() if count > 1] == []
    assert all(row.says for row in rows)

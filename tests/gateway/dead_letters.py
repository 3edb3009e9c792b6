"""Completions that were given up, written into a database that no gateway serves yet."""

import sqlite3
from contextlib import closing

import psycopg

from callbacks.database import is_postgres, sqlite_path
from callbacks.egress import read_destination
from gateway.schema import migrate

GIVEN_UP_AT = 1_700_000_000_000  # the first; each following one a millisecond later

_NUMBERED = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
"""
_OPERATIONS = """
INSERT INTO operation (
    token, endpoint, service, operation, caller, request_id, input_hash, input, content_headers,
    headers, state, epoch, wake_seq, attempts, losses, watched, links, handler_links, created_at,
    closed_at
) {numbers}
SELECT
    '{service}-' || n, 'default', '{service}', 'old', '', '{service}-' || n, CAST('' AS {bytes}),
    CAST('' AS {bytes}), '{{}}', '{{}}', 'succeeded', 1, 0, 0, 0, 0, '[]', '[]', {at}, {at} + n
FROM numbers
"""
_CALLBACKS = """
INSERT INTO callback (
    token, slot, registration_hash, destination, url, headers, body, state, attempt, retries,
    outcome_unknown, reason, deadline_at, created_at, closed_at
) {numbers}
SELECT
    '{service}-' || n, 0, CAST('' AS {bytes}), '{destination}', '{url}/' || n,
    '[["Token","hush"],["Nexus-Operation-State","succeeded"]]', CAST('"done"' AS {bytes}),
    '{state}', 3, 3, 0, 'answered 503', {at} + 9, {at}, {at} + n - 1
FROM numbers
"""


def write_dead_letters(
    database_url: str, url: str, count: int, *, service: str = "past", state: str = "failed"
) -> None:
    """Write operations `SERVICE-1` to `SERVICE-COUNT`, whose completions went to `URL/1` and so on.

    Makes the file and its schema where there is none; a PostgreSQL database has it already.
    """
    on_postgres = is_postgres(database_url)
    values = {
        "numbers": _NUMBERED.format(count=count),
        "service": service,
        "state": state,
        "url": url,
        "destination": read_destination(url).name,
        "at": GIVEN_UP_AT,
        "bytes": "BYTEA" if on_postgres else "BLOB",
    }
    statements = [text.format(**values) for text in (_OPERATIONS, _CALLBACKS)]
    if on_postgres:
        with psycopg.connect(database_url) as connection:
            for statement in statements:
                connection.execute(statement.encode())
        return
    migrate(database_url)
    with closing(sqlite3.connect(sqlite_path(database_url))) as file, file:
        for statement in statements:
            file.execute(statement)

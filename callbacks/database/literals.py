"""Finishing compiled SQL: what is fixed becomes part of the text."""

import re

from sqlalchemy.sql.compiler import SQLCompiler

_PARAMETER = re.compile(r"(?<![:\w]):(\w+)")
_RETURNING = re.compile(r"\sRETURNING\s(?!.*\sRETURNING\s)", re.DOTALL)


def with_literals(compiled: SQLCompiler) -> str:
    """Return the text of a statement in which only what is given at each run is a parameter.

    There is less to hand over each time, and a database sees where a partial index covers the
    query.

    Raises:
        TypeError: A value has no literal.
    """
    fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
    return _PARAMETER.sub(
        lambda match: _literal(fixed[match[1]]) if match[1] in fixed else match[0], str(compiled)
    )


def ignoring_conflicts(text: str, compiled: SQLCompiler) -> str:
    """Return the text of an insert that skips rows that are there already."""
    if compiled.effective_returning:
        found = _RETURNING.search(text)
        assert found is not None
        return f"{text[: found.start()]} ON CONFLICT DO NOTHING{text[found.start() :]}"
    return f"{text} ON CONFLICT DO NOTHING"


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case int():
            return str(value)
        case str():
            return "'" + value.replace("'", "''") + "'"
        case _:
            raise TypeError(f"{value!r} cannot be part of a statement; bind it")

import json
import logging

import pytest
from opentelemetry.sdk.trace import TracerProvider

from gateway.logs import JsonFormatter, TextFormatter, announcement


def record(message: str = "something %s", *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord(
        "callbacks.delivery", logging.WARNING, __file__, 1, message, arguments, None
    )
    made.__dict__.update(extra)
    made.created = 1767323045.678
    return made


def document(made: logging.LogRecord) -> dict[str, object]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    read: dict[str, object] = json.loads(line)
    return read


def test_json_has_the_message_and_every_field() -> None:
    assert document(record("tried %d", 2, token="t-1", attempt=2)) == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "level": "warning",
        "logger": "callbacks.delivery",
        "message": "tried 2",
        "token": "t-1",
        "attempt": 2,
    }


def test_what_json_cannot_say_is_said_as_text() -> None:
    assert document(record("x", error=ValueError("no")))["error"] == "no"
    assert document(record("a\nb"))["message"] == "a\nb"


def test_an_exception_is_a_field_of_its_line() -> None:
    made = record("broke")
    error = ZeroDivisionError("division by zero")
    made.exc_info = (type(error), error, None)
    assert "ZeroDivisionError" in str(document(made)["exception"])
    assert "ZeroDivisionError" in TextFormatter(colour=False).format(made)


def test_text_is_for_people() -> None:
    line = TextFormatter(colour=False).format(record("tried", token="t-1", reason="a b", none=""))
    assert line[23:] == ' WARNING tried token=t-1 reason="a b" none=""'
    coloured = TextFormatter(colour=True).format(record("tried"))
    assert "\033[33mWARNING\033[0m" in coloured


@pytest.mark.parametrize("value", ["a\nERROR forged", "\033[2J", "a\u2028b"])
def test_a_field_cannot_forge_a_line(value: str) -> None:
    line = TextFormatter(colour=False).format(record("tried", reason=value))
    assert line.isprintable()


def test_a_line_inside_a_span_has_its_trace() -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("span") as span:
        trace_id = f"{span.get_span_context().trace_id:032x}"
        assert document(record("x"))["trace_id"] == trace_id
        assert f"trace_id={trace_id}" in TextFormatter(colour=False).format(record("x"))
    assert "trace_id" not in document(record("x"))


def test_an_announcement_is_in_the_format_of_the_logs() -> None:
    assert announcement("text", "a", "ready") == "ready\n"
    said = json.loads(announcement("json", "a", "ready"))
    assert (said["level"], said["logger"], said["message"]) == ("info", "a", "ready")

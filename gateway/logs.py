"""Logs: one line for a person, or one JSON object for a machine."""

import json
import logging
import sys
from datetime import UTC, datetime

from handlers.tracing import current_trace_id

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31m"}
# Libraries that tell at info level what only their own developers want to know. Everything else,
# the services that are served included, logs at the level that was asked for.
_QUIET = (
    "aiohttp",
    "alembic",
    "asyncio",
    "httpcore",
    "httpx",
    "opentelemetry",
    "sqlalchemy",
    "uvicorn",
)


def set_up_logs(log_format: str, level: str) -> None:
    """Send logs to standard error.

    Args:
        log_format: `text` or `json`.
        level: `debug`, `info`, `warning` or `error`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else TextFormatter(colour=sys.stderr.isatty())
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def announcement(log_format: str, logger: str, message: str) -> str:
    """Return a line that is told whatever the level, in the format of the logs."""
    if log_format != "json":
        return f"{message}\n"
    record = logging.makeLogRecord({"name": logger, "levelno": logging.INFO, "msg": message})
    record.levelname = "INFO"
    return f"{JsonFormatter().format(record)}\n"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {k: v for k, v in record.__dict__.items() if k not in _OWN and not k.startswith("_")}
    if (trace_id := current_trace_id()) is not None:
        fields["trace_id"] = trace_id
    return fields


class TextFormatter(logging.Formatter):
    """`2026-01-02 03:04:05.678 WARNING completion not delivered token=… attempt=2`."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        clock = moment.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        level = record.levelname
        if self._colour and level in _COLOURS:
            level = f"{_COLOURS[level]}{level}\033[0m"
        line = f"{clock} {level} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _plain(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text.isprintable() or " " in text or not text else text

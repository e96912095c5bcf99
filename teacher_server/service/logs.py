"""Log lines as text or JSON: with the request's id, and without the questions' contents."""

import json
import logging
import time
import traceback
from contextvars import ContextVar
from pathlib import PurePath
from types import TracebackType

from teacher_server.settings import LogFormat

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being answered."""

_FRAMES = 8


def write_logs(form: LogFormat) -> None:
    """Writes log lines to stderr: the service's own from INFO, all others from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("teacher_server").setLevel(logging.INFO)
    # uvicorn warns of each invalid request: anyone who can connect could fill the disk
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


class _Text(logging.Formatter):
    """One line of text, for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{when} {record.levelname} {record.name}: {record.getMessage()}{fields}"


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line | _fields(record))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Returns a line's fields: those of `extra={"fields": {...}}`, the request's id, the error."""
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if identifier := request_id.get():
        fields["request_id"] = identifier
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = record.exc_info[0].__name__
        fields["at"] = _where(record.exc_info[2])
    return fields


def _where(trace: TracebackType | None) -> str:
    """Returns the calls on an error's path, the last first, without its message, which may hold a mission."""
    frames = traceback.extract_tb(trace)[-_FRAMES:]
    return "<".join(f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))

"""The daemon's log: one line per event, logfmt or JSON, to standard error or a file.

The file is opened anew when something rotates it away. Lines are bounded by LINE_CHARACTERS_MAX, since peers choose
parts of them.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from pathlib import Path

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime.settings import LogFormat, Settings

LINE_CHARACTERS_MAX = 4000
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _fields(record: logging.LogRecord) -> dict[str, str]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    text = record.getMessage()
    if record.exc_info:
        text += " " + " | ".join(logging.Formatter().formatException(record.exc_info).splitlines())
    return {
        "time": f"{moment}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "topic": record.name.removeprefix("weave.").removeprefix("weavenet."),
        "msg": text[:LINE_CHARACTERS_MAX],
    }


class LogfmtFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in _fields(record).items())


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record), ensure_ascii=False)


def _quoted(value: str) -> str:
    """Bare when it is one plain word; else a JSON string, which also keeps control characters out of terminals."""
    is_plain = value.isascii() and value.isprintable() and value and not set(value) & set(' "=\\')
    return value if is_plain else json.dumps(value, ensure_ascii=not value.isprintable())


def configure(settings: Settings) -> None:
    """Replaces every handler. Raises WeaveError when the log file cannot be written."""
    handler: logging.Handler
    if settings.log_file:
        path = Path(settings.log_file)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            os.close(descriptor)
            handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise WeaveError(
                Failure(
                    Code.HOST,
                    f"expected to write the log {path}",
                    error.strerror or str(error),
                    "free or make that place, or launch with --foreground",
                )
            ) from error
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format is LogFormat.JSON else LogfmtFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS.get(settings.log_level, logging.INFO))
    for library in ("pyroute2", "asyncio"):
        logging.getLogger(library).setLevel(logging.WARNING)  # their debug lines are about themselves
    logging.raiseExceptions = False  # a full disk must not turn every line into a traceback

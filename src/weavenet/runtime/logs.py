"""The daemon's log: one line per event, logfmt or JSON, to standard error or a file.

The file is opened anew when something rotates it away, and rotates itself at FILE_BYTES_MAX: it and ``.1`` are all
there is. Lines are bounded by LINE_CHARACTERS_MAX, since peers choose parts of them, and of lines that differ in
numbers only (a refused host tries again from port after port) a minute keeps ALIKE_MAX.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import logging.handlers
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from weavenet.core.errors import Code, Failure, WeaveError
from weavenet.runtime.settings import LogFormat, Settings

LINE_CHARACTERS_MAX = 4000
FILE_BYTES_MAX = 16 << 20
FILE_MODE = 0o600
"""As `weave launch` makes it: who talks to whom is nobody else's business. Rotation by others may choose another."""
ALIKE_MAX, ALIKE_PAUSE_S = 20, 60.0
SHAPES_MAX = 512
"""Kinds of lines that are counted at a time; beyond it counting begins anew."""
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


_NUMBERS = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*")


class FewAlike(logging.Filter):
    """Passes ALIKE_MAX lines of one shape within ALIKE_PAUSE_S; the first one after that says how many it left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        now = self._clock()
        text = record.getMessage()
        shape = (record.name, _NUMBERS.sub("0", text[:LINE_CHARACTERS_MAX]))
        since, count = self._seen.get(shape, (now, 0))
        if now - since >= ALIKE_PAUSE_S:
            if count > ALIKE_MAX:
                record.msg, record.args = f"{text} ({count - ALIKE_MAX} lines like this were left out)", ()
            since, count = now, 0
        if shape not in self._seen and len(self._seen) >= SHAPES_MAX:
            self._seen.clear()
        self._seen[shape] = since, count + 1
        return count < ALIKE_MAX


class BoundedFile(logging.handlers.WatchedFileHandler):
    """Moves the file to ``.1`` when it is full, in place of the one before; the next line opens a new one, when it
    can. Raises OSError when it cannot be opened in the beginning."""

    def _open(self) -> io.TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            if self.stream is not None and os.fstat(self.stream.fileno()).st_size >= FILE_BYTES_MAX:
                Path(self.baseFilename).replace(f"{self.baseFilename}.1")
        try:
            super().emit(record)
        except OSError:  # it cannot be opened now: its folder is gone, say; whoever has something to log goes on
            self.handleError(record)


def configure(settings: Settings) -> None:
    """Replaces every handler. Raises WeaveError when the log file cannot be written."""
    handler: logging.Handler
    if settings.log_file:
        path = Path(settings.log_file)
        try:
            handler = BoundedFile(path)
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
    handler.addFilter(FewAlike())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(LEVELS.get(settings.log_level, logging.INFO))
    for library in ("pyroute2", "asyncio"):
        logging.getLogger(library).setLevel(logging.WARNING)  # their debug lines are about themselves
    logging.raiseExceptions = False  # a full disk must not turn every line into a traceback

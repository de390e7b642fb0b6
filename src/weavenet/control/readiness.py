"""How a daemon started in the background tells ``weave launch`` that it is ready, or why it will not be.

One JSON line on the file descriptor named by ``WEAVE_READY_FD`` (a pipe), then the descriptor is closed. End of file
without a line means that the daemon died before it could say anything. A daemon started otherwise (foreground, unit)
has no such variable and says nothing.
"""

from __future__ import annotations

import os

import msgspec

from weavenet.core.errors import Failure

VARIABLE = "WEAVE_READY_FD"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """``failure`` is None when the daemon is ready: links are listened for and the control socket answers."""

    name: str = ""
    nickname: str = ""
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None


def tell(outcome: Outcome) -> None:
    """Tell whoever started this process, once; does nothing when nobody asked or nobody listens any more."""
    text = os.environ.pop(VARIABLE, "")
    if not text.isdecimal():
        return
    fd = int(text)
    try:
        os.write(fd, msgspec.json.encode(outcome) + b"\n")
    except OSError:
        pass  # the launcher was interrupted; the daemon goes on
    finally:
        os.close(fd)


def decode(line: bytes) -> Outcome | None:
    """What the daemon said; None when it said nothing that makes sense."""
    try:
        return msgspec.json.decode(line, type=Outcome)
    except msgspec.DecodeError:
        return None

"""Where every run of ``weave`` begins: answers ``weave status [part]`` at once, hands everything else to ``main``.

``status`` is what people and monitoring call most. Importing click alone takes longer than all of it, so the plain form
without options is answered here; with options it takes the ordinary way and prints the same.
"""

import errno
import io
import os
import sys

from weavenet.cli.outcome import ERROR, OK, Ended, spoken, tell

_LOST = "expected to write the output; found: {}; next: see `weave status`: what was to be changed may be done"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
PARTS = ("targets", "connections", "peers", "dns", "ipam")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where the locale cannot write it, a nickname or an ellipsis must not end a command. JSON stays JSON with it.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for argument in arguments:
            if not argument.isascii():
                _refuse_bytes(argument)
        status = _run(arguments)
    except Ended as ended:
        tell(spoken(ended.told()))
        status = ended.status
    except OSError as error:
        # Of what is longer than its buffer nothing may be left to write, so that only the error tells of it.
        if not _is_output_lost():
            if error.errno not in _NO_ROOM or error.filename is not None:
                raise
            tell(spoken(_LOST.format(error.strerror)))
        return ERROR
    return ERROR if _is_output_lost() else status


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["status"] and (len(arguments) == 1 or (len(arguments) == 2 and arguments[1] in PARTS)):
        return _status("/".join(arguments))
    from weavenet.cli.main import run

    return run(arguments)


def _open_what_is_closed() -> None:
    """A socket or file must not become standard output by taking its number; and what is meant for a standard error
    that is closed must not go to standard output, as `print` sees to it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process


def _refuse_bytes(argument: str) -> None:
    """Raises Ended for bytes that are no text: they could be neither sent nor stored."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        found = os.fsencode(argument).decode(errors="backslashreplace")
        raise Ended(ERROR, f"expected arguments in UTF-8; found: {found}") from None


def _is_output_lost() -> bool:
    """Whether something could not be written to standard output, other than for a reader that went away; then a
    sentence says so."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        tell(spoken(_LOST.format(error.strerror)))
        return True
    return False


def _discard_output() -> None:
    """The interpreter would try to write it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _status(path: str) -> int:
    from weavenet.cli.client import ask

    write(ask("GET", f"/v1/{path}").body)
    return OK


def write(body: bytes) -> None:
    """Bytes to stdout; a reader that went away (``weave status | head -1``) is no error."""
    try:
        while body:
            body = body[os.write(1, body) :]
    except BrokenPipeError:
        pass
    except OSError as error:
        raise Ended(ERROR, _LOST.format(error.strerror)) from error

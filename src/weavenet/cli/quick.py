"""Where every run of ``weave`` begins: answers ``weave status [part]`` at once, hands everything else to ``main``.

``status`` is what people and monitoring call most. Importing click alone takes longer than all of it, so the plain form
without options is answered here; with options it takes the ordinary way and prints the same.
"""

import os
import sys

from weavenet.cli.outcome import OK, Ended, spoken

PARTS = ("targets", "connections", "peers", "dns", "ipam")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    if arguments[:1] == ["status"] and (len(arguments) == 1 or (len(arguments) == 2 and arguments[1] in PARTS)):
        return _status("/".join(arguments))
    from weavenet.cli.main import run

    return run(arguments)


def _status(path: str) -> int:
    from weavenet.cli.client import ask

    try:
        body = ask("GET", f"/v1/{path}").body
    except Ended as ended:
        print(spoken(ended.told()), file=sys.stderr)
        return ended.status
    write(body)
    return OK


def write(body: bytes) -> None:
    """Bytes to stdout; a reader that went away (``weave status | head -1``) is no error."""
    try:
        while body:
            body = body[os.write(1, body) :]
    except BrokenPipeError:
        pass
